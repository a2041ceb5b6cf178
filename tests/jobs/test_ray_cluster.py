"""The cluster as a device of the queue: chosen, counted, waited for, claimed in order."""

import json

import pytest

from jobs import bakeoff, doctor, queue_settings, ray_cluster, sweeps
from jobs.claims import Slot
from jobs.device_placement import claim_siblings
from jobs.job_inputs import admit
from jobs.job_queue import JobStore
from jobs.processes import me
from jobs.ray_cluster import Watch
from studio.cluster import Cluster
from studio.cluster.ray_api import Ray
from studio.cluster.shared_storage import Submission
from studio.cluster.submit import submit
from studio.errors import InputError, QueueError, SpecError
from studio.spec import RunSpec
from tests.dashboard import Dashboard, node, nodes
from tests.jobs.conftest import a_spec, take, until

MOODS = ("idle", "night")


def watching(store: JobStore) -> Watch:
    """A watch that has heard from the cluster, or that nobody answers."""
    watch = Watch(store)
    watch.look()
    until(lambda: watch.facts or watch.trouble)
    return watch


def nobody(dashboard: Dashboard) -> None:
    dashboard.answers["/api/version"] = 503


def test_a_cluster_is_chosen_shown_and_forgotten(store, dashboard, tmp_path):
    assert ray_cluster.chosen(store) is None

    ray_cluster.choose(store, f"{dashboard.address}/", str(tmp_path / "s"))
    assert ray_cluster.chosen(store) == Cluster(
        address=dashboard.address, storage=str(tmp_path / "s")
    )
    found = ray_cluster.shown(store)
    assert found is not None
    assert (found["free"], found["devices"], found["trouble"]) == (5, 6, "")
    assert ray_cluster.sentence(found).startswith(
        "cluster: 5 of 6 GPUs free on 2 machines, Ray 2.60.0"
    )

    ray_cluster.choose(store, "127.0.0.1:1", "")  # down just now; the storage stays
    assert ray_cluster.chosen(store) == Cluster(
        address="http://127.0.0.1:1", storage=str(tmp_path / "s")
    )
    queue_settings.write(store, "cluster", None)
    assert ray_cluster.shown(store) is None


def test_what_cannot_be_a_cluster_is_refused_and_changes_nothing(store, dashboard, tmp_path):
    with pytest.raises(QueueError, match="A cluster needs a storage"):
        ray_cluster.choose(store, dashboard.address, "")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        ray_cluster.choose(store, dashboard.address, str(tmp_path / "file" / "s"))
    dashboard.answers["/api/version"] = {"ray_version": "2.9"}
    with pytest.raises(InputError, match=r"runs Ray 2\.9; this studio needs"):
        ray_cluster.choose(store, dashboard.address, str(tmp_path / "s"))
    assert ray_cluster.chosen(store) is None


def test_slots_are_claimed_in_the_queues_order_and_wide_jobs_take_several(
    store, dashboard, tmp_path
):
    ray_cluster.choose(store, dashboard.address, str(tmp_path / "s"))
    for name, width in (("a", 4), ("b", 3), ("c", 1), ("d", 1), ("e", 1)):
        store.submit(a_spec(name=name, device="ray", num_processes=width))
    store.submit(a_spec(name="here"))
    watch = watching(store)

    claims = list(watch.claims(me(), MOODS))

    assert [claim.job for claim in claims] == [1, 3, 4]  # b waits for three, e for one
    assert claims[0].device == "ray:0,ray:1,ray:2,ray:3" and ray_cluster.is_slot(claims[0].device)
    assert not any(map(ray_cluster.is_slot, ("cpu", "cuda:0", "files")))
    assert list(watch.claims(me(), MOODS)) == []
    here = take(store, "cpu")
    assert here is not None and here.job == 6  # a processor here is no cluster
    assert take(store, "cpu") is None


