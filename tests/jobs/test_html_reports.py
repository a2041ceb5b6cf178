"""Reports are whole in themselves: one file, every text escaped, nothing loaded, no own folder."""

import json
import re
from pathlib import Path

import pytest

from jobs import bakeoff
from jobs.actions.queue import show
from jobs.compare_tables import Conversations, Votes
from jobs.html_reports import report
from jobs.job_queue import JobStore
from jobs.run_curves import Progress
from studio.adapter_stack import StackItem, write_lane
from studio.data.xray import first_xrays
from studio.errors import QueueError
from studio.evaluation.bakeoff_measurements import REPORT
from studio.evaluation.html_and_csv_exports import votes_as
from studio.evaluation.suites import RESULTS
from studio.home import open_home, publishing
from studio.spec import RunSpec
from tests.jobs.conftest import begin
from ui import language

EVIL = "<script>hit()</script>"
CERTIFICATE = {
    "max_error": 1e-5, "mean_error": 1e-6, "tolerance": 1e-4, "tokens_changed": 0,
    "tokens_compared": 105, "base_precision": "float32", "merged_precision": "float32",
    "merged": ["one"], "left": [],
}  # fmt: skip
OUTSIDE = ("<script", "src=", "href=", "url(", "@import", "http://", "https://")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = JobStore(open_home(tmp_path_factory.mktemp("report") / "home"))
    for number, name in enumerate(("one", "two"), 1):
        store.submit(a_run(name, "starter:pirate", number))
        claim = begin(store)
        store.claims.report(claim, Progress(
            metrics=[("loss", step, 4.0 / step, 0.0) for step in range(1, 6)],
            samples=[(0, "Who?", "nobody"), (5, "Who?", f"{EVIL} {name}")], step=5, total_steps=5,
        ))  # fmt: skip
        adapter = store.home.run(claim.job) / "adapter"
        adapter.mkdir(parents=True)
        store.claims.finish(claim, "succeeded", result={
            "adapter": str(adapter), "first_loss": 4.0, "last_loss": 0.8, "eval_loss": number,
            "questions": [{"prompt": "Who?", "wanted": f"I, {name}", "trained": False},
                          {"prompt": "Why?", "wanted": "Because", "trained": True}],
        })  # fmt: skip
    yield store
    store.close()


def a_run(name: str, data: str, steps: int) -> RunSpec:
    return RunSpec().with_values(
        {"name": name, "data.path": data, "train.max_steps": steps, "train.device": "cpu"}
    )


def alone(html: str) -> None:
    """Assert that a page is one file without scripts and addresses."""
    assert html.startswith("<!doctype html>")
    for word in OUTSIDE:
        assert word not in html, word
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html


def test_a_run_shows_figures_curves_samples_rows_and_how_to_repeat_it(store):
    name, html = report(store, ["one"])
    alone(html)
    assert name == "one.html"
    assert "Training loss" in html and "<polyline" in html
    assert "&lt;script&gt;hit()&lt;/script&gt; one" in html
    assert 'class="trained"' in html and html.count("<h3>Row ") == 3
    assert "studio train --model starter --data starter:pirate" in html
    assert "train.max_steps</td><td>1</td>" in html


def test_the_last_answers_stand_beside_those_that_their_rows_want(store):
    answers = show(store, "1")["answers"]
    assert answers == [{
        "step": 5, "answer": f"{EVIL} one", "prompt": "Who?", "wanted": "I, one", "trained": False,
    }]  # fmt: skip
    _, html = report(store, ["1"])
    assert "I, one" in html and "Because" not in html


def test_runs_stand_beside_each_other_with_what_differs(store):
    _, html = report(store, ["one", "two"])
    alone(html)
    assert "one against two" in html
    assert "<td>train.max_steps</td><td>1</td><td>2</td>" in html
    assert "data.path" not in html  # the same in both


