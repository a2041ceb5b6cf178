"""The Adapters page's JSON routes, on a library of small files and a queue without a process."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jobs import supervisor
from jobs.curves import Progress
from jobs.processes import me
from studio.home import publishing
from studio.spec import RunSpec
from tests.ui.conftest import client_of
from ui.actions import action_routes
from ui.adapters import adapter_routes


@pytest.fixture
def page(home, store, monkeypatch):
    monkeypatch.setattr(supervisor, "ensure_running", lambda home: None)
    return client_of(adapter_routes(home, store), action_routes(home, store))


def put(folder: Path, name: str, **passport: Any) -> Path:
    with publishing(folder) as temporary:
        (temporary / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
        (temporary / "adapter_model.safetensors").write_bytes(b"12345")
        values = {"name": name, "base": {"path": "starter", "fingerprint": "a-b"}, **passport}
        (temporary / "passport.json").write_text(json.dumps(values))
    return folder


def do(page: TestClient, action: str, **values: Any) -> Any:
    return page.post(f"/api/do/{action}", json=values)


def sentence(answer: Any) -> str:
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"]["text"])


def test_a_card_tells_what_a_person_sorts_by(page, home, store):
    job = store.submit(RunSpec.parse({"name": "pirate"}))
    claim = store.claims.claim("cpu", owner=me())
    assert claim is not None
    store.claims.register(claim, me())
    losses = [("eval_loss", step, value, 0.0) for step, value in ((1, 2.5), (2, 1.25), (3, 1.5))]
    store.claims.report(claim, Progress(metrics=losses, step=3, total_steps=3))
    put(home.run(job.id) / "adapter", "pirate", ended="completed", eval_loss=1.5, steps=3,
        created="2026-01-01T00:00:00+00:00", data={"path": "starter:pirate", "hash": "abc"},
        seed=7, versions={"torch": "2"}, spec={"method": {"name": "lora"}})  # fmt: skip
    found = page.get("/api/adapters").json()
    (card,) = found["adapters"]
    assert (card["id"], card["run"], card["method_title"]) == (f"run-{job.id}", job.id, "LoRA")
    assert (card["eval_loss"], card["best_eval_loss"], card["size_bytes"]) == (1.5, 1.25, 5)
    assert card["data"] == "starter:pirate" and found["trash"] == []
    assert card["is_low_rank"] and card["formats"] == ["peft", "vllm", "card", "gguf"]
    shown = do(page, "adapters.show", adapter=f"run-{job.id}").json()
    assert (shown["passport"]["seed"], shown["run"], shown["picture"]) == (7, job.id, None)


def test_rename_tag_delete_and_undo(page, home):
    put(home.adapters / "a", "a")
    put(home.adapters / "b", "b")
    card = do(page, "adapters.rename", adapter="library-a", name="Sea").json()
    assert card["id"] == "library-sea"
    assert "already" in sentence(do(page, "adapters.rename", adapter="library-b", name="sea"))
    card = do(page, "adapters.tag", adapter="library-sea", tags=["x", " y "]).json()
    assert card["tags"] == ["x", "y"]
    token = do(page, "adapters.delete", adapter="library-sea").json()["token"]
    listed = page.get("/api/adapters").json()
    assert [one["name"] for one in listed["adapters"]] == ["b"]
    assert [one["token"] for one in listed["trash"]] == [token]
    back = do(page, "adapters.undo", adapter=token).json()
    assert (back["name"], back["tags"]) == ("Sea", ["x", "y"])
    assert "nothing to restore" in sentence(do(page, "adapters.undo"))


@pytest.mark.parametrize("path", ["../..", "run-../1", "other-1", "library-A", "/etc"])
def test_an_id_is_never_a_path(page, path):
    assert sentence(do(page, "adapters.show", adapter=path))


def test_an_action_needs_a_json_body(page, home):
    put(home.adapters / "a", "a")
    answer = page.post("/api/do/adapters.delete", content='{"adapter": "library-a"}',
                       headers={"content-type": "text/plain"})  # fmt: skip
    assert answer.status_code == 422 and (home.adapters / "a").is_dir()


def test_mixing_is_queued_once_it_can_be(page, home, store):
    folder = put(home.adapters / "a", "a")
    ask = "/api/do/mix"
    assert "name" in sentence(page.post(ask, json={"stack": [{"name": "a"}]}))
    assert 'no adapter "q"' in sentence(
        page.post(ask, json={"name": "m", "stack": [{"name": "q"}]})
    )
    assert "is 99" in sentence(
        page.post(ask, json={"name": "m", "stack": [{"name": "a", "weight": 99}]})
    )
    job = page.post(ask, json={"name": "m", "stack": [{"name": "a"}]}).json()
    assert (job["kind"], job["state"]) == ("mix", "queued")
    assert store.get(job["id"]).spec["stack"] == [{"name": str(folder), "weight": 1.0}]


def test_two_merges_do_not_make_one_folder(page, home, store):
    put(home.adapters / "a", "a")
    ask, stack = "/api/do/merge", [{"name": "a"}]
    first = page.post(ask, json={"stack": stack}).json()
    words = sentence(page.post(ask, json={"stack": stack}))
    assert f'"merge a" (number {first["id"]}) is queued and will create' in words
    assert page.post(ask, json={"name": "other", "stack": stack}).status_code == 200
    store.cancel(first["id"])
    assert page.post(ask, json={"stack": stack}).json()["name"] == "merge a-2"


def test_what_a_waiting_job_needs_stays_where_it_is(page, home, store):
    put(home.adapters / "a", "a")
    job = do(page, "adapters.picture", adapter="a").json()
    assert job["name"] == "picture a"
    for action, values in (("delete", {}), ("rename", {"name": "z"})):
        words = sentence(do(page, f"adapters.{action}", adapter="library-a", **values))
        assert '"picture a" is queued and needs "a"' in words
    store.cancel(job["id"])
    assert do(page, "adapters.delete", adapter="library-a").status_code == 200


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source": "/nowhere/at/all"}, "no adapter folder"),
        ({"source": ""}, "no adapter folder"),
        ({"source": "org/name", "name": "a"}, "already an adapter"),
        ({"source": "org/name", "model": {"path": "/no/model"}}, "no model folder"),
        ({"sauce": "org/name"}, "source"),
    ],
)
def test_a_wrong_import_is_told_before_it_is_queued(page, home, store, values, words):
    put(home.adapters / "a", "a")
    assert words in sentence(do(page, "import", **values))
    assert store.list() == []


def test_an_import_keeps_its_own_name(page, store):
    job = do(page, "import", source="org/sea").json()
    assert job["name"] == "import sea" and store.get(job["id"]).spec["adapter"] == ""


def test_a_bake_off_from_the_form_queues_siblings(page, store):
    asked = {"name": "duel", "methods": "lora,ia3", "set": ["train.max_steps=3", "method.r=4"]}
    assert do(page, "bakeoff", **asked).json()["name"] == "duel"
    jobs = store.list(search="duel")[::-1]
    assert [job.kind for job in jobs] == ["train", "train", "bakeoff"]
    assert {job.sweep for job in jobs} == {"duel"}
    assert jobs[0].spec["method"]["r"] == 4 and jobs[1].spec["method"]["name"] == "ia3"
    rows = do(page, "bakeoff", show="duel").json()["rows"]
    assert [(row["method"], row["state"]) for row in rows] == [
        ("lora", "queued"),
        ("ia3", "queued"),
    ]
    assert "already" in sentence(do(page, "bakeoff", **asked))
    assert "no bake-off" in sentence(do(page, "bakeoff", show="x"))