def test_sweeps_and_bakeoffs_go_out_as_separate_jobs_and_are_measured_at_the_end(
    store, dashboard, tmp_path, monkeypatch
):
    taken: list[tuple[str, str]] = []
    monkeypatch.setattr(Ray, "submit", lambda self, name, *, place: taken.append((name, place)))
    ray_cluster.choose(store, dashboard.address, str(tmp_path / "s"))
    spec = a_spec(device="ray", num_processes=2).with_values({"name": ""})
    sweep = sweeps.submit_sweep(store, spec, {"train.learning_rate": [0.1, 0.2]}, name="rates")
    *runs, table = bakeoff.submit(
        store, spec.with_values({"train.num_processes": 1}), ["lora", "bitfit"], name="duel"
    )
    here = ray_cluster.chosen(store)
    assert here is not None

    claims = list(watching(store).claims(me(), MOODS))

    assert [claim.job for claim in claims] == [job.id for job in (*sweep, *runs)]
    assert [claim.device for claim in claims] == ["ray:0,ray:1", "ray:2,ray:3", "ray:4", "ray:5"]
    for claim in claims:
        assert claim_siblings(store.database, claim, owner=me(), slot=Slot(claim.device)) == []
        submit(
            RunSpec.parse(store.get(claim.job).spec), run_dir=store.home.run(claim.job),
            home=store.home, ray=Ray(here.address), storage=here.storage,
        )  # fmt: skip
    names, places = zip(*taken, strict=True)
    assert len(set(names)) == len(set(places)) == 4
    assert [name.rsplit("-", 2)[0] for name in names][2:] == ["duel-lora", "duel-bitfit"]
    for run in runs:
        assert take(store, "cpu") is None, "the table waits for its runs"
        claim = next(one for one in claims if one.job == run.id)
        store.claims.register(claim, me())
        store.claims.finish(claim, "failed", error=("run", "It failed."))
    last = take(store, "cpu")
    assert last is not None and last.job == table.id


def test_what_a_run_waits_for_is_said(store, dashboard, tmp_path):
    wide = store.submit(a_spec(name="wide", device="ray", num_processes=7)).id
    fits = store.submit(a_spec(name="fits", device="ray")).id
    assert Watch(store).waits() == {wide: ray_cluster.NONE, fits: ray_cluster.NONE}

    ray_cluster.choose(store, dashboard.address, str(tmp_path / "s"))
    (sentence,) = watching(store).waits().values()
    assert sentence.startswith("train.num_processes is 7, but the cluster has 6 GPUs on 2 machines")

    nobody(dashboard)
    silent = watching(store)
    assert silent.slots() == [] and set(silent.waits()) == {wide, fits}
    assert "The cluster at" in silent.waits()[fits]


def test_a_cluster_that_grows_is_seen(store, dashboard, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "ASK_SECONDS", 0.05)
    ray_cluster.choose(store, dashboard.address, str(tmp_path / "s"))
    watch = watching(store)
    dashboard.answers["/nodes?view=summary"] = nodes(node(GPU=9))

    def grown() -> bool:
        watch.look()
        return len(watch.slots()) == 9

    until(grown)


def test_admission_says_what_the_cluster_cannot_do(home, store, dashboard, tmp_path):
    spec = a_spec(device="ray", num_processes=7)
    with pytest.raises(SpecError, match=r"train\.device is ray\. No cluster is set"):
        admit(spec, home)

    ray_cluster.choose(store, dashboard.address, str(tmp_path / "s"))
    with pytest.raises(SpecError, match="the cluster has 6 GPUs") as error:
        admit(spec, home)
    assert error.value.field == "train.num_processes"
    assert admit(spec.with_values({"train.num_processes": 6}), home).train.device == "ray"
    nobody(dashboard)
    assert admit(spec, home).train.num_processes == 7  # the queue keeps it


def test_what_nobody_follows_is_asked_to_stop_by_a_cancel_and_forgotten_by_a_restart(
    store, dashboard, tmp_path
):
    left, again = (store.submit(a_spec(name=name, device="ray")).id for name in ("left", "again"))
    for job, name in ((left, "left-1"), (again, "again-1")):
        store.home.run(job).mkdir(parents=True)
        Submission(submission=name, place=str(tmp_path / "s" / name)).save(store.home.run(job))
    store.cancel(left)

    ray_cluster.choose(store, dashboard.address, str(tmp_path / "s"))
    watching(store)

    control = tmp_path / "s/left-1/control.json"
    until(lambda: control.exists() and '"stop"' in control.read_text())  # it is written in place
    assert json.loads(control.read_text())["command"] == "stop"

    for restart in (False, True):
        store.pause(again)
        store.resume(again, restart=restart)
        assert (store.home.run(again) / "cluster.json").exists() is not restart


def test_the_doctor_says_what_keeps_a_cluster_from_being_used(
    home, store, dashboard, tmp_path, monkeypatch
):
    storage = tmp_path / "s"
    ray_cluster.choose(store, dashboard.address, str(storage))
    found = doctor.examine(home.path)["home"]["cluster"]
    assert "5 of 6 GPUs free" in ray_cluster.sentence(found)

    nobody(dashboard)
    storage.rmdir()
    storage.write_text("a file now")
    monkeypatch.setattr(ray_cluster, "find_spec", lambda _: None)
    said = " ".join(f["text"] for f in doctor.examine(home.path)["findings"])
    assert "does not answer" in said and "cannot be written" in said and "pip install" in said