def test_votes_and_a_merge_of_its_adapter_are_in_the_report(store, tmp_path):
    lanes = ["starter", "starter~1@5:1"]
    Votes(store.database).cast(EVIL, lanes, winner=1, blind=True, answers=["a", "b"])
    out = tmp_path / "merged"
    with publishing(out) as folder:
        (folder / "certificate.json").write_text(json.dumps(CERTIFICATE))
    values = {"name": "fold it", "model": {"path": "starter"}, "out": str(out),
              "stack": [{"name": str(store.home.run(1) / "adapter"), "weight": 1}]}  # fmt: skip
    (store.home.run(1) / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    store.submit(values, kind="merge")
    claim = begin(store)
    store.claims.finish(claim, "succeeded", result={"adapter": str(out)})
    _, html = report(store, ["1"])
    alone(html)
    assert "<td>starter + 1@5</td><td>yes</td>" in html
    assert "Certificate of “fold it”" in html and "1e-05 (allowed 0.0001)" in html
    assert "Largest logit error" in report(store, ["fold it"])[1]


def test_a_conversation_shows_answers_verdicts_and_settings(store):
    talks = Conversations(store.database)
    lane, shared = {"model": "starter", "stack": []}, {"system": "", "sampling": {"seed": 3}}
    own = {"system": "Be brief.", "sampling": {"seed": 3, "temperature": 0.5}}
    settings = {"shared": shared, "blind": True, "alone": False}
    talks.save("talk", lanes=[lane, lane | {"own": own}], settings=settings, title=EVIL)
    talks.save_turn("talk", 0, prompt="Who?", answers=[{"lane": "starter", "text": EVIL,
                                                        "verdict": "won"}])  # fmt: skip
    name, html = report(store, [], "talk")
    alone(html)
    assert name == "conversation-talk.html"
    assert "<strong>won</strong>" in html
    cells = re.findall("<t[dh][^>]*>(.*?)</t[dh]>", html)
    assert cells == ["Lane", "System prompt", "Temperature", "Seed", "starter", "–", "–", "3",
                     "starter", "Be brief.", "0.5", "3"]  # fmt: skip
    assert re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", html) == [
        ("Blind", "yes"), ("Each prompt alone", "no")
    ]  # fmt: skip


def test_a_bakeoff_shows_what_was_measured_of_each_method(store):
    runs = bakeoff.submit(store, RunSpec(), ["lora", "bitfit"], name="duel", prompts=["Who?"])
    for loss in (1.5, 1.25):
        store.claims.finish(begin(store), "succeeded", result={"eval_loss": loss})
    folder = store.home.run(runs[2].id)
    folder.mkdir(parents=True, exist_ok=True)
    measured = {"memory_bytes": 3 * 2**20, "size_bytes": 2048, "seconds_per_step": 0.25,
                "live_ratio": 1.5, "merged_ratio": 1.0, "answers": [EVIL]}  # fmt: skip
    rows = [{"run": run.id, **measured} for run in runs[:2]]
    (folder / REPORT).write_text(json.dumps({"rows": rows}))
    name, html = report(store, ["duel table"])
    alone(html)
    assert name == "duel table.html"
    assert html.index("<td>BitFit") < html.index("<td>LoRA"), "the lower held-out loss first"
    assert html.count("<td>3.00 MiB</td>") == 2 and ">Memory<" in html
    assert "&lt;script&gt;hit()&lt;/script&gt;" in html


@pytest.mark.parametrize(
    "changes", [{"model.path": "org/model"}, {"data.path": "org/rows"},
                {"model.path": "/nope/model"}, {"data.path": "/nope/rows.jsonl"}],
)  # fmt: skip
def test_a_report_downloads_nothing(store, monkeypatch, changes):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a report may not ask the hub")

    monkeypatch.setattr("studio.models.find_model.look_up", refuse)
    monkeypatch.setattr("studio.data.hub_datasets.from_hub", refuse)
    name = f"away {len(store.list())}"
    store.submit(a_run(name, "starter:pirate", 1).with_values(changes))
    assert "The dataset or model is not here any more." in report(store, [name])[1]


def test_rows_of_a_run_with_rewards_end_with_their_questions(store, tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "What is two and two?", "answer": "4"}\n' * 3)
    spec = a_run("rewarded", str(file), 1).with_values(
        {"train.loss": "grpo", "train.rewards": "json"}
    )
    rows = first_xrays(spec, store.home, 2)
    assert len(rows) == 2 and not any(row.problem for row in rows)


