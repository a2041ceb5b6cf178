"""What a worker does on the cluster, played here: Ray's part is a rank, a size and a device."""

import json
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from studio.cluster import driver
from studio.cluster.driver import work
from studio.cluster.shared_storage import (
    CONTROL,
    ERROR,
    ORDER,
    EventReader,
    EventWriter,
    Order,
    Storage,
    order_in,
    read_json,
    write_json,
)
from studio.errors import (
    ClusterError,
    DataError,
    DeviceLost,
    MethodError,
    OutOfMemory,
    ProcessLost,
    RunError,
    StudioError,
)
from studio.home import publishing
from studio.spec import RunSpec
from studio.training import train_run, transfer_run
from studio.training.checkpoint import path_of
from studio.training.train_run import train
from studio.training.training_events import Loading, Step


@pytest.fixture
def place(tmp_path, home, monkeypatch):
    """A packed run on a storage, and a ray of one worker."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    trains, torches = ModuleType("ray.train"), ModuleType("ray.train.torch")
    trains.get_context = lambda: context  # type: ignore[attr-defined]
    torches.get_device = lambda: "cpu"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray.train", trains)
    monkeypatch.setitem(sys.modules, "ray.train.torch", torches)
    place = Storage(str(tmp_path / "storage"))
    transfer_run.pack(SPEC, tmp_path / "packed", home)
    place.send(tmp_path / "packed", "packed")
    write_json(place, ORDER, Order(workers=1, gpus=False, needs=("torch",)).model_dump(mode="json"))
    speaker = EventWriter(place)
    speaker.add(Loading(text="Ray is placing the run").as_dict())  # the driver's word comes first
    speaker.close()
    return place


SPEC = RunSpec.parse({"train": {
    "max_steps": 6, "save_steps": 3, "num_samples": 1, "eval_steps": 6, "device": "ray",
    "measure_forgetting": False, "self_test": False,
}})  # fmt: skip


def said(place: Storage) -> list[dict[str, Any]]:
    return list(EventReader(place).read())


def test_a_worker_says_what_the_run_says_here_and_leaves_what_it_makes(place, home, tmp_path):
    work({"place": place.url})

    alone = SPEC.with_values({"train.device": "cpu"})
    here = [e for e in train(alone, run_dir=tmp_path / "here", home=home) if isinstance(e, Step)]
    heard = said(place)
    assert [v["loss"] for v in heard if v["event"] == "step"] == [e.loss for e in here]
    assert [v["step"] for v in heard if v["event"] == "saved"] == [3, 6]
    assert heard[-1]["event"] == "finished" and heard[-1]["adapter"] == "adapter"
    assert place.names("checkpoints") == ["step-00000003", "step-00000006"]
    assert place.fetch("adapter", tmp_path / "adapter")
    assert (read_json(place, "report.json") or {})["reason"] == "completed"


def test_a_wish_on_the_storage_is_obeyed_and_the_next_worker_goes_on(place, monkeypatch):
    monkeypatch.setattr("studio.cluster.driver.RECEIVE_SECONDS", 0.01)
    write_json(place, CONTROL, {"number": 1, "command": "stop"})
    work({"place": place.url})
    first = said(place)
    assert first[-1]["reason"] == "stopped"
    reached = first[-1]["step"]
    assert 1 <= reached < 6
    assert place.names("checkpoints")[-1] == f"step-{reached:08d}"

    place.remove(CONTROL)
    work({"place": place.url})
    then = said(place)[len(first) :]
    assert then[0]["text"].startswith("A worker was lost")
    assert [v["step"] for v in then if v["event"] == "step"] == list(range(reached + 1, 7))
    assert then[-1]["reason"] == "completed"


def test_a_worker_that_begins_again_fetches_the_newest_whole_checkpoint_and_the_best(tmp_path):
    storage = Storage(str(tmp_path / "storage"))
    for step in (1, 2, 3, 4):
        with publishing(path_of(tmp_path / "made", step)) as made:
            (made / "state.json").write_text(json.dumps({"progress": {"best_step": 1}}))
        storage.send(path_of(tmp_path / "made", step), f"checkpoints/step-{step:08d}")
    storage.write("checkpoints/step-00000004/state.json", b"cut off")
    driver._fetch_checkpoints(storage, folder := tmp_path / "here")
    assert [one.name for one in sorted(folder.iterdir())] == ["step-00000001", "step-00000003"]


@pytest.fixture
def workers(place, monkeypatch):
    """A run of two workers with batches of 16 that retries; Ray begins each failed attempt anew."""
    context = sys.modules["ray.train"].get_context()
    monkeypatch.setattr(context, "get_world_size", lambda: 2)

    def fit(storage: Storage, order: Order) -> None:
        files = len(storage.names("events"))
        for _ in range(2):
            with suppress(StudioError):
                work({"place": storage.url, "files": files})

    monkeypatch.setattr(driver, "_fit", fit)
    packed = Path(place.root) / "packed"
    wanted = {"train.retry_when_out_of_memory": True, "train.per_device_train_batch_size": 16}
    packed.joinpath("spec.yaml").write_text(
        transfer_run.read_spec(packed).with_values(wanted).to_yaml()
    )
    return place


def test_workers_that_run_out_of_memory_begin_again_with_smaller_batches(workers, monkeypatch):
    sizes = []

    def full(spec, **_):
        sizes.append(spec.train.per_device_train_batch_size)
        yield Loading(text="Loading the model")
        if len(sizes) == 1:
            write_json(workers, ERROR, {"kind": "device_lost", "text": "of another worker"})
        if sizes[-1] > 1:
            raise OutOfMemory("no room")

    monkeypatch.setattr(train_run, "train", full)
    assert driver._drive(workers) is None
    assert sizes[:5] == [16, 8, 4, 2, 1]
    texts = [one["text"] for one in said(workers)]
    notes = [text for text in texts if text.startswith("Out of memory; retrying with")]
    assert len(notes) == 4 and "per_device_train_batch_size 1," in notes[-1]
    assert [text for text in texts if "Ray restarts" in text] == [
        "A worker was lost: Ray restarts the run from its last checkpoint"
    ]


def test_a_remedy_that_the_workers_refuse_leaves_that_memory_was_out(workers, monkeypatch):
    errors = iter([OutOfMemory("no room"), MethodError("a setting that nobody made")])

    def fails(*_, **__):
        raise next(errors)
        yield

    monkeypatch.setattr(train_run, "train", fails)
    assert driver._drive(workers) == {"kind": "out_of_memory", "text": "no room"}


def test_the_error_of_another_worker_does_not_hide_the_cause(workers, monkeypatch):
    def fails(*_, **__):
        write_json(workers, ERROR, {"kind": "data", "text": "Row 3 is empty."})
        raise DeviceLost("NCCL error")
        yield

    monkeypatch.setattr(train_run, "train", fails)
    assert (driver._drive(workers) or {})["text"] == "Row 3 is empty."


def test_a_checkpoint_that_a_person_wants_is_made_once(place, monkeypatch):
    monkeypatch.setattr("studio.cluster.driver.RECEIVE_SECONDS", 0.01)
    spec = transfer_run.read_spec(Path(place.root) / "packed")
    spec = spec.with_values({"train.max_steps": 60, "train.save_steps": -1, "train.eval_steps": -1})
    (Path(place.root) / "packed" / "spec.yaml").write_text(spec.to_yaml())
    running = threading.Thread(target=work, args=({"place": place.url},))
    running.start()
    write_json(place, CONTROL, {"number": 1, "command": "save"})
    running.join()

    saved = [v["step"] for v in said(place) if v["event"] == "saved"]
    assert len(saved) == 1 and 1 <= saved[0] < 60


def test_an_error_that_another_try_would_meet_again_is_not_tried_again(place):
    packed = Path(place.root) / "packed" / "spec.yaml"
    packed.write_text(SPEC.with_values({"data.path": "/no/such/rows.jsonl"}).to_yaml())

    with pytest.raises(DataError) as error:
        work({"place": place.url})
    assert read_json(place, ERROR) == error.value.as_dict()
    work({"place": place.url})  # Ray starts it again: it returns at once


def test_a_machine_that_does_not_see_the_storage_or_lacks_packages_says_so(place, tmp_path):
    with pytest.raises(ClusterError, match="does not see the storage"):
        order_in(Storage(str(tmp_path / "elsewhere")))
    lacking = Order(workers=1, gpus=False, needs=("torch<1",))
    write_json(place, ORDER, lacking.model_dump(mode="json"))
    with pytest.raises(ClusterError, match="cannot train: torch is .*, not <1"):
        order_in(place)


def test_a_drivers_error_is_its_last_line(tmp_path, capsys):
    assert driver.main([str(tmp_path / "nowhere")]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last.removeprefix("ADAPTER STUDIO ERROR "))["kind"] == "cluster"


def test_what_ray_failed_with_becomes_a_sentence():
    ours = RuntimeError("wrapped")
    ours.__cause__ = DataError("Row 3 is empty.")
    failed = RuntimeError("Training failed")
    failed.worker_failures = {0: RuntimeError("gloo"), 1: ours}  # type: ignore[attr-defined]
    assert driver._cause(failed).text == "Row 3 is empty."

    failed.worker_failures = {0: RuntimeError("gloo")}  # type: ignore[attr-defined]
    found = driver._cause(failed)
    assert isinstance(found, RunError) and "4 times on the cluster" in found.text
    assert isinstance(driver._cause(RuntimeError("controller gone")), ProcessLost)
