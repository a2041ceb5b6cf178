"""Order, holds, longer runs, dropped checkpoints, the webhook: what a person asks of the queue."""

import calendar
import json
import time

import pytest

from jobs import ended_jobs, queue_settings, sweeps, webhook
from jobs.actions import queue as queue_actions
from jobs.copy_and_extend_runs import copied_spec, duplicate, extend, settled_spec, then
from jobs.job_queue import JobStore
from jobs.queue_settings import Start, parse_time, schedule
from studio import offline
from studio.errors import QueueError
from tests.jobs.conftest import a_spec, begin, curve, run_one, supervising, until
from tests.jobs.fake_runner import fake_loss
from tests.jobs.test_disk_usage import checkpoint
from tests.serving import Handler, serving


def order(store: JobStore) -> list[int]:
    return [job.id for job in store.queue()]


def test_a_job_moves_by_places_and_stops_at_the_ends(store):
    a, b, c = (store.submit(a_spec()).id for _ in range(3))
    for job, places, wanted in (
        (c, -1, [a, c, b]), (c, -5, [c, a, b]), (c, 1, [a, c, b]), (a, 9, [c, b, a]),
    ):  # fmt: skip
        store.shift(job, places)
        assert order(store) == wanted
    run_one(store)
    with pytest.raises(QueueError, match="only waiting jobs"):
        store.shift(c, 1)


def test_a_held_queue_starts_nothing_and_goes_on_when_released(store):
    job = store.submit(a_spec(steps=2)).id
    queue_settings.hold_queue(store)
    with pytest.raises(QueueError, match="already held"):
        queue_settings.hold_queue(store)
    with supervising(store.home):
        until(store.supervisor)
        time.sleep(0.3)
        assert store.get(job).state == "queued"
        queue_settings.release_queue(store)
        until(lambda: store.get(job).state == "succeeded")
    with pytest.raises(QueueError, match="not held"):
        queue_settings.release_queue(store)


def test_the_queue_stops_at_an_error_when_asked(store):
    store.submit(a_spec(name="old"))
    run_one(store, "failed")
    queue_settings.on_error(store, "stop")
    ended_jobs.follow_up(store)
    assert queue_settings.read(store, "held") is None, "what failed before was seen"
    store.submit(a_spec(name="new"))
    run_one(store, "failed")
    ended_jobs.follow_up(store)
    assert queue_settings.read(store, "held") == '"new" failed, and the queue stops at an error.'
    queue_settings.release_queue(store)
    ended_jobs.follow_up(store)
    assert queue_settings.read(store, "held") is None


def test_a_finished_run_goes_on_where_it_ended(store):
    first = store.submit(a_spec(steps=10, save=5, seed=2)).id
    with pytest.raises(QueueError, match="Resume it instead"):
        extend(store, first, steps=5)
    with supervising(store.home):
        until(lambda: store.get(first).state == "succeeded")
        for wrong in ({}, {"steps": 5, "epochs": 1}, {"steps": -1}):
            with pytest.raises(QueueError, match="one of them and more than 0"):
                extend(store, first, **wrong)
        with pytest.raises(QueueError, match="counts steps"):
            extend(store, first, epochs=1)
        longer = extend(store, first, steps=5)
        assert (longer.parent, longer.step) == (first, 10)
        assert longer.result["questions"] == [{"prompt": "say", "wanted": "word", "trained": False}]
        until(lambda: store.get(longer.id).state == "succeeded")
    job = store.get(longer.id)
    assert (job.step, job.total_steps) == (15, 15)
    assert store.attempts(job.id)[0]["from_step"] == 10
    series = curve(store, job.id)
    assert series == {"x": list(range(1, 16)), "y": [fake_loss(2, n) for n in range(1, 16)]}
    with store.database.reading() as db:
        seqs = db.conn.execute("SELECT seq FROM metrics").fetchall()
    assert len(seqs) == len(set(seqs)), "a cursor of the page counts every point once"


def test_a_run_keeps_the_learning_rate_that_auto_became(store):
    new = store.submit(a_spec())
    assert settled_spec(store, new) == new.spec, "not started: auto is still open"
    with store.database.writing() as db:
        db["jobs"].update(new.id, {"result": '{"learning_rate": 0.04}'})
    assert settled_spec(store, store.get(new.id))["train"]["learning_rate"] == 0.04
    assert duplicate(store, new.id, {}).spec["train"]["learning_rate"] == 0.04
    for change in ({"method.name": "full"}, {"train.optim": "lion"}):
        assert duplicate(store, new.id, change).spec["train"]["learning_rate"] == "auto"
    assert (
        copied_spec(store, store.get(new.id), {"train.loss": "dpo"}).train.learning_rate == "auto"
    )
    old = store.submit(a_spec())  # of an earlier version, which kept the curve alone
    with store.database.writing() as db:
        for step, rate in enumerate((0.01, 0.02, 0.015)):
            db["metrics"].insert(
                {"job": old.id, "name": "learning_rate", "step": step, "value": rate, "time": 0,
                 "seq": step}
            )  # fmt: skip
    assert settled_spec(store, old)["train"]["learning_rate"] == 0.02


