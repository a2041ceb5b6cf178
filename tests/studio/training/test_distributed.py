"""Several processes give what one gives: same losses, stop, resume by any number, honest deaths."""

import json
import queue
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from studio import hardware
from studio.adapters.library import PASSPORT
from studio.errors import DiskFull, InputError, ProcessLost, RunError
from studio.home import open_home
from studio.job_request import Command
from studio.spec import RunSpec
from studio.training import distributed
from studio.training.distributed import _Ranks
from studio.training.train_run import train
from studio.training.training_events import Evaluated, Event, Finished, Started, Step
from tests.studio.tiny import tiny_spec
from tests.studio.training.test_fakegpu import BASE


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory):
    train = {"device": "cpu", "max_steps": 6, "num_samples": 0, "eval_steps": 3}
    values = {f"train__{name}": value for name, value in train.items()}
    return tiny_spec(tmp_path_factory.mktemp("team"), **values)


def _spec(ingredients: RunSpec, method: str, processes: int) -> RunSpec:
    return ingredients.with_values({"method.name": method, "train.num_processes": processes})


def _losses(events: list[Event]) -> list[tuple[int, float]]:
    return [(event.step, event.loss) for event in events if isinstance(event, Step)]


def _members() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if _is_member(child)]


def _is_member(process: psutil.Process) -> bool:
    try:
        return "studio.training.distributed_rank" in process.cmdline()
    except psutil.Error:  # another test's child that just ended
        return False


def test_two_processes_stopped_and_resumed_by_one_equal_one(ingredients, home, tmp_path):
    other = open_home(tmp_path / "other")
    alone = list(train(_spec(ingredients, "lora", 1), run_dir=tmp_path / "one", home=other))
    seen = 0

    def stop_at_three() -> Command:
        return "stop" if seen >= 3 else None

    first: list[Event] = []
    for event in train(
        _spec(ingredients, "lora", 2), run_dir=tmp_path / "two", home=home, control=stop_at_three
    ):
        seen = max(seen, event.step)
        first.append(event)
    rest = list(train(_spec(ingredients, "lora", 1), run_dir=tmp_path / "two", home=home))

    assert isinstance(first[-1], Finished)
    assert first[-1].reason == "stopped" or first[-1].step == 6
    together = _losses(first) + _losses(rest)
    assert [step for step, _ in together] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss in together] == pytest.approx(
        [loss for _, loss in _losses(alone)], rel=1e-4
    )
    one, two = (tmp_path / name / "adapter" for name in ("one", "two"))
    assert (two / "adapter_model.safetensors").is_file()
    passports = [json.loads((folder / PASSPORT).read_text()) for folder in (one, two)]
    assert passports[1]["self_test"] == passports[0]["self_test"] != {}, "measured by two together"
    assert not _members()


def test_a_killed_member_ends_all_and_says_which(ingredients, home, tmp_path):
    spec = _spec(ingredients, "bottleneck", 2).with_values({"train.max_steps": 100_000})
    alone = train(spec.with_values({"train.num_processes": 1}), run_dir=tmp_path / "a", home=home)
    expected = _until(alone, steps=3)

    together = train(spec, run_dir=tmp_path / "b", home=home)
    losses = _until(together, steps=3)
    victim = sorted(_members(), key=lambda process: process.pid)[1]
    victim.kill()
    with pytest.raises(ProcessLost, match="Process 2 of 2 was ended by SIGKILL"):
        list(together)

    assert losses == pytest.approx(expected, rel=1e-4)
    assert not _members()


RESET, BROKEN, FULL = (
    {"error": {"kind": kind, "text": text}}
    for kind, text in (
        ("run", "RuntimeError: Connection reset by peer"), ("run", "ValueError: broken"),
        ("disk_full", "The disk is full."),
    )
)  # fmt: skip
KILLED = "Process 2 of 2 was ended by SIGKILL"
FAILED = "Process 2 of 2 failed: ValueError: broken"


@pytest.mark.parametrize(
    ("codes", "said", "kind", "sentence"),
    [
        ([1, -9], [(0, RESET), (0, None), (1, None)], ProcessLost, KILLED),
        ([1, 1], [(0, RESET), (1, FULL)], DiskFull, "The disk is full"),
        ([-6, 1], [(1, BROKEN), (0, None), (1, None)], RunError, FAILED),
        ([1, 1], [(1, BROKEN), (1, None), (0, None)], RunError, FAILED),
    ],
    ids=["killed", "knows why", "gives up because another failed", "no known cause"],
)  # fmt: skip
def test_whoever_is_heard_first_the_member_that_began_it_is_named(codes, said, kind, sentence):
    ranks = _Ranks.__new__(_Ranks)
    ranks.size, ranks.messages = len(codes), queue.Queue()
    ranks.processes = [_Ended(code) for code in codes]  # type: ignore[misc]
    for one in said:
        ranks.messages.put(one)
    with pytest.raises(kind, match=sentence):
        list(ranks.events(lambda: None))


