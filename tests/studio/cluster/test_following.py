"""A job on the cluster is followed through every way it may end, and nothing is lost on the way."""

import json
from pathlib import Path

import pytest

from studio.cluster import follow_and_fetch
from studio.cluster.shared_storage import CONTROL, MARK, Storage, read_json, read_submission
from studio.errors import ClusterError, Diverged, ProcessLost
from studio.home import is_whole
from studio.training.training_events import Finished, Loading, Saved, Started, Step, Working
from tests.studio.cluster.conftest import SPEC, finished, started, step


def steps(events: list) -> list[int]:
    return [event.step for event in events if isinstance(event, Step)]


def test_events_checkpoints_and_the_adapter_come_home_and_nothing_stays(far):
    far.add(started(), step(1), step(2))
    far.save(2)
    far.finish(2)
    far.ray.now = "SUCCEEDED"

    heard = far.follow()

    assert steps(heard) == [1, 2]
    (saved,) = (event for event in heard if isinstance(event, Saved))
    assert saved.path == str(far.run_dir / "checkpoints" / "step-00000002")
    assert is_whole(Path(saved.path))
    end = heard[-1]
    assert isinstance(end, Finished)
    assert end.adapter == str(far.run_dir / "adapter")
    assert not far.folder.exists()
    assert read_submission(far.run_dir) is None

    # The passport speaks of this machine.
    adapter = far.run_dir / "adapter"
    assert is_whole(adapter)
    passport = json.loads((adapter / "passport.json").read_text())
    assert passport["spec"] == SPEC.model_dump(mode="json")
    assert (passport["base"]["path"], passport["data"]["path"]) == ("starter", "starter:pirate")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "starter"
    report = json.loads((far.run_dir / "report.json").read_text())
    assert (report["tokens"], report["adapter"]) == (7, str(adapter))


def test_the_drivers_error_is_the_runs(far):
    far.add(started(), step(1))
    far.save(1)
    far.ray.now = "FAILED"
    far.ray.printed = f"noise\n{MARK}{json.dumps(Diverged('The loss became nan.').as_dict())}\n"

    with pytest.raises(Diverged, match="The loss became nan"):
        far.follow()
    assert is_whole(far.run_dir / "checkpoints" / "step-00000001")
    assert read_submission(far.run_dir) is None


@pytest.mark.parametrize(
    ("status", "begun", "words"),
    [("FAILED", False, "without an error of its own: Ray's own words"),
     ("STOPPED", True, "The run was stopped on the cluster itself")],
)  # fmt: skip
def test_an_end_that_nothing_explains_is_a_failure_in_a_sentence(far, status, begun, words):
    if begun:
        far.add(started())
    far.ray.now = status
    with pytest.raises(ClusterError, match=words):
        far.follow()


@pytest.mark.parametrize("status", ["FAILED", "UNKNOWN"])
def test_a_run_that_the_cluster_lost_goes_on_from_what_is_here(far, status):
    far.add(started(), step(1))
    far.save(1)
    far.ray.now = status
    with pytest.raises(ProcessLost):
        far.follow()
    assert is_whole(far.run_dir / "checkpoints" / "step-00000001")


def test_silence_is_told_once_and_its_end_too(far):
    def silence() -> None:
        far.ray.now = None

    def words() -> None:
        far.ray.now = "RUNNING"

    def end() -> None:
        far.finish(1)
        far.ray.now = "SUCCEEDED"

    far.add(started())
    heard = far.follow({Started: silence, Loading: words, Working: end})

    told = [e.text for e in heard if isinstance(e, Loading | Working)]
    assert told == [
        "Waiting for the cluster: The cluster does not answer: http://fake:8265.", "Training",
        "Fetching the run",
    ]  # fmt: skip


def test_a_storage_that_is_away_is_waited_for(far, monkeypatch):
    far.add(started())
    far.finish(1)
    far.ray.now = "SUCCEEDED"  # all is over, but nobody can read how
    read, down = Storage.read, [True]

    def failing(place: Storage, name: str) -> bytes | None:
        if down[0]:
            raise PermissionError(13, "denied")
        return read(place, name)

    monkeypatch.setattr(Storage, "read", failing)
    heard = far.follow({Loading: lambda: down.__setitem__(0, False)})

    assert isinstance(heard[0], Loading) and "does not answer" in heard[0].text
    assert isinstance(heard[-1], Finished)


