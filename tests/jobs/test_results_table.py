"""The results table joins passports, evaluations, suites and votes by adapter."""

import csv
import json
from pathlib import Path

from jobs import results_table, suite_results
from jobs.actions.adapters import card
from jobs.compare_tables import Votes
from studio.adapter_stack import StackItem, write_lane
from studio.adapters import library
from studio.evaluation.evaluate_on_dataset import REPORT
from studio.evaluation.suites import RESULTS
from tests.studio.methods.test_matrix import attached


def adapter(home, name, eval_loss, forgetting, **more):
    folder = home.adapters / name
    folder.mkdir()
    backbone, _ = attached("lora-r=4", "llama", trained=False)
    backbone.save("a", folder, base="base")
    passport = {"name": name, "eval_loss": eval_loss, "forgetting": {"forgetting": forgetting}}
    passport |= more
    (folder / "passport.json").write_text(json.dumps(passport))
    return str(folder)


def measured(store, lanes, *tasks, **spec):
    job = store.submit({"name": "", "tasks": ["quiz"], **spec}, kind="tasks").id
    store.home.run(job).mkdir()
    (store.home.run(job) / REPORT).write_text(json.dumps({"lanes": lanes, "tasks": tasks}))
    return job


def quiz(*values, metric="acc", best="max"):
    return {"task": "quiz", "metric": metric, "best": best, "values": values}


def test_a_lane_finds_its_row_and_other_prompts_have_columns_of_their_own(store, home):
    low, top, whole = (adapter(home, name, None, None) for name in ("low", "top", "whole"))
    line = [{"name": "low", "path": low, "frozen": True}]
    (home.adapters / "top" / "passport.json").write_text(
        json.dumps({"name": "top", "lineage": line})
    )
    stack = [StackItem(name=low), StackItem(name=top)]
    lanes = [whole, write_lane("base", stack), write_lane("base", stack[::-1])]
    measured(store, lanes, quiz(0.25, 0.5, 0.5), quiz(1, 2, 2, metric="odd", best=""))
    half = stack[0].model_copy(update={"weight": 0.5})
    weak = stack[1].model_copy(update={"weight": 0.5})
    other = [write_lane("base", [half, stack[1]]), write_lane("base", [stack[0], weak]),
             write_lane("base", [half]), "base · temperature 0.7", "base"]  # fmt: skip
    values = (0.75, 0.76, 0.77, 0.78, 0.125)
    measured(store, other, quiz(*values), num_fewshot=5, limit=100, chat=True)

    found = results_table.table(store)

    rows = {row["key"]: row for row in found["rows"]}
    assert {key: row.get("quiz acc") for key, row in rows.items()} == {
        low: None, top: 0.5, whole: 0.25, "base base": None,
    }  # fmt: skip
    apart = "quiz (5-shot, first 100, chat)"
    assert {key: row.get(f"{apart} acc") for key, row in rows.items()} == {
        low: None, top: None, whole: None, "base base": 0.125,
    }  # fmt: skip
    columns = {column["key"]: column for column in found["columns"]}
    assert columns[f"{apart} acc"]["title"] == f"{apart}: acc"
    assert columns["quiz odd"]["best"] is None
    lines = results_table.written(found, "markdown").splitlines()
    assert any(" **0.5** | 2 |" in line for line in lines)  # no best where it is unknown


def evaluated(store, stack, path="/x/bank.csv", asked=(), **report):
    spec = {"name": "", "model": {"path": "base"}, "data": {"path": path}, "stack": stack}
    spec |= dict(asked)
    job = store.submit(spec, kind="evaluate").id
    store.home.run(job).mkdir()
    (store.home.run(job) / REPORT).write_text(json.dumps(report))
    return job


