"""The results table joins passports, evaluations, suites and votes by adapter."""

import csv
import json

from jobs import results
from jobs.votes import Votes
from studio.evaluation.evaluate import REPORT
from studio.evaluation.suites import RESULTS
from tests.studio.methods.test_matrix import attached


def adapter(home, name, eval_loss, forgetting):
    folder = home.adapters / name
    folder.mkdir()
    backbone, _ = attached("lora-r=4", "llama", trained=False)
    backbone.save("a", folder, base="base")
    passport = {"name": name, "eval_loss": eval_loss, "forgetting": {"forgetting": forgetting}}
    (folder / "passport.json").write_text(json.dumps(passport))
    return str(folder)


def evaluated(store, stack, **report):
    spec = {"name": "", "model": {"path": "base"}, "data": {"path": "/x/bank.csv"}, "stack": stack}
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
    tasks = [{"task": "quiz", "metric": "acc", "best": "max", "values": [0.25, 0.5]}, prose]
    measured = store.submit({"name": "", "tasks": ["quiz"]}, kind="tasks").id
    home.run(measured).mkdir()
    report = {"lanes": ["base", "base~one:1"], "tasks": tasks}
    (home.run(measured) / REPORT).write_text(json.dumps(report))

    found = results.table(store)

    acc = {row["name"]: row.get("quiz acc") for row in found["rows"]}
    assert acc == {"one": 0.5, "o|ther": None, "base": 0.25}
    columns = {column["key"]: column for column in found["columns"]}
    assert columns["prose word_perplexity"]["best"] == "min"
    assert columns["quiz acc"]["title"] == "quiz: acc" and columns["quiz acc"]["job"] == measured
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == {"one", "o|ther", "base"}
    figures = ("eval_loss", "forgetting", "win_rate", "bank.csv accuracy", "quiz exact_match")
    assert [rows["one"].get(key) for key in figures] == [0.5, 0.1, 2.5 / 4, 0.5, None]
    assert [rows["o|ther"].get(key) for key in figures] == [0.75, None, None, None, 1.0]
    assert [rows["base"].get(key) for key in figures] == [None, None, 1.5 / 4, 0.125, None]
    assert rows["one"]["jobs"]["bank.csv accuracy"] == newest
    table = list(csv.DictReader(results.written(found, "csv").splitlines()))
    assert {line["Name"]: line["bank.csv: accuracy"] for line in table} == {
        "one": "0.5", "o|ther": "", "base": "0.125",
    }  # fmt: skip
    head, _, *body = results.written(found, "markdown").splitlines()
    assert head.startswith("| Name | Method | Base | Held-out loss |")
    assert any(line.startswith("| o\\|ther | LoRA | base | 0.75 |") for line in body)
    assert any("| one | LoRA | base | **0.5** | **0.1** | **0.625** |" in line for line in body)
