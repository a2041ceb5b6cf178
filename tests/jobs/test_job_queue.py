"""The queue as a person uses it."""

import contextlib
import json
import sqlite3
import threading
from pathlib import Path

import pytest

from jobs import ended_jobs, job_queue, job_table, run_folder
from jobs.run_curves import Progress
from studio.errors import DiskFull, QueueError
from studio.home import publishing
from studio.spec import RunSpec
from tests.jobs.conftest import a_spec, begin, run_one, take


def test_a_submitted_spec_comes_back_whole(store):
    spec = a_spec(name="mine", seed=7)
    job = store.submit(spec)
    assert job.state == "queued"
    assert job.spec == spec.model_dump(mode="json")
    assert store.get("mine") == job
    with pytest.raises(QueueError, match="already a job called"):
        store.submit(a_spec(name="mine"))
    assert len(store.list()) == 1


def test_what_no_job_or_its_state_allows_is_one_sentence(store):
    held, cancelled = store.submit(a_spec()).id, store.submit(a_spec()).id
    assert store.pause(held).state == "paused"
    assert store.cancel(cancelled).state == "cancelled"
    assert take(store, "cpu") is None
    store.submit(a_spec())
    done = run_one(store).job
    for action, job, words in (
        (store.get, 9, "no job number 9"), (store.cancel, "x", 'no job called "x"'),
        (store.cancel, cancelled, "is cancelled and cannot be cancelled"),
        (store.resume, done, f"cannot be resumed. `studio extend {done}` trains it"),
    ):  # fmt: skip
        with pytest.raises(QueueError, match=words):
            action(job)


def test_a_name_is_made_up_from_the_parts(store):
    names = [store.submit(a_spec()).name for _ in range(3)]
    assert names == ["starter-lora-pirate", "starter-lora-pirate-2", "starter-lora-pirate-3"]
    assert store.get(names[2]).spec["name"] == names[2]
    parts = {"model": {"path": "Qwen/Qwen2.5-0.5B"}, "data": {"path": "/x/rows.jsonl.gz"}}
    assert store.submit(parts).name == "qwen2-5-0-5b-rows", "what is no ending is kept"
    assert store.submit({"folder": "/o", "repo": "me/pirate"}, kind="push").name == "push-pirate"


def test_a_made_up_name_is_free_whatever_was_deleted_between(store):
    names = [store.submit({"name": ""}, kind="merge").name for _ in range(4)]
    assert names == ["merge", "merge-2", "merge-3", "merge-4"]
    store.cancel("merge-2")
    store.delete("merge-2")
    store.submit({"name": "merge-5x"})
    found = [store.submit({"name": ""}, kind="merge").name for _ in range(3)]
    assert len({*found, *names}) == 7 and all(name.startswith("merge-") for name in found)


def test_a_name_is_searched_without_reading_all_names(store):
    with store.database.reading() as db:
        for sql in (
            job_table._COUNT.replace(":base", "'x'"),
            "SELECT id FROM jobs WHERE name = 'x'",
            "SELECT MAX(position) FROM jobs",
        ):
            plan = db.conn.execute("EXPLAIN QUERY PLAN " + sql).fetchall()
            assert "SEARCH" in plan[0][3], plan


@pytest.mark.parametrize("name", ["x:2", "a\nb", "\x1b[31mred", "../../etc", "--json", "5"])
@pytest.mark.parametrize("kind", ["train", "merge", "mix", "evaluate"])
def test_a_name_that_reads_as_something_else_is_refused(store, name, kind):
    with pytest.raises(QueueError, match="take a plain name|cannot be a name"):
        store.submit({"name": name}, kind=kind)
    with pytest.raises(QueueError, match="take a plain name|cannot be a name"):
        store.submit_many([{"name": "fine"}], sweep=name)
    assert store.list() == []


def test_a_sweep_names_its_runs_after_values_that_are_no_names(store):
    specs = [a_spec(name=f"s path={path}") for path in ("a/b", "a:b")]
    assert [job.name for job in store.submit_many(specs, sweep="s")] == [
        "s path=a-b",
        "s path=a-b-2",
    ]


def test_an_older_name_still_loads_and_a_wildcard_is_only_a_name(store):
    job = store.submit(a_spec(name="fine"))
    with store.database.writing() as db:
        db.conn.execute("UPDATE jobs SET name = 'x:2', spec = json_set(spec, '$.name', 'x:2')")
    assert store.get("x:2").id == job.id
    assert RunSpec.parse(store.get(job.id).spec).name == "x:2"
    store.submit_many([a_spec(name="50%_a"), a_spec(name="50xya")])
    assert [job.name for job in store.list(search="%_")] == ["50%_a"]


def test_a_running_job_is_stopped_once_and_neither_moved_nor_deleted(store):
    job, other = store.submit(a_spec()).id, store.submit(a_spec()).id
    begin(store)
    with pytest.raises(QueueError, match="only waiting jobs"):
        store.move(job, before=other)
    with pytest.raises(QueueError, match="Cancel it first"):
        store.delete(job)
    assert store.pause(job).intent == "pause"
    with pytest.raises(QueueError, match="already being stopped"):
        store.pause(job)
    assert store.cancel(job).intent == "cancel"
    for again in (store.cancel, store.pause):
        with pytest.raises(QueueError, match="already being cancelled"):
            again(job)


def test_moving_changes_the_order_and_never_runs_out_of_numbers(store):
    a, b, c = (store.submit(a_spec()).id for _ in range(3))
    store.move(c, before=b)
    store.run_next(b)
    assert [job.id for job in store.queue()] == [b, a, c]
    store.move(b)
    assert [job.id for job in store.queue()] == [a, c, b]
    for _ in range(100):
        store.move(b, before=c)
        store.move(c, before=b)
        assert [job.id for job in store.queue()] == [a, c, b]