def test_every_figure_stands_in_the_row_of_its_adapter(store, home):
    one, other = adapter(home, "one", 0.5, 0.1), adapter(home, "o|ther", 0.75, None)
    evaluated(store, [{"name": one}], accuracy=0.25)
    newest = evaluated(store, [{"name": one}], accuracy=0.5)
    evaluated(store, [], accuracy=0.125)
    evaluated(store, [{"name": one}, {"name": other}], accuracy=0.99)  # a stack has no row
    lane = {"model": "base", "stack": [{"name": "o|ther"}]}
    cases = [{"prompt": "x", "expected": "y"}]
    suite = store.submit({"name": "quiz", "lanes": [lane], "cases": cases}, kind="suite").id
    answer = {"text": "y", "error": None, "reason": "end", "exact_match": 1.0, "rouge_l": 1.0}
    answer |= dict.fromkeys(
        ("pattern", "json", "tokens", "tokens_per_second", "first_token_seconds", "seconds")
    )
    home.run(suite).mkdir()
    row = {**cases[0], "pattern": None, "case": 0, "answers": [answer]}
    (home.run(suite) / RESULTS).write_text(json.dumps(row) + "\n")
    lanes = ["base~one:1", "base"]
    for winner in (0, 0, None, 1):
        Votes(store.database).cast("hi", lanes, winner=winner)

    prose = {"task": "prose", "metric": "word_perplexity", "best": "min", "values": [9.0, 8.0]}
    tasks = [quiz(0.25, 0.5), prose]
    job = measured(store, ["base", "base~one:1"], *tasks)

    found = results_table.table(store)

    acc = {row["name"]: row.get("quiz acc") for row in found["rows"]}
    assert acc == {"one": 0.5, "o|ther": None, "base": 0.25}
    columns = {column["key"]: column for column in found["columns"]}
    assert columns["prose word_perplexity"]["best"] == "min"
    assert columns["quiz acc"]["title"] == "quiz: acc" and columns["quiz acc"]["job"] == job
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == {"one", "o|ther", "base"}
    figures = ("eval_loss", "forgetting", "win_rate", "bank.csv accuracy", "quiz exact_match")
    assert [rows["one"].get(key) for key in figures] == [0.5, 0.1, 2.5 / 4, 0.5, None]
    assert [rows["o|ther"].get(key) for key in figures] == [0.75, None, None, None, 1.0]
    assert [rows["base"].get(key) for key in figures] == [None, None, 1.5 / 4, 0.125, None]
    assert rows["one"]["jobs"]["bank.csv accuracy"] == newest
    table = list(csv.DictReader(results_table.written(found, "csv").splitlines()))
    assert {line["Name"]: line["bank.csv: accuracy"] for line in table} == {
        "one": "0.5", "o|ther": "", "base": "0.125",
    }  # fmt: skip
    head, _, *body = results_table.written(found, "markdown").splitlines()
    assert head.startswith("| Name | Method | Base | Held-out loss |")
    assert any(line.startswith("| o\\|ther | LoRA | base | 0.75 |") for line in body)
    assert any("| one | LoRA | base | **0.5** | 0.1 | **0.625** |" in line for line in body)


def test_the_best_is_of_one_base_and_dataset_and_rests_on_enough_rows(store, home):
    data = {"data": {"path": "shop"}}
    for name, loss, more in (
        ("low", 0.5, data), ("high", 0.75, data), ("elsewhere", 0.25, {"data": {"path": "bank"}}),
        ("foreign", 0.125, data | {"base": {"path": "other"}}),
    ):  # fmt: skip
        adapter(home, name, loss, None, **more)
    few = home.runs / "7" / "adapter"
    few.parent.mkdir()
    Path(adapter(home, "few", 0.0625, 2.0, **data)).rename(few)
    (few.parent / "report.json").write_text(json.dumps({"rows": {"validation_examples": 3}}))

    found = results_table.table(store)

    rows = {row["name"]: row for row in found["rows"]}
    best = {name: row["best"] for name, row in rows.items() if "eval_loss" in row["best"]}
    assert [*best] == ["low"]  # the lowest of all rests on 3 rows, others have nothing to beat
    assert {name: row["few"] for name, row in rows.items() if row["few"]} == {"few": 3}
    assert rows["few"]["lacks"] == []
    assert rows["low"]["lacks"] == ["forgetting was not measured"]
    lines = results_table.written(found, "markdown").splitlines()
    assert [line.split()[1] for line in lines if "| **0" in line] == ["low"]