def test_an_adapter_that_cannot_be_fetched_is_fetched_by_the_next_one(far, monkeypatch):
    far.add(started(), step(1))
    far.finish(1)
    far.ray.now = "SUCCEEDED"
    fetch = Storage.fetch
    with monkeypatch.context() as broken:
        broken.setattr(Storage, "fetch", lambda *_, **__: (_ for _ in ()).throw(OSError("cut off")))
        with pytest.raises(ClusterError, match=r"\(cut off\): resume the run"):
            far.follow()
    assert Storage.fetch is fetch

    heard = far.follow()
    assert isinstance(heard[-1], Finished) and is_whole(far.run_dir / "adapter")


def test_at_a_shutdown_the_job_goes_on_and_is_followed_from_there(far):
    def shutdown() -> None:
        far.intent = far.wish = None
        far.intent, far.wish = "shutdown", "stop"

    far.add(started(), step(1))
    assert steps(far.follow({Step: shutdown})) == [1]
    assert read_json(far.place, CONTROL) is None  # it was not asked to stop
    assert far.ray.stopped == []

    far.intent = far.wish = None
    far.add(step(2))
    far.finish(2)
    far.ray.now = "SUCCEEDED"
    heard = far.follow()
    assert steps(heard) == [2]
    assert heard[0] == Working(text="Training", step=1, total_steps=9)


def test_a_pause_is_a_wish_on_the_storage(far):
    def pause() -> None:
        far.intent, far.wish = "pause", "stop"

    def obey() -> bool:
        wish = read_json(far.place, CONTROL)
        if wish and wish["command"] == "stop":
            far.add(finished(1, "stopped"))
            far.ray.now = "SUCCEEDED"
        return bool(wish)

    far.add(started(), step(1))
    status = far.ray.status
    far.ray.status = lambda s: (obey(), status(s))[1]  # type: ignore[method-assign]
    heard = far.follow({Step: pause})

    assert isinstance(heard[-1], Finished) and heard[-1].reason == "stopped"
    assert far.ray.stopped == []


@pytest.mark.parametrize("begun", [False, True])
def test_what_has_not_begun_or_does_not_stop_when_asked_is_ended(far, monkeypatch, begun):
    def cancel() -> None:
        far.intent, far.wish = "cancel", "stop"

    monkeypatch.setitem(follow_and_fetch.PATIENCE_SECONDS, "cancel", 0.1)
    if begun:
        far.add(started(), step(1))
        far.save(1)
        far.follow({Step: cancel})
        assert is_whole(far.run_dir / "checkpoints" / "step-00000001")
    else:
        far.add(Loading(text="Ray is placing the run"))
        end = far.follow({Loading: cancel})[-1]
        assert isinstance(end, Finished) and end.reason == "stopped"
    assert far.ray.stopped == ["far-1"]


def test_when_nobody_answers_a_stop_waits_on_the_storage(far, monkeypatch):
    def cancel() -> None:
        far.intent, far.wish, far.ray.now = "cancel", "stop", None

    monkeypatch.setitem(follow_and_fetch.PATIENCE_SECONDS, "cancel", 0.1)
    far.add(started())
    far.follow({Started: cancel})

    wish = read_json(far.place, CONTROL)
    assert wish is not None and wish["command"] == "stop"
    assert read_submission(far.run_dir) is not None  # whoever resumes it brings home what there is


def test_a_full_disk_here_stops_the_run_there(far):
    def full() -> None:
        far.wish = "stop"  # without an intent of anybody

    far.add(started(), step(1))
    status = far.ray.status

    def answer(submission: str) -> tuple[str, str] | None:
        if read_json(far.place, CONTROL):
            far.add(finished(1, "stopped"))
            far.ray.now = "SUCCEEDED"
        return status(submission)

    far.ray.status = answer  # type: ignore[method-assign]
    heard = far.follow({Step: full})
    assert isinstance(heard[-1], Finished) and heard[-1].reason == "stopped"