class _Ended:
    """A process that has ended with `code`."""

    def __init__(self, code: int) -> None:
        self.code = code

    def wait(self) -> int:
        return self.code


def _until(events: Iterator[Event], *, steps: int) -> list[float]:
    losses = []
    for event in events:
        if isinstance(event, Step):
            losses.append(event.loss)
            if len(losses) == steps:
                break
    return losses


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("lora", {"method.use_dora": True}), ("norm_tuning", {}),  # the others read less of a base
        *(pytest.param(name, {}, marks=pytest.mark.long) for name in ("lora", "bottleneck")),
    ],
    ids=["dora", "norms", "lora", "bottleneck"],
)  # fmt: skip
def test_a_shared_base_trains_as_a_whole_one(
    forked_ranks, ingredients, home, tmp_path, method, more
):
    few = {"train.max_steps": 3, "train.per_device_train_batch_size": 3, "train.num_samples": 1}
    spec = _spec(ingredients, method, 2).with_values({**few, **more})
    whole = spec.with_values({"train.num_processes": 1})

    alone = list(train(whole, run_dir=tmp_path / "one", home=home))
    shared = list(
        train(spec.with_values({"train.fsdp": True}), run_dir=tmp_path / "two", home=home)
    )

    assert [loss for _, loss in _losses(shared)] == pytest.approx(
        [loss for _, loss in _losses(alone)], rel=1e-4
    )
    assert isinstance(shared[-1], Finished)
    assert _evaluations(shared) == pytest.approx(_evaluations(alone), rel=1e-4)


def test_a_team_that_stops_early_publishes_the_best(forked_ranks, ingredients, home, tmp_path):
    spec = _spec(ingredients, "lora", 2).with_values({
        "train.max_steps": 60, "train.eval_steps": 2, "train.early_stopping_patience": 1,
        "train.learning_rate": 0.5,
    })  # fmt: skip
    events = list(train(spec, run_dir=tmp_path / "two", home=home))
    assert isinstance(events[-1], Finished)
    assert "Stopped early" in events[-1].note
    assert events[-1].eval_loss == min(_evaluations(events))
    assert (tmp_path / "two" / "adapter" / "adapter_model.safetensors").is_file()


def _evaluations(events: list[Event]) -> list[float]:
    return [event.eval_loss for event in events if isinstance(event, Evaluated)]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"train.num_processes": 1}, "set train.num_processes to two or more"),
        ({"model.quantization": "nf4"}, "cannot shard a base in 4 or 8 bit"),
        ({"method": "full"}, "set train.fsdp=false"),
        (
            {"method.target_modules": ["q_proj"], "method.modules_to_save": ["norm", "up_proj"]},
            r"modules_to_save names \S+up_proj, which train\.fsdp shards",
        ),
        ({"method": "prompt_tuning"}, "set train.fsdp=false"),
        (
            {"train.num_processes": 64, "train.fsdp": False},
            r"num_processes is 64, but this machine has \d+ processor",
        ),
    ],
)
def test_what_cannot_be_trained_so_is_refused(
    forked_ranks, ingredients, home, tmp_path, values, sentence
):
    spec = _spec(ingredients, "lora", 2).with_values({"train.fsdp": True, **values})
    with pytest.raises(InputError, match=sentence):
        list(train(spec, run_dir=tmp_path / "run", home=home))


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("fsdp", [False, True], ids=["data parallel", "FSDP"])
def test_a_run_on_two_gpus_is_the_run_on_one(fsdp, tmp_path, home, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(distributed, "RANK", (sys.executable, "-m", "tests.fake_rank"))
    cards = [
        hardware.Device(name=name, label="Fake RTX", total_bytes=12 << 30, free_bytes=12 << 30)
        for name in ("cuda:0", "cuda:1")
    ]
    monkeypatch.setattr(hardware, "_gpus", lambda: cards)

    def losses(device, **changes):
        spec = RunSpec.parse(BASE).with_values(
            {"train.device": device, "model.dtype": "float32", **changes}
        )
        events = list(train(spec, run_dir=tmp_path / device[:3], home=home))
        (started,) = [event for event in events if isinstance(event, Started)]
        assert started.device == device.partition(",")[0]
        found = [n for e in events if isinstance(e, Step) for n in (e.loss, e.grad_norm)]
        return [*found, *(e.eval_loss for e in events if isinstance(e, Evaluated))]

    found = losses("cuda:0,cuda:1", **{"train.fsdp": fsdp})
    assert len(found) == 5 and found == pytest.approx(losses("cpu"), rel=1e-4)
