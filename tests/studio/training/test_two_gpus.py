"""One run on two simulated GPUs, a process each, equals the run on one."""

import sys
from pathlib import Path

import pytest

from studio import hardware
from studio.spec import RunSpec
from studio.training import distributed
from studio.training.train_run import train
from studio.training.training_events import Evaluated, Started, Step
from tests.studio.training.test_fakegpu import BASE

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