def test_only_losses_that_were_measured_alike_are_compared(store, home):
    def run(name, loss, train=(), data=(), **more):
        spec = {"train": dict(train), "data": {"path": "shop", **dict(data)}, **more}
        adapter(home, name, loss, None, spec=spec, eval_score=0.75 if train else None)

    run("low", 1.0)
    run("high", 1.5)
    run("all", 0.5, data={"train_on": "all"})
    run("seed", 0.5, seed=1)
    run("dpo", 0.25, {"loss": "dpo"})
    run("grpo", None, {"loss": "grpo", "rewards": "number"})
    found = results_table.table(store)
    rows = {row["name"]: row for row in found["rows"]}
    assert [name for name, row in rows.items() if "eval_loss" in row["best"]] == ["low"]
    dpo = rows["dpo"]
    assert (dpo["eval_loss"], dpo["dpo_loss"], dpo["reward_accuracy"]) == (None, 0.25, 0.75)
    assert "no held-out SFT loss" in dpo["lacks"] and rows["grpo"]["reward"] == 0.75
    titles = {column["key"]: column["title"] for column in found["columns"]}
    assert titles["dpo_loss"] == "Held-out loss (dpo)" and "kto_loss" not in titles
    assert "how" not in dpo and "forgot" not in dpo
    cards = {one.name: card(one, {}) for one in library.adapters(home)}
    alike = {name: one["alike"] == cards["low"]["alike"] for name, one in cards.items()}
    assert {name for name, same in alike.items() if same} == {"high", "low"}
    assert [cards[name]["loss"] for name in ("low", "dpo", "grpo")] == ["", "DPO", "GRPO"]


def test_losses_of_the_same_held_out_rows_are_compared_whatever_the_seed(store, home):
    for name, loss, rows, seed in (("low", 1.0, "a", 1), ("high", 1.5, "a", 2), ("b", 0.5, "b", 1)):
        data = {"path": "shop", "evaluated": {"rows": 9, "hash": rows}}
        adapter(home, name, loss, None, data=data, spec={"seed": seed})
    found = results_table.table(store)["rows"]
    assert [row["name"] for row in found if "eval_loss" in row["best"]] == ["low"]


def test_evaluations_with_other_settings_of_their_scores_have_columns_of_their_own(store, home):
    one = [{"name": adapter(home, "one", None, None)}]
    scored = {"scores": ["regex"]}
    for score, asked in ((0.5, {"pattern": "a"}), (0.25, {"pattern": "b" * 200}),
                         (0.75, {"pattern": "a", "max_new_tokens": 9})):  # fmt: skip
        evaluated(store, one, asked=scored | asked, scores={"regex": score})
    (row,) = results_table.table(store)["rows"]
    figures = {key: value for key, value in row.items() if key.endswith("regex")}
    assert sorted(figures.values()) == [0.25, 0.5, 0.75]
    assert "bank.csv (max_new_tokens 128, pattern a) regex" in figures
    assert max(map(len, figures)) < 120


def test_forgetting_of_another_general_set_has_a_column_of_its_own(store, home):
    one, other = adapter(home, "one", None, 0.5), adapter(home, "two", None, 0.25)
    evaluated(store, [{"name": one}], forgetting=0.75, general={"set": "/x/law.jsonl"})
    evaluated(store, [{"name": other}], forgetting=0.125, general={"set": "embedded"})
    rows = {row["name"]: row for row in results_table.table(store)["rows"]}
    assert (rows["one"]["forgetting"], rows["two"]["forgetting"]) == (0.5, 0.125)
    assert rows["one"]["forgetting /x/law.jsonl"] == 0.75


def test_evaluations_of_other_rows_have_columns_of_their_own(store, home):
    one = adapter(home, "one", 0.5, 0.25)
    held = {"rows": "held_out", "max_rows": 5, "seed": 1}
    evaluated(store, [{"name": one}], accuracy=0.25)
    evaluated(store, [{"name": one}], accuracy=0.5, asked={"seed": 7})  # no effect on all rows
    evaluated(store, [{"name": one}], accuracy=0.75, asked=held)
    evaluated(store, [{"name": one}], accuracy=0.875, asked=held | {"seed": 2})
    evaluated(store, [{"name": one}], path="/y/bank.csv", accuracy=0.125)
    evaluated(store, [{"name": one}], path="/y/other.csv", accuracy=0.0, forgetting=0.0)
    (row,) = results_table.table(store)["rows"]
    figures = {key: value for key, value in row.items() if key.endswith("accuracy")}
    assert sorted(figures.values()) == [0.0, 0.125, 0.5, 0.75, 0.875]
    assert figures["other.csv accuracy"] == 0.0
    assert row["forgetting"] == 0.0  # the newest, as nothing was forgotten
    (name,) = (key for key, value in figures.items() if value == 0.875)
    assert "path /x/bank.csv" in name and "rows held_out, max_rows 5, seed 2" in name


