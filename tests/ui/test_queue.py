"""The page's planning and storage routes: what the command line can, the page can."""

import os
import time

import pytest

from jobs import supervisor
from studio.spec import RunSpec
from tests.ui.conftest import client_of
from ui.actions import action_routes
from ui.live import routes


@pytest.fixture
def page(home, store, monkeypatch):
    monkeypatch.setattr(supervisor, "ensure_running", lambda _: 0)
    return client_of(routes(home, store), action_routes(home, store))


def test_order_by_drag_and_by_keys(page, store):
    a, b, c = (store.submit(RunSpec()).id for _ in range(3))
    for body, wanted in (
        ({"before": a}, [c, a, b]), ({"by": 1}, [a, c, b]), ({"last": True}, [a, b, c]),
    ):  # fmt: skip
        assert page.post("/api/do/move", json={"job": c, **body}).status_code == 200
        assert [job.id for job in store.queue()] == wanted
    store.cancel(b)
    refused = page.post("/api/do/move", json={"job": b, "by": -1})
    assert (refused.status_code, refused.json()["error"]["kind"]) == (400, "queue")
    assert page.post("/api/do/move", json={"job": 99, "by": -1}).status_code == 400


def test_schedule_note_and_drop(page, store):
    a, b = (store.submit(RunSpec()).id for _ in range(2))
    body = {"at": "+1h", "when": "idle", "needs": [a], "retries": 2}
    planned = page.post("/api/do/schedule", json={"job": b, **body}).json()
    assert planned["start_after"] == pytest.approx(time.time() + 3600, abs=60)
    assert (planned["start_when"], planned["needs"]) == ("idle", [a])
    assert planned["retries_left"] == 2
    wrongs = ({"at": "soon"}, {"at": "2001-01-01"}, {"needs": [99]}, {"needs": [b]},
              {"retries": 11})  # fmt: skip
    for wrong in wrongs:
        assert page.post("/api/do/schedule", json={"job": b, **wrong}).status_code == 400
        assert store.get(b).needs == [a]  # nothing changed
    words = {"text": "<b>x</b>", "tags": ["a", "a", " "]}
    noted = page.post("/api/do/note", json={"job": a, **words}).json()
    assert (noted["notes"], noted["tags"]) == ("<b>x</b>", ["a"])
    assert page.post("/api/do/note", json={"job": a, "text": "x" * 20_000}).status_code == 400
    assert page.post("/api/do/cancel", json={"job": a, "drop": True}).json()["state"] == "cancelled"
    assert store.get(a).drop_checkpoints == 1
    assert page.post("/api/do/save", json={"job": b}).status_code == 400


def test_a_sweep_from_a_run(page, store):
    job = store.submit(RunSpec(name="base")).id
    body = {"like": job, "name": "ranks", "over": ["method.r=4,8", "seed=0,1"]}
    made = page.post("/api/do/sweep", json=body).json()
    assert len(made["jobs"]) == 4
    assert store.get(made["jobs"][-1]["id"]).spec["method"]["r"] == 8
    for wrong in (
        body, body | {"name": "x", "over": []}, body | {"name": "x", "over": ["method.rr=1"]},
        body | {"name": "x", "over": ["method.r"]}, body | {"name": " "},
        body | {"name": "x", "over": [f"seed={','.join(map(str, range(1500)))}"]},
    ):  # fmt: skip
        refused = page.post("/api/do/sweep", json=wrong)
        assert refused.status_code == 400 and refused.json()["error"]["text"]
    assert len(store.list()) == 5
    answer = page.post("/api/do/cancel", json={"sweep": "ranks"}).json()
    assert answer == {"sweep": "ranks", "changed": 4}