def test_resume_goes_on_from_a_checkpoint_or_says_that_there_is_none(store):
    job = store.submit(a_spec()).id
    claim = begin(store)
    store.claims.report(claim, Progress(step=7, total_steps=20))
    store.pause(job)
    store.claims.stopped(claim)

    with pytest.raises(QueueError, match="no whole checkpoint"):
        store.resume(job)
    assert store.get(job).state == "paused"

    folder = store.home.run(job) / "checkpoints" / "step-00000005"
    with publishing(folder) as temporary:
        (temporary / "state.json").write_text(json.dumps({"step": 5}))
    assert store.resume(job).why == "goes on from step 5"


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_a_number_with_too_many_digits_for_the_database_is_refused(store, number):
    for ask in (
        lambda: store.get(number), lambda: store.get(str(number)), lambda: store.list(limit=number),
        lambda: store.metrics([number], ["loss"], after_seq=number), lambda: store.cancel(number),
        lambda: store.samples(number), lambda: store.submit(a_spec(), parent=number),
    ):  # fmt: skip
        with pytest.raises(QueueError, match=r"too many digits|no job"):
            ask()
    assert store.list() == []


def test_restart_forgets_what_was_done(store):
    job = store.submit(a_spec()).id
    claim = begin(store)
    store.claims.report(claim, Progress(metrics=[("loss", 7, 1.0, 0.0)], step=7))
    store.cancel(job)
    store.claims.stopped(claim)
    again = store.resume(job, restart=True)
    assert (again.state, again.step) == ("queued", 0)
    assert store.metrics([job], ["loss"])["data"] == {}


def whole_checkpoint(folder: Path) -> Path:
    with publishing(folder / "step-00000005") as temporary:
        (temporary / "state.json").write_text(json.dumps({"step": 5}))
    return folder / "step-00000005"


@pytest.mark.parametrize("change", ["claimed", "ran and paused", "not stored", "none"])
def test_a_restart_deletes_only_what_its_commit_says(store, monkeypatch, change):
    """Between the look and the commit another process may resume the job, or the disk be full."""
    job = store.submit(a_spec()).id
    store.pause(job)
    note = store.home.run(job) / "cluster.json"
    checkpoint = whole_checkpoint(store.home.run(job) / "checkpoints")
    note.write_text("{}")

    def newest_step(run_dir):
        """Return the step, after which another process changes the job."""
        monkeypatch.setattr(job_queue, "newest_step", run_folder.newest_step)
        if change in ("claimed", "ran and paused"):
            store.resume(job)
            claim = begin(store)
            if change == "ran and paused":
                store.pause(job)
                store.claims.stopped(claim)
        return run_folder.newest_step(run_dir)

    monkeypatch.setattr(job_queue, "newest_step", newest_step)
    monkeypatch.setattr(job_queue, "read_submission", lambda _: object())
    if change == "none":
        store.resume(job, restart=True)
    else:
        words = {"claimed": "is running and cannot", "ran and paused": "has just become paused"}
        with contextlib.ExitStack() as failing:
            if change == "not stored":
                failing.enter_context(commits_fail(store))
            with pytest.raises((QueueError, DiskFull), match=words.get(change, "is full")):
                store.resume(job, restart=True)
    kept = change != "none"
    assert (run_folder.newest_step(store.home.run(job)), note.exists()) == (5 * kept, kept)
    assert checkpoint.exists() is kept and not list(store.home.run(job).glob(".tmp-*"))


@contextlib.contextmanager
def commits_fail(store):
    """Fail each commit of the store's durable connection, as a full disk does."""

    class Full:
        def __init__(self, conn):
            self.conn = conn

        def __getattr__(self, name):
            return getattr(self.conn, name)

        def execute(self, sql, *values):
            if sql == "COMMIT":
                raise sqlite3.OperationalError("database or disk is full")
            return self.conn.execute(sql, *values)

    tables = store.database._writers["FULL"]
    tables.conn = Full(tables.conn)
    yield
    tables.conn = tables.conn.conn


def test_checkpoints_of_a_job_that_was_resumed_meanwhile_are_not_dropped(store, monkeypatch):
    job = store.submit(a_spec()).id
    store.cancel(job, drop=True)
    rows = store.database.rows

    def resumed_meanwhile(sql, *values):
        found = rows(sql, *values)
        if sql == ended_jobs._DROPPED:
            store.resume(job)
            begin(store)
            whole_checkpoint(store.home.run(job) / "checkpoints")
        return found

    monkeypatch.setattr(store.database, "rows", resumed_meanwhile)
    ended_jobs.follow_up(store)
    assert run_folder.newest_step(store.home.run(job)) == 5


def test_deleting_removes_the_folder_and_keeps_the_audit(store):
    job = store.submit(a_spec()).id
    store.home.run(job).mkdir()
    store.delete(job)
    assert not store.home.run(job).exists()
    assert [event["dst"] for event in store.events(job)] == ["queued", "deleted"]
    assert store.submit(a_spec()).id > job, "a number names a folder and is never used again"


def test_many_threads_share_one_store(store):
    names: list[str] = []

    def submit() -> None:
        for _ in range(10):
            names.append(store.submit(a_spec()).name)
            store.list(limit=5)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 80 == len(store.list())


def test_a_living_process_is_seen_and_a_dead_one_is_not(store):
    store.announce("web", url="http://127.0.0.1:1")
    assert [row["role"] for row in store.processes()] == ["web"]
    with store.database.writing() as db:
        db.conn.execute("UPDATE processes SET pid_started = pid_started - 1")
    assert store.processes() == [], "the same pid with another start is another process"