def test_a_next_stage_trains_an_adapter_that_there_will_be(store):
    first = store.submit(a_spec())
    with pytest.raises(QueueError, match="keeps its method"):
        then(store, first.id, "starter:pirate", loss="sft", mode="continue",
             assignments={"method.r": 3})  # fmt: skip
    whole = store.submit(a_spec().with_values({"method.name": "full"}))
    with pytest.raises(QueueError, match="leaves no adapter to start from"):
        then(store, whole.id, "starter:pirate", loss="sft", mode="continue", assignments={})


def test_a_longer_run_gets_the_best_checkpoint_beside_the_newest(store):
    store.submit(a_spec(name="first"))
    first = run_one(store).job
    for step in (1, 2, 3):
        checkpoint(store, first, step, best=2)
    longer = extend(store, "first", steps=5)
    folders = (store.home.run(longer.id) / "checkpoints").iterdir()
    assert sorted(folder.name for folder in folders) == ["step-00000002", "step-00000003"]
    assert (longer.name, longer.step) == ("first-2", 3)
    store.cancel(longer.id)
    store.submit(a_spec(name="bare"))
    run_one(store)
    with pytest.raises(QueueError, match="has no checkpoint"):
        extend(store, "bare", steps=5)
    assert len(store.list()) == 3, "nothing was queued"


def test_a_cancel_keeps_the_checkpoint_or_drops_it(store):
    for drop in (False, True):
        job = store.submit(a_spec(steps=500)).id
        folder = store.home.run(job) / "checkpoints"
        with supervising(store.home):
            until(lambda job=job: store.get(job).step > 1)
            store.cancel(job, drop=drop)
            until(lambda job=job: store.get(job).state == "cancelled")
            until(lambda folder=folder, drop=drop: folder.is_dir() is not drop)
        if drop:
            with pytest.raises(QueueError, match="no whole checkpoint"):
                store.resume(job)
        else:
            store.resume(job)
            store.cancel(job)


def test_save_and_sample_now_reach_the_run_and_come_back(store):
    job = store.submit(a_spec(steps=2000, save=1000)).id
    with supervising(store.home):
        until(lambda: store.get(job).step > 1)
        store.request(job, "save")
        store.request(job, "sample")
        until(lambda: store.samples(job) and store.checkpoints(job))
        store.cancel(job)
        until(lambda: store.get(job).state == "cancelled")


def test_a_moment_can_be_a_distance_a_time_or_a_date():
    now = time.mktime((2027, 1, 31, 12, 0, 0, 0, 0, -1))
    for text, later in (
        ("+2h", 7200), ("+15m", 900), ("+1d", 86_400), ("12:30", 1800), ("12:00", 86_400),
        ("2027-01-31 13:00", 3600),
    ):  # fmt: skip
        assert parse_time(text, now=now) == now + later
    there = "2027-01-30T18:30:00.000Z"  # as a page of another time zone sends it
    assert parse_time(there, now=now) == calendar.timegm((2027, 1, 30, 18, 30, 0))
    for wrong in ("", "soon", "25:00", "+2", "2027-13-01", "9" * 50):
        with pytest.raises(QueueError, match="Cannot parse"):
            parse_time(wrong, now=now)