def test_a_sweep_from_the_form(page, store):
    form = {"set": ["method.r=4", "name=mine", "train.max_steps=3"], "name": "rates"}
    made = page.post("/api/do/sweep", json={**form, "over": ["train.learning_rate=0.001,0.002"]})

    jobs = [store.get(job["id"]) for job in made.json()["jobs"]]
    assert [job.name for job in jobs] == ["rates learning_rate=0.001", "rates learning_rate=0.002"]
    assert {job.spec["method"]["r"] for job in jobs} == {4} and {j.sweep for j in jobs} == {"rates"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"over": ["seed=" + ",".join(map(str, range(100))),
            "method.r=" + ",".join(map(str, range(1, 101))),
            "train.max_steps=" + ",".join(map(str, range(1, 101)))]}, "1,000,000 points; 1,000 is"),
        ({"over": ["method.rank=1,2"]}, "method.r"),
        ({"over": ["method.r=0,4"]}, "method.r"),
        ({"over": []}, "needs values"),
        ({"over": ["method.r="]}, "has no values"),
        ({"over": ["method.r=4"], "name": " "}, "needs a name"),
        ({"over": ["method.r=4,4"]}, "twice"),
        ({"over": ["seed=1"], "set": ["method.nothing=1"]}, "nothing"),
        ({"over": ["seed=1"], "like": 99}, "no job number 99"),
    ],
)  # fmt: skip
def test_a_senseless_sweep_is_a_sentence_and_queues_nothing(page, store, body, words):
    refused = page.post("/api/do/sweep", json={"name": "x", "set": [], **body})

    assert refused.status_code == 400, refused.text
    assert words in refused.json()["error"]["text"]
    assert store.list() == []


def test_the_whole_queue_is_held_and_its_state_reaches_every_tab(page, store):
    store.submit(RunSpec())
    first = page.get("/api/live").json()["jobs"]
    assert first["queue"] == {"held": None, "on_error": "continue", "short": None}
    page.post("/api/do/queue", json={"hold": True, "on_error": "stop"})
    news = page.get("/api/live", params={"jobs": first["digest"]}).json()["jobs"]
    assert news["queue"]["held"] and news["items"] == []
    assert page.post("/api/do/queue", json={"hold": True}).status_code == 400
    url = "https://example.org/x?key=s3cret"
    told = page.post("/api/do/webhook", json={"url": url})
    assert told.json()["webhook"] == "https://example.org/…"
    assert (
        "s3cret"
        not in told.text + page.post("/api/do/webhook", json={}).text + page.get("/api/live").text
    )
    assert page.post("/api/do/webhook", json={"off": True}).json()["webhook"] is None


def test_the_front_of_a_long_queue_is_shown(page, store):
    first = store.submit(RunSpec(name="first")).id
    store.submit_many({"name": f"job {n}"} for n in range(600))
    ids = {row["id"] for row in page.get("/api/live").json()["jobs"]["items"]}
    assert first in ids and len(ids) >= 600


def test_storage_shows_previews_cleans_and_backs_up(page, store, tmp_path):
    gone = store.home.run(77)
    gone.mkdir()
    (gone / "log.txt").write_text("x" * 500)

    os.utime(gone, (1, 1))
    assert {part["name"] for part in page.post("/api/do/storage", json={}).json()["parts"]} >= {
        "Models"
    }
    preview = page.post("/api/do/clean", json={}).json()
    assert preview["bytes"] == 500 and gone.exists()
    rules = {"keep_checkpoints": 2, "keep_days": 9}
    assert page.post("/api/do/clean", json=rules).json()["bytes"] == 500
    assert page.post("/api/do/clean", json={"yes": True}).json()["removed"] is True
    assert not gone.exists()
    assert page.post("/api/do/storage", json={}).json()["rules"] == rules
    target = tmp_path / "b.tar"
    assert page.post("/api/do/backup", json={"file": str(target)}).status_code == 200
    for wrong in ("relative.tar", "/tmp/x.zip", str(target), str(store.home.path / "x.tar"), ""):
        assert page.post("/api/do/backup", json={"file": wrong}).status_code == 400
