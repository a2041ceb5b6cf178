"""Every queue action has its command, prints one JSON document, and refuses in a sentence."""

import json
from typing import Any

import pytest

from jobs import supervisor
from jobs.processes import me
from jobs.run_requests import take_request
from tests.jobs.conftest import a_spec
from tests.jobs.test_plans import run_one
from ui.cli import main


@pytest.fixture(autouse=True)
def nobody_runs(monkeypatch, home):
    monkeypatch.setenv("STUDIO_HOME", str(home.path))
    monkeypatch.setattr(supervisor, "ensure_running", lambda _: 0)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    with pytest.raises(SystemExit) as ended:
        main.main([*words, "--json"])
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


def test_order_and_the_whole_queue(store, capsys):
    a, b, c = (store.submit(a_spec(name=name)).id for name in "abc")

    def order() -> list[int]:
        return [job["id"] for job in run(capsys, "queue")[1]["jobs"]]

    for words, wanted in (
        (["c", "--first"], [c, a, b]), (["c", "--last"], [a, b, c]),
        (["b", "--before", "a"], [b, a, c]), (["b", "--by", "2"], [a, c, b]),
    ):  # fmt: skip
        code, moved = run(capsys, "move", *words)
        assert (code, moved["name"]) == (0, words[0])
        assert order() == wanted
    assert run(capsys, "move", "a")[1]["error"]["text"].startswith("Give exactly one place")
    code, state = run(capsys, "queue", "--hold", "--on-error", "stop")
    assert (code, bool(state["held"]), state["on_error"]) == (0, True, "stop")
    assert run(capsys, "queue", "--release")[1]["held"] is None
    assert run(capsys, "queue", "--on-error", "explode")[0] == 2


def test_a_run_can_be_queued_with_further_tries(store, capsys):
    code, job = run(capsys, "train", "--retries", "2", "--hold")
    assert (code, job["state"], job["retries_left"]) == (0, "paused", 2)
    code, said = run(capsys, "train", "--retries", "11", "--hold")
    assert code == 2
    assert said["error"]["text"] == "retries is 11: input should be less than or equal to 10."
    assert len(store.list()) == 1


def test_hold_release_schedule_note_delete(store, capsys):
    store.submit(a_spec(name="a"))
    b = store.submit(a_spec(name="b")).id
    assert run(capsys, "hold", "b")[1]["state"] == "paused"
    assert run(capsys, "release", "b")[1]["state"] == "queued"
    planned = run(capsys, "schedule", "b", "--at", "+2h", "--when", "night", "--needs", "a")[1]
    assert planned["start_when"] == "night" and planned["start_after"] and planned["needs"] == [1]
    kept = run(capsys, "schedule", "b", "--needs", "none")[1]
    assert kept["start_when"] == "night" and kept["needs"] == []
    assert run(capsys, "schedule", "b")[1]["start_after"] is None
    again = run(capsys, "schedule", "b", "--retries", "3")[1]
    assert again["retries_left"] == 3
    assert run(capsys, "schedule", "b", "--needs", "none", "--retries", "-1")[0] == 2
    assert run(capsys, "schedule", "b", "--needs", "a", "--at", "2001-01-01 00:00")[0] == 2
    assert run(capsys, "show", "b")[1]["needs"] == []
    assert run(capsys, "schedule", "b", "--at", "2001-01-01 00:00")[1]["error"]["kind"] == "queue"
    noted = run(capsys, "note", "b", "good", "--tag", "x", "--tag", "y")[1]
    assert (noted["notes"], noted["tags"]) == ("good", ["x", "y"])
    assert run(capsys, "note", "b", "--untag", "x")[1]["tags"] == ["y"]
    store.cancel("a")
    assert run(capsys, "delete", "a")[1] == {"deleted": 1, "name": "a"}
    assert [job.id for job in store.list()] == [b]


def test_sweep_duplicate_extend_save(store, capsys):
    found = run(capsys, "sweep", "ranks", "--over", "method.r=4,8", "--over", "seed=[0, 1]",
                "--set", "train.max_steps=7")[1]  # fmt: skip
    assert found["jobs"][0]["name"] == "ranks r=4 seed=0"
    assert len(found["jobs"]) == 4 and found["jobs"][0]["sweep"] == "ranks"
    drawn = run(capsys, "sweep", "drawn", "--over", "method.r=1,2,3,4", "--random", "2",
                "--like", "1", "--retries", "2")[1]  # fmt: skip
    assert [job["retries_left"] for job in drawn["jobs"]] == [2, 2]
    assert store.get(drawn["jobs"][0]["id"]).spec["train"]["max_steps"] == 7
    million = "seed=[" + ",".join(map(str, range(2000))) + "]"
    assert "2,000 points" in run(capsys, "sweep", "big", "--over", million)[1]["error"]["text"]
    assert run(capsys, "sweep", "none", "--over", "method.r=")[0] == 2
    assert run(capsys, "sweep", "odd", "--over", "method.rr=1")[1]["error"]["kind"] == "spec"
    assert run(capsys, "hold", "--sweep", "ranks")[1]["changed"] == 4
    assert run(capsys, "release", "--sweep", "nobody")[0] == 2
    copy = run(capsys, "duplicate", "1", "--set", "method.r=2", "--name", "mine")[1]
    assert copy["name"] == "mine" and store.get("mine").spec["method"]["r"] == 2
    assert run(capsys, "extend", "1", "--steps", "5")[1]["error"]["kind"] == "queue"
    claim = store.claims.claim("cpu", owner=me())
    store.claims.register(claim, me())
    assert run(capsys, "save", str(claim.job))[1]["state"] == "running"
    assert run(capsys, "sample", str(claim.job))[0] == 0
    assert [take_request(store, claim) for _ in range(2)] == ["save", "sample"]


def test_a_cancel_that_drops_and_a_webhook(store, capsys):
    store.submit(a_spec(name="a"))
    assert run(capsys, "cancel", "a", "--drop")[1]["state"] == "cancelled"
    assert store.get("a").drop_checkpoints == 1
    assert run(capsys, "webhook")[1] == {"webhook": None, "kept": ""}
    shown = {"webhook": "https://example.org/…", "kept": "file"}
    assert run(capsys, "webhook", "https://example.org/a?k=s3cret")[1] == shown
    assert run(capsys, "webhook", "--off")[1] == {"webhook": None, "kept": ""}
    assert run(capsys, "webhook", "nonsense")[0] == 2
    store.submit(a_spec(name="b"))
    run_one(store)
    assert run(capsys, "cancel", "b")[0] == 2
