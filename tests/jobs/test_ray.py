"""Runs on a real Ray cluster of two machines, on loopback: as here, and through every accident.

The cluster has one processor on each machine, so that a run of two processes spans both.
"""

import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from jobs import ray_cluster, supervisor, sweeps
from jobs.job_inputs import admit
from jobs.job_queue import JobStore
from jobs.job_record import Job
from studio.cluster.ray_api import Ray
from studio.cluster.shared_storage import read_submission
from studio.errors import SpecError
from studio.home import is_whole, open_home
from studio.spec import RunSpec
from studio.training.train_run import train
from studio.training.training_events import Step
from tests.jobs.conftest import until
from tests.studio.tiny import tiny_folder

pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

MEMORY = 80 * 2**20
LONG = 400.0


@pytest.fixture(scope="module")
def two_machines():
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # its sockets want a short path
    os.environ |= {
        "RAY_TMPDIR": folder,  # its note of the current cluster too, which may be another's
        "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    machine = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": MEMORY}
    made = Cluster(
        initialize_head=True,
        head_node_args=machine | {"include_dashboard": True, "dashboard_port": 0},
    )
    made.add_node(**machine)
    address = f"http://{made.head_node.webui_url}"
    until(lambda: Ray(address).facts().devices == 2)
    yield SimpleNamespace(address=address, pids=_processes_of(made))
    made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    os.environ.clear()
    os.environ |= before


@pytest.fixture
def studio(two_machines, tmp_path):
    """A store whose queue is supervised, with the cluster chosen."""
    home = open_home(tmp_path / "home")
    store = JobStore(home)
    ray_cluster.choose(store, two_machines.address, str(tmp_path / "storage"))
    supervisor.ensure_running(home)
    yield store
    supervisor.stop(home)
    store.close()


def a_run(name: str, *, steps: int = 16, **train_args: Any) -> RunSpec:
    args = {"max_steps": steps, "save_steps": 4, "num_samples": 1, "device": "ray", "eval_steps": 8}
    return RunSpec.parse({"name": name, "train": args | {"num_processes": 2} | train_args})


def losses_here(spec: RunSpec, folder: Path) -> list[float]:
    alone = spec.with_values({"train.device": "cpu", "train.num_processes": 1})
    events = train(alone, run_dir=folder / "run", home=open_home(folder / "home"))
    return [event.loss for event in events if isinstance(event, Step)]


def losses(store: JobStore, job: Job) -> list[float]:
    with store.database.reading() as db:
        rows = db.conn.execute(
            "SELECT value FROM metrics WHERE job = ? AND name = 'loss' ORDER BY step", (job.id,)
        ).fetchall()
    return [row[0] for row in rows]


def reaches(store: JobStore, job: Job, true: Callable[[Job], Any], seconds: float = LONG) -> Job:
    """Wait for a job to be as wanted; a job that failed meanwhile tells why."""

    def look() -> Job | None:
        now = store.get(job.id)
        if true(now):
            return now
        assert now.state != "failed", f"{now.error_text}\n{store.log_tail(job.id)}"
        return None

    return until(look, seconds=seconds)


def succeeded(job: Job) -> bool:
    return job.state == "succeeded"


def ray_jobs(two_machines: Any) -> list[Any]:
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(two_machines.address).list_jobs()


def test_a_run_on_two_machines_gives_what_it_gives_here_and_its_curve_is_live(studio, tmp_path):
    spec = a_run("far", steps=24)

    job = studio.submit(admit(spec, studio.home))
    late = _lateness(studio, job)
    job = reaches(studio, job, succeeded)

    here = losses_here(spec, tmp_path / "here")
    assert losses(studio, job) == pytest.approx(here, rel=1e-4)
    print(
        f"seconds from storage to database: median {statistics.median(late):.2f}, {max(late):.2f}"
    )
    assert max(late) < 2.0, late
    adapter = Path(str(job.result["adapter"]))
    assert adapter == studio.home.run(job.id) / "adapter"
    assert is_whole(adapter)
    assert '"device": "ray"' in (adapter / "passport.json").read_text()
    assert [row["step"] for row in studio.checkpoints(job.id)] == [20, 24]
    assert [row["step"] for row in studio.samples(job.id)] == [0, 8, 16, 24]
    assert list((tmp_path / "storage").iterdir()) == []  # nothing of it stays there
    assert studio.attempts(job.id)[0]["device"] == "ray:0,ray:1"