def test_what_was_measured_of_earlier_weights_does_not_count(store, home):
    for created, shown in (
        ("2020-01-01T00:00:00+00:00", True),
        ("2100-01-01T00:00:00+00:00", False),
    ):
        name = f"made-{created[:4]}"
        one = adapter(home, name, 0.5, 0.25, created=created)
        evaluated(store, [{"name": one}], accuracy=0.25, forgetting=9.0)
        lane = write_lane("base", [StackItem(name=name)])
        measured(store, [lane], quiz(0.5), name=f"tasks {name}")
        Votes(store.database).cast("hi", [lane, "base"], winner=0)
        row = {row["name"]: row for row in results_table.table(store)["rows"]}[name]
        assert ("quiz acc" in row, "bank.csv accuracy" in row, "win_rate" in row) == (shown,) * 3
        assert row["forgetting"] == (9.0 if shown else 0.25)


def test_votes_on_lanes_of_one_adapter_count_together_and_never_against_itself(store, home):
    one = adapter(home, "one", None, None)
    votes, (name, path) = (
        Votes(store.database),
        (write_lane("base", [StackItem(name=item)]) for item in ("one", one)),
    )
    votes.cast("hi", [name, "base"], winner=0)
    votes.cast("hi", [path, "base"], winner=1)
    votes.cast("hi", [path, "base"], winner=1)
    votes.cast("hi", [name, path], winner=0)
    votes.cast("hi", ["base", "base"], winner=0)
    votes.cast("hi", [name, "base · system Be terse."], winner=0)
    rows = {row["name"]: row for row in results_table.table(store)["rows"]}
    assert rows["one"]["win_rate"] == 2 / 4 and rows["base"]["win_rate"] == 2 / 3


def test_a_win_rate_counts_the_games_of_votes_of_many_lanes_and_is_best_among_those_that_met(
    store, home
):
    names = {name: adapter(home, name, None, None) for name in "abcde"}
    a, b, c, d, e = (write_lane("base", [StackItem(name=item)]) for item in names.values())
    votes = Votes(store.database)
    for winner in [0] * 5 + [1] * 5:
        votes.cast("hi", [a, "base"], winner=winner)
    for winner in [0] * 4 + [1] * 2 + [2] * 2 + [3] * 2:
        votes.cast("hi", [b, c, d, "base"], winner=winner)
    votes.cast("hi", [e, "other"], winner=0)  # e met none of the others
    rows = {row["name"]: row for row in results_table.table(store)["rows"]}
    # b: 4 wins over three lanes, 6 losses to one each: 12 of 18; base: 5 of 10, then 6 of 14.
    rates = {name: rows[name]["win_rate"] for name in ("a", "b", "c", "base", "e")}
    assert rates == {"a": 0.5, "b": 12 / 18, "c": 6 / 14, "base": 11 / 24, "e": 1.0}
    assert "win_rate" in rows["b"]["best"] and "win_rate" not in rows["a"]["best"]


def test_lanes_of_a_suite_that_differ_in_settings_are_told_apart(store, home):
    one = adapter(home, "one", None, None)
    lane = {"model": "base", "stack": [{"name": one}]}
    spec = {
        "name": "quiz",
        "cases": [{"prompt": "x"}],
        "lanes": [lane, lane | {"system": "Be terse."}],
    }
    suite = store.submit(spec, kind="suite").id
    answer = {"text": "y", "error": None, "reason": "end", "rouge_l": None, "json": 0.25}
    home.run(suite).mkdir()
    row = {"prompt": "x", "case": 0, "answers": [answer, answer | {"json": 0.75}]}
    (home.run(suite) / RESULTS).write_text(json.dumps(row) + "\n")
    name = write_lane("base", [StackItem(name=one)])
    assert suite_results.table(store, suite)["lanes"] == [name, f"{name} · system Be terse."]
    (row,) = results_table.table(store)["rows"]
    assert row["quiz json"] == 0.25


def test_passports_with_odd_settings_empty_no_page(store, home):
    for number, train in enumerate(("fast", {"loss": ["sft"]}, {"eval_steps": None})):
        adapter(home, f"odd-{number}", 1.0, None, spec={"train": train})
    assert len([card(one, {}) for one in library.adapters(home)]) == 3
    assert len(results_table.table(store)["rows"]) >= 3
