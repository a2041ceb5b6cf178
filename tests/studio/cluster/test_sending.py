"""A run is sent once, with all it needs, whatever happens in between."""

from pathlib import Path

import pytest

from studio.cluster.ray_api import ClusterFacts, NoAnswer, Ray
from studio.cluster.shared_storage import ORDER, Order, Storage, read_json, read_submission
from studio.cluster.submit import cluster_of, submit
from studio.errors import ClusterError
from studio.home import Home, publishing
from studio.spec import RunSpec
from studio.training import transfer_run
from tests.studio.tiny import tiny_spec


class Door:
    """A cluster that takes jobs, or does not answer."""

    def __init__(self, *, devices: int = 4) -> None:
        self.devices, self.answers, self.address = devices, True, "http://first:8265"
        self.taken: list[tuple[str, str]] = []

    def facts(self) -> ClusterFacts:
        return ClusterFacts(version="2.60.0", kind="GPU", devices=self.devices, free=0, machines=1)

    def submit(self, submission: str, *, place: str) -> None:
        if not self.answers:
            raise NoAnswer("Nobody answers.")
        self.taken.append((submission, place))


@pytest.fixture
def spec(tmp_path):
    return tiny_spec(tmp_path, name="A run", train__device="ray", train__num_processes=2)


def sent_to(door: Door, spec: RunSpec, run_dir: Path, home: Home) -> Storage:
    run_dir.mkdir(exist_ok=True)
    storage = str(run_dir.parent / "storage")
    sent = submit(spec, run_dir=run_dir, home=home, ray=door, storage=storage)  # type: ignore[arg-type]
    return Storage(sent.place)


def test_the_folder_on_the_storage_is_a_run_of_its_own(spec, home, tmp_path):
    door = Door()
    with publishing(tmp_path / "7" / "checkpoints" / "step-00000004") as made:
        (made / "state.json").write_text("{}")

    place = sent_to(door, spec, tmp_path / "7", home)

    ((submission, url),) = door.taken
    assert submission.startswith("a-run-7-") and url == place.url
    order = Order.model_validate(read_json(place, ORDER))
    assert (order.workers, order.gpus) == (2, True)
    assert (Path(order.model) / "config.json").is_file()
    packed = transfer_run.spec_in(place.local_path("packed", tmp_path))
    assert packed.data.path == f"{place.root}/packed/data/train/rows.jsonl"
    assert Path(packed.data.path).read_bytes() == (tmp_path / "rows.jsonl").read_bytes()
    assert packed.train.device == "auto"
    assert place.names("checkpoints") == ["step-00000004"]
    assert sorted(p.name for p in (tmp_path / "7").iterdir()) == ["checkpoints", "cluster.json"]


def test_a_run_whose_cluster_fell_silent_is_the_same_job_when_it_answers(spec, home, tmp_path):
    door = Door()
    door.answers = False
    with pytest.raises(NoAnswer):
        sent_to(door, spec, tmp_path / "7", home)
    note = read_submission(tmp_path / "7")
    assert note is not None and not note.submitted

    door.answers = True
    for _ in range(2):
        assert sent_to(door, spec, tmp_path / "7", home).url == note.place
    assert door.taken == [(note.submission, note.place)]


@pytest.mark.parametrize("known", [True, False, None])
def test_a_run_stays_with_the_cluster_that_knows_it(spec, home, tmp_path, monkeypatch, known):
    assert cluster_of(tmp_path / "7", "http://second:8265").address == "http://second:8265"
    sent_to(Door(), spec, tmp_path / "7", home)

    def status(ray: Ray, submission: str) -> tuple[str, str] | None:
        if known is None:
            raise NoAnswer("It was switched off.")
        return ("RUNNING", "") if known else None

    monkeypatch.setattr(Ray, "status", status)
    wanted = "http://first:8265" if known else "http://second:8265"
    assert cluster_of(tmp_path / "7", "http://second:8265").address == wanted


def test_a_model_goes_to_the_storage_once_for_all_runs(spec, home, tmp_path):
    places = [sent_to(Door(), spec, tmp_path / number, home) for number in ("7", "8")]

    models = {(read_json(place, ORDER) or {})["model"] for place in places}
    assert len(models) == 1
    assert len(list((tmp_path / "storage" / "models").iterdir())) == 1
    weights = tmp_path / "model" / "config.json"
    weights.write_text(weights.read_text() + " ")
    changed = sent_to(Door(), spec, tmp_path / "9", home)
    assert (read_json(changed, ORDER) or {})["model"] not in models


def test_too_few_devices_send_nothing(spec, home, tmp_path):
    with pytest.raises(ClusterError, match="num_processes is 2, but the cluster has 1 GPUs"):
        sent_to(Door(devices=1), spec, tmp_path / "7", home)
    assert not (tmp_path / "storage").exists()
    assert read_submission(tmp_path / "7") is None


def test_a_storage_that_cannot_be_written_sends_nothing(spec, home, tmp_path):
    (tmp_path / "storage").write_text("a file")
    with pytest.raises(ClusterError, match="storage cannot be written"):
        sent_to(Door(), spec, tmp_path / "7", home)
    assert read_submission(tmp_path / "7") is None