def test_pause_brings_the_checkpoint_home_and_resume_goes_on_from_it(
    studio, tmp_path, two_machines
):
    spec = a_run("paused", steps=120, num_processes=1, eval_steps=-1)
    job = studio.submit(admit(spec, studio.home))
    reaches(studio, job, lambda now: now.step >= 6)

    studio.pause(job.id)
    held = reaches(studio, job, lambda now: now.state == "paused")
    assert 6 <= held.step < 120
    assert studio.checkpoints(job.id)[-1]["step"] == held.step
    studio.resume(job.id)
    job = reaches(studio, job, succeeded)

    assert losses(studio, job) == pytest.approx(losses_here(spec, tmp_path / "here"), rel=1e-4)
    assert studio.attempts(job.id)[1]["from_step"] == held.step
    assert len([one for one in ray_jobs(two_machines) if "paused-" in one.submission_id]) == 2


def test_a_worker_that_is_killed_is_started_again_from_the_last_checkpoint(
    studio, tmp_path, two_machines
):
    spec = a_run("killed", steps=60, eval_steps=-1)
    job = studio.submit(admit(spec, studio.home))
    reaches(studio, job, lambda now: now.step >= 6)

    victim = until(lambda: _training_processes())[-1]
    victim.send_signal(signal.SIGKILL)
    job = reaches(studio, job, succeeded)

    assert losses(studio, job) == pytest.approx(losses_here(spec, tmp_path / "here"), rel=1e-4)
    assert len(studio.attempts(job.id)) == 1
    assert "A worker was lost" in studio.log_tail(job.id, lines=500)


def test_a_studio_that_was_closed_follows_the_same_job_when_it_is_opened_again(
    studio, tmp_path, two_machines
):
    spec = a_run("closed", steps=60, num_processes=1, eval_steps=-1)
    job = studio.submit(admit(spec, studio.home))
    job = reaches(studio, job, lambda now: now.step >= 4)
    before = read_submission(studio.home.run(job.id))

    killed = [supervisor.living(studio.home).pid, job.pid]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    time.sleep(3)
    supervisor.ensure_running(studio.home)
    job = reaches(studio, job, succeeded)

    assert losses(studio, job) == pytest.approx(losses_here(spec, tmp_path / "here"), rel=1e-4)
    assert len(studio.attempts(job.id)) == 2
    found = [one.submission_id for one in ray_jobs(two_machines) if "closed-" in one.submission_id]
    assert before is not None
    assert found == [before.submission]


def test_stopping_the_studio_leaves_the_run_to_the_cluster(studio, two_machines):
    job = studio.submit(admit(a_run("left", steps=40, num_processes=1), studio.home))
    reaches(studio, job, lambda now: now.step >= 2)

    supervisor.stop(studio.home)
    assert studio.get(job.id).state == "interrupted"
    sent = read_submission(studio.home.run(job.id))
    assert sent is not None
    status = Ray(two_machines.address).status(sent.submission)
    assert status is not None and status[0] in ("RUNNING", "SUCCEEDED")
    supervisor.ensure_running(studio.home)

    job = reaches(studio, job, succeeded)
    assert len(losses(studio, job)) == 40


def test_a_dashboard_that_falls_silent_is_told_and_healed(studio, two_machines):
    job = studio.submit(admit(a_run("silent", steps=150, num_processes=1), studio.home))
    reaches(studio, job, lambda now: now.step >= 2)

    dashboard = next(p for p in two_machines.pids if "dashboard.py" in " ".join(p.cmdline()))
    dashboard.suspend()
    try:
        reaches(studio, job, lambda now: now.phase.startswith("Waiting for the cluster"))
    finally:
        dashboard.resume()
    job = reaches(studio, job, lambda now: succeeded(now) or now.phase == "Training")
    job = reaches(studio, job, succeeded)

    assert len(losses(studio, job)) == 150
    assert "answers again" in studio.log_tail(job.id, lines=1000)


