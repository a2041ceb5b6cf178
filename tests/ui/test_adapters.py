"""The Adapters page's JSON routes, on a library of small files and a queue without a process."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jobs import supervisor
from jobs.compare_tables import Votes
from jobs.job_table import free_name
from jobs.run_curves import Progress
from studio.adapter_stack import MAX_LANES
from studio.spec import RunSpec
from tests.jobs.conftest import begin
from tests.ui.conftest import client_of, put_adapter
from ui.queue_routes import job_row, queue_routes


@pytest.fixture
def page(home, store, monkeypatch):
    monkeypatch.setattr(supervisor, "ensure_running", lambda home: None)
    return client_of(queue_routes(home, store))


def do(page: TestClient, action: str, **values: Any) -> Any:
    return page.post(f"/api/do/{action}", json=values)


def sentence(answer: Any) -> str:
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"]["text"])


def test_a_card_tells_what_a_person_sorts_by(page, home, store):
    job = store.submit(RunSpec.parse({"name": "pirate"}))
    claim = begin(store)
    losses = [("eval_loss", step, value, 0.0) for step, value in ((1, 2.5), (2, 1.25), (3, 1.5))]
    store.claims.report(claim, Progress(metrics=losses, step=3, total_steps=3))
    put_adapter(home.run(job.id) / "adapter", "pirate", ended="completed", eval_loss=1.5, steps=3,
        created="2026-01-01T00:00:00+00:00", data={"path": "starter:pirate", "hash": "abc"},
        seed=7, versions={"torch": "2"}, spec={"method": {"name": "lora"}})  # fmt: skip
    found = page.get("/api/adapters").json()
    (card,) = found["adapters"]
    assert (card["id"], card["run"], card["method_title"]) == (f"run-{job.id}", job.id, "LoRA")
    assert (card["eval_loss"], card["best_eval_loss"], card["size_bytes"]) == (1.5, 1.25, 5)
    assert card["data"] == "starter:pirate" and found["trash"] == []
    assert found["max_lanes"] == MAX_LANES
    assert card["is_low_rank"] and card["formats"] == [
        "peft",
        "vllm",
        "gguf-adapter",
        "card",
        "gguf",
    ]
    shown = do(page, "adapters.show", adapter=f"run-{job.id}").json()
    assert (shown["passport"]["seed"], shown["run"], shown["picture"]) == (7, job.id, None)
    assert shown["blind_test"]["lanes"] == ["starter", "starter~pirate:1"]


def test_a_run_has_the_name_of_its_adapter_and_knows_that_it_was_deleted(page, home, store):
    job = store.submit(RunSpec.parse({"name": "pirate"})).id
    store.submit(RunSpec.parse({"name": "other"}))
    made = home.run(job) / "adapter"
    with store.database.writing() as db:
        db["jobs"].update(job, {"result": json.dumps({"adapter": str(made)})})
    put_adapter(made, "pirate")
    put_adapter(home.adapters / "child", "child", parents=["pirate", "pirate:0.5", "x:1"])

    assert "other" in sentence(do(page, "adapters.rename", adapter="pirate", name="other"))
    do(page, "adapters.rename", adapter="pirate", name="captain")
    assert store.get(job).name == store.get(job).spec["name"] == "captain"
    with store.database.reading() as db:  # old lanes and votes mean what they meant
        assert free_name(db, "pirate") == "pirate-2"
    cards = {one["name"]: one for one in page.get("/api/adapters").json()["adapters"]}
    assert cards["child"]["parents"] == ["captain", "captain:0.5", "x:1"]

    assert do(page, "adapters.show", adapter="captain").json()["children"] == ["child"]
    gone = do(page, "adapters.delete", adapter="captain").json()
    row = job_row(store.get(job), home)
    assert (row["adapter"], row["adapter_deleted"]) == (None, gone["token"])
    content = home.trash / gone["token"] / "adapter"
    aside = content.rename(content.with_name("aside"))  # as after 30 days
    assert job_row(store.get(job), home)["adapter_deleted"] == ""
    aside.rename(content)
    do(page, "adapters.undo", adapter="captain")
    row = job_row(store.get(job), home)
    assert (row["adapter"], row["adapter_deleted"]) == (str(made), None)


def test_votes_against_the_parent_are_the_win_rate_of_the_passport(page, home, store):
    line = [{"name": "below", "frozen": True}, {"name": "first", "frozen": False}]
    put_adapter(home.adapters / "second", "second", lineage=line)
    lanes = ("starter~first:1", "starter~second:1")  # chat adds what lies below them
    for winner, blind in ((1, True), (1, True), (None, True), (0, True), (0, False)):
        Votes(store.database).cast("q", lanes, winner=winner, blind=blind)

    test = do(page, "adapters.show", adapter="second").json()["blind_test"]

    assert (test["lanes"], test["votes"], test["rate"]) == ([*lanes], 4, 0.625)


@pytest.mark.parametrize("path", ["../..", "run-../1", "other-1", "library-A", "/etc"])
def test_an_id_is_never_a_path(page, path):
    assert sentence(do(page, "adapters.show", adapter=path))


def test_a_queued_mix_names_the_folder_of_its_adapter(page, home, store):
    folder = put_adapter(home.adapters / "a", "a")
    job = do(page, "mix", name="m", stack=[{"name": "a"}]).json()
    assert store.get(job["id"]).spec["stack"] == [{"name": str(folder), "weight": 1.0}]