@pytest.fixture
def listener():
    heard: list[dict[str, object]] = []

    class Hook(Handler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

    with serving(Hook) as server:
        yield f"http://127.0.0.1:{server.server_port}/hook?key=s3cret", heard


def test_the_webhook_hears_every_end_once_and_nothing_from_before(store, listener):
    url, heard = listener
    store.submit(a_spec(name="before"))
    run_one(store)
    webhook.choose(store, url)
    store.submit(a_spec(name="good", steps=2))
    store.submit(a_spec(name="later"))
    store.cancel("later")
    with supervising(store.home):
        until(lambda: len(heard) == 2)
        time.sleep(0.3)
    assert [(end["name"], end["state"]) for end in heard] == [
        ("later", "cancelled"), ("good", "succeeded"),
    ]  # fmt: skip


def test_a_webhook_that_does_not_answer_is_given_up_and_holds_nothing(store, monkeypatch):
    monkeypatch.setattr(webhook, "WAIT_SECONDS", 0.0)
    webhook.choose(store, "http://127.0.0.1:9/nobody")
    assert webhook.send("http://127.0.0.1:9/nobody", {}) is False
    for wrong in ("ftp://x/y", "example.org", "http://", "http://[bad"):
        with pytest.raises(QueueError, match="webhook is an address"):
            webhook.choose(store, wrong)


def test_a_message_that_is_not_accepted_is_sent_again_before_those_after_it(store, monkeypatch):
    answers, heard = [True, False, False, True, True], []

    def send(url: str, end: dict[str, object]) -> bool:
        heard.append((end["name"], url[-1]))
        return answers[len(heard) - 1]

    def look() -> list[tuple[object, str]]:
        """Look once, and return what was sent, with the end of the address."""
        before = len(heard)
        hook.look()
        if hook._thread:
            hook._thread.join()
        return heard[before:]

    monkeypatch.setattr(webhook, "send", send)
    webhook.choose(store, "http://127.0.0.1:9/1")
    for name in "abc":
        store.submit(a_spec(name=name))
        run_one(store)
    hook = webhook.Webhook(store)
    assert look() == [("a", "1"), ("b", "1")]
    assert look() == [], "it rests for a minute"
    monkeypatch.setattr(webhook, "AGAIN_SECONDS", 0.0)
    hook._rests_until = 0.0
    assert look() == [("b", "1")]
    assert look() == [("b", "1"), ("c", "1")]

    answers = [False] * 99
    monkeypatch.setattr(webhook, "AGAIN_SECONDS", 60.0)
    store.submit(a_spec(name="d"))
    run_one(store)
    assert look() == [("d", "1")]
    webhook.choose(store, "http://127.0.0.1:9/2")
    store.submit(a_spec(name="e"))
    run_one(store)
    assert look() == [("e", "2")], "another address does not wait for what one refused"
    hook._rests_until = 0.0
    monkeypatch.setattr(webhook, "AGE_SECONDS", -1.0)
    assert look() == [], "too old"
    assert queue_settings.read(store, "ends_told") == queue_settings.last_event(store)


def test_the_webhook_tells_of_no_retry_but_of_what_waits_for_the_user(store, monkeypatch):
    heard = []
    monkeypatch.setattr(webhook, "send", lambda _, end: heard.append(end) or True)
    webhook.choose(store, "http://127.0.0.1:9/1")
    hook = webhook.Webhook(store)

    def told() -> list[tuple[str, str]]:
        hook.look()
        hook._thread and hook._thread.join()
        found = [(end["state"], end["error_kind"]) for end in heard]
        heard.clear()
        return found

    job = store.submit(a_spec(), retries=1).id
    run_one(store, "failed", "network")
    assert told() == [], "it is about to be tried again"
    ended_jobs.follow_up(store)
    assert told() == []
    schedule(store, job, Start())
    run_one(store, "failed", "network")
    assert told() == [("failed", "network")]
    store.submit(a_spec())
    store.claims.lost(begin(store), why="gone", newest_step=0, limit=2)
    assert told() == [], "it goes on by itself"
    store.claims.lost(begin(store), why="gone", newest_step=0, limit=2)
    assert told() == [("interrupted", "interrupted")] and told() == []


@pytest.mark.parametrize("error", [
    ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."),
    ValueError("Unknown scheme for proxy URL"), RuntimeError("secret"),
])  # fmt: skip
def test_a_proxy_that_cannot_be_used_does_not_end_the_webhook(store, monkeypatch, caplog, error):
    def post(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(webhook, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr("httpx.post", post)
    assert webhook.send("http://127.0.0.1:9/hook", {}) is False
    assert type(error).__name__ in caplog.text and str(error) not in caplog.text


def test_a_run_of_a_group_that_refuses_does_not_stop_the_others(store, monkeypatch):
    jobs = store.submit_many([a_spec(name=name) for name in "abcd"], sweep="group")
    hold = store.pause

    def pause(job: int) -> None:
        if job == jobs[1].id:
            raise QueueError("no checkpoint")
        hold(job)

    monkeypatch.setattr(store, "pause", pause)
    answer = sweeps.for_sweep(store, "group", "hold")
    assert answer == {"sweep": "group", "changed": 3, "refused": ["no checkpoint"]}
    with pytest.raises(QueueError, match="no checkpoint"):
        sweeps.for_sweep(store, "group", "hold")


def test_a_job_that_is_claimed_while_it_is_moved_is_refused_in_a_sentence(store, monkeypatch):
    job = store.submit(a_spec(name="mine")).id
    get = store.get

    def claimed_meanwhile(job: int) -> object:
        found = get(job)
        if found.state == "queued":
            begin(store)
        return found

    monkeypatch.setattr(store, "get", claimed_meanwhile)
    with pytest.raises(QueueError, match="is running; only waiting jobs"):
        store.shift(job, 1)
    monkeypatch.undo()
    store.claims.finish(store.active_claims()[0], "succeeded")
    other = store.submit(a_spec()).id
    monkeypatch.setattr(store, "queue", list)  # as if it had been claimed just after the move
    assert queue_actions.move(store, other, last=True)["place"] == 0


def test_offline_nobody_outside_is_told(store, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("httpx.post", lambda *_, **__: pytest.fail("a request"))
    assert webhook.send("https://example.org/hook", {}) is False
    for name in ("HF_HUB_OFFLINE", offline._SWITCHED):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(offline, "_GIVEN", "")
    monkeypatch.setattr(offline, "_applied", None)
    (store.home.state / "offline").touch()  # while the supervisor runs
    webhook.Webhook(store)._send("https://example.org/hook", [{"event": 1, "time": time.time()}])