def test_a_run_is_cancelled_while_ray_is_still_placing_it(studio, two_machines):
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(two_machines.address)
    other = client.submit_job(entrypoint="sleep 600", entrypoint_num_cpus=1)
    try:
        job = studio.submit(admit(a_run("placing"), studio.home))
        reaches(studio, job, lambda now: now.phase.startswith("Ray is placing"))

        studio.cancel(job.id)
        reaches(studio, job, lambda now: now.state == "cancelled")
        states = {one.submission_id: one.status for one in client.list_jobs()}
        assert [s for name, s in states.items() if name.startswith("placing-")] == ["STOPPED"]
    finally:
        client.stop_job(other)


def test_a_sweep_fans_out_with_a_model_and_rows_of_this_machine(studio, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"question": w, "answer": w * 2}) for w in "abcdefgh"))
    model = tiny_folder(tmp_path / "model")
    spec = a_run("", num_processes=1).with_values(
        {"model.path": str(model), "data.path": str(rows), "data.chat_template": "plain"}
    )
    jobs = sweeps.submit_sweep(studio, admit(spec, studio.home), {"method.r": [2, 4]}, name="fan")

    both = [reaches(studio, job, succeeded) for job in jobs]

    assert [studio.attempts(job.id)[0]["device"] for job in both] == ["ray:0", "ray:1"]
    starts, ends = zip(*((job.started, job.finished) for job in both), strict=True)
    assert max(starts) < min(ends)  # they ran at the same time
    passport = json.loads(Path(both[0].result["adapter"], "passport.json").read_text())
    assert passport["base"]["path"] == str(model)
    assert losses(studio, both[0]) == pytest.approx(
        losses_here(RunSpec.parse(both[0].spec), tmp_path / "here"), rel=1e-4
    )


def test_a_run_that_wants_more_than_the_cluster_has_is_refused_with_how_many_there_are(studio):
    spec = a_run("wide", num_processes=5)
    with pytest.raises(SpecError, match="the cluster has 2 CPUs on 2 machines"):
        admit(spec, studio.home)

    job = studio.submit(spec)  # as if a machine had gone since
    reaches(studio, job, lambda now: "the cluster has 2 CPUs" in now.waits)
    assert studio.get(job.id).state == "queued"


def test_packages_that_the_cluster_lacks_are_named(two_machines, home, tmp_path, monkeypatch):
    from studio.cluster import Cluster, submit
    from studio.cluster.submit import train as train_away
    from studio.errors import ClusterError

    monkeypatch.setattr(submit, "needed", lambda: ("no-such-package>=2", "torch<1"))
    chosen = Cluster(address=two_machines.address, storage=str(tmp_path / "storage"))
    with pytest.raises(ClusterError, match="no-such-package is not installed, torch is .*, not <1"):
        list(
            train_away(
                a_run("lacking"), run_dir=tmp_path / "run", home=home, cluster=chosen,
                control=lambda: None, intent=lambda: None,
            )
        )  # fmt: skip


def _training_processes() -> list[psutil.Process]:
    found = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"]]
    return [p for p in found if "RayTrainWorker" in p.info["cmdline"][0]]


def _processes_of(made: Any) -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _lateness(store: JobStore, job: Job) -> list[float]:
    """Return for each step how long after it was on the storage it was in the database."""
    said: dict[int, float] = {}
    known: dict[int, float] = {}

    def look() -> bool:
        sent = read_submission(store.home.run(job.id))
        if sent is not None:
            for file in Path(sent.place, "events").glob("*.jsonl"):
                for number in range(1, 1 + file.read_bytes().count(b'"event": "step"')):
                    said.setdefault(number, time.monotonic())
        for number in range(1, 1 + len(losses(store, job))):
            known.setdefault(number, time.monotonic())
        return store.get(job.id).state != "running" and bool(known)

    until(look, seconds=LONG)
    return [known[step] - said[step] for step in known if step in said]