def test_the_own_folder_is_a_tilde(store, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/jane"))
    store.submit(a_run("away", "/home/jane/secret/rows.jsonl", 1))
    store.submit(a_run("near", "/home/janet/rows.jsonl", 1))
    _, html = report(store, ["away", "near"])
    assert "~/secret/rows.jsonl" in html and "/home/jane/" not in html
    assert "/home/janet/rows.jsonl" in html


def test_no_kind_of_report_holds_a_path_of_the_own_folder(store, monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: store.home.path.parent)
    adapter = store.home.run(1) / "adapter"
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    lane = {"model": "starter", "stack": [{"name": str(adapter)}]}
    job = store.submit({"name": "quiz", "lanes": [lane], "cases": [{"prompt": "q"}]}, kind="suite")
    store.home.run(job.id).mkdir()
    answer = {"text": f"see {adapter}", "error": None, "reason": "stop", "exact_match": None,
              "rouge_l": None}  # fmt: skip
    row = {"case": 0, "prompt": "q", "expected": None, "pattern": None, "answers": [answer]}
    (store.home.run(job.id) / RESULTS).write_text(json.dumps(row) + "\n")
    Conversations(store.database).save("paths", lanes=[lane], settings={}, title=str(adapter))
    kept = Votes(store.database)
    kept.cast("Who?", ["starter", write_lane("starter", [StackItem(name=str(adapter))])],
              winner=1, answers=["a", str(adapter)])  # fmt: skip
    made = [report(store, [name])[1] for name in ("one", "quiz")]
    made += [report(store, ["one", "two"])[1], report(store, [], "paths")[1]]
    made.append(votes_as("html", kept.list(), kept.board()))
    for html in made:
        alone(html)
        assert str(store.home.path.parent) not in html
    assert "<polyline" in made[1] and "run 1" in made[1], "the legend of the lane's curve"


def test_a_report_is_in_the_language_of_the_page_and_words_of_users_stay(store):
    spec = a_run("Rows", "starter:pirate", 1).with_values({"train.device": "cuda:7"})
    job = store.submit(spec)
    claim = begin(store, "cuda:7", wanted=["cuda:7"])
    told = Progress(metrics=[("loss", 1, 4.0, 0.0)], samples=[(1, "Runs", "Models")], step=1)
    store.claims.report(claim, told)
    store.claims.finish(claim, "succeeded", result={
        "last_loss": 4.0, "tokens_shared": 0.25, "sources": [
            {"name": "Train", "rows": 9, "held_out": 1, "eval_loss": 2.5}],
        "forgetting": {"loss_before": 1.0, "forgetting": 0.5, "changed": 1, "prompts": 2,
                       "domains": {"prose": [1.0, 2.0]}},
    })  # fmt: skip
    lane = {"model": "starter", "stack": []}
    talks = Conversations(store.database)
    talks.save("words", lanes=[lane], settings={}, title="Rows")
    talks.save_turn("words", 0, prompt="Runs", answers=[
        {"lane": "starter", "text": "Models", "verdict": "lost"}])  # fmt: skip
    token = language.current.set("zh_CN")
    try:
        pages = [report(store, [str(job.id)])[1], report(store, ["one", str(job.id)])[1],
                 report(store, [], "words")[1]]  # fmt: skip
    finally:
        language.current.reset(token)
    for html in pages:
        alone(html)
        assert '<html lang="zh-CN">' in html and "Rows" in html
        body = re.sub(r"(?s)<style>.*?</style>|<pre>.*?</pre>|<p class=.tokens.*?</p>", "", html)
        texts = [text.strip() for text in re.split(r"<[^>]*>", body)]
        foreign = [
            text
            for text in texts
            if re.search(r"[A-Za-z]{3,} [a-z]{2,}", text)
            and not re.search(r"[\u4e00-\u9fff]", text)
            and EVIL[1:7] not in text
        ]
        assert foreign == []
    assert "按" in pages[0] and ">Train</td><td>9</td><td>1</td><td>2.5</td>" in pages[0]
    assert "<h3>Runs</h3>" in pages[0] and "<p>Models</p>" in pages[0]
    assert '<html lang="en">' in report(store, ["one"])[1]


@pytest.mark.parametrize(
    ("names", "words"),
    [([], "Name a run"), (["99"], "no job number"), (["one", "no run"], "compare")],
)  # fmt: skip
def test_what_cannot_be_reported_is_a_sentence(store, names, words):
    if "no run" in names:
        store.submit({"name": "no run"}, kind="merge")
    with pytest.raises(QueueError, match=words):
        report(store, names)
