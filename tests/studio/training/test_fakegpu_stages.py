"""Stages of runs on a simulated GPU: every method's steps, siblings, preflight, a full memory."""

import json
from unittest import mock

import pytest

from studio.errors import OutOfMemory, WeightsTooLarge
from studio.methods import methods
from studio.spec import RunSpec
from studio.training.preflight import REPORT, preflight
from studio.training.siblings import Sibling, train_siblings
from studio.training.train_run import train
from studio.training.training_events import Finished, Loading, Step
from tests.fakegpu import fake_gpu, log
from tests.studio.training.conftest import make_session
from tests.studio.training.test_fakegpu import BASE

WAYS = {
    "packed": {},
    "padded": {"packing": False},
    "checkpointing": {"gradient_checkpointing": True},
    "offloading": {"gradient_checkpointing": True, "activation_offloading": True},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
}
OWN = {"prompt_tuning": {"prompt_tuning_init": "RANDOM"}, "bitfit": {"create_missing": True}}


def steps(device, method, way):
    given = {"max_steps": 2, "per_device_train_batch_size": 4, **WAYS[way]}
    if device == "cpu":
        given.pop("activation_offloading", None)
    spec = {"method": {"name": method, **OWN.get(method, {})}, "train": given}
    session = make_session(device=device, **spec)
    return [n for event in (session.step(), session.step()) for n in (event.loss, event.grad_norm)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", [name for name in methods() if name != "qlora"])
def test_two_steps_of_every_method_are_those_of_the_cpu(method, way):
    expected = steps("cpu", method, way)
    with fake_gpu():
        found = steps("cuda:0", method, way)
    assert found == pytest.approx(expected, rel=1e-4)


def spec_of(device, **changes):
    return RunSpec.parse(BASE).with_values({"train.device": device, **changes})


def test_siblings_train_together_as_on_the_cpu(tmp_path, home):
    def losses(device):
        runs = [
            Sibling(spec_of(device, **{"train.learning_rate": rate, "model.dtype": "float32"}),
                    tmp_path / f"{device[:3]}-{rate}", lambda: None)
            for rate in (1e-3, 1e-4)
        ]  # fmt: skip
        found = list(train_siblings(runs, home=home))
        assert not [event for _, event in found if isinstance(event, Exception)]
        return [(number, e.loss) for number, e in found if isinstance(e, Step)]

    expected = losses("cpu")
    with fake_gpu():
        found = losses("cuda:0")
    assert len(found) == 4 and found == [(n, pytest.approx(x, rel=1e-4)) for n, x in expected]


def test_preflight_measures_reserved_memory_and_the_context(tmp_path, home):
    """Reserved are 130 MiB; of what is taken beside torch's 2 MiB, 450 MB may be the context."""
    spec = spec_of("cuda:0")
    with fake_gpu(free=11 << 30):
        *_, last = preflight(spec, run_dir=tmp_path, home=home)
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["measured"] and report["device"] == "cuda:0"
    assert sum(report["parts"].values()) == pytest.approx((130 << 20) + 450_000_000, rel=0.001)
    assert "Peak 559 MiB" in last.note


def test_a_full_memory_at_any_stage_is_one_sentence_with_what_helps(tmp_path, home):
    """Loading, attaching, forward, backward, optimizer, evaluation and samples of a short run."""
    spec = spec_of("cuda:0", **{"train.max_steps": 1, "train.eval_steps": 1})

    def run(name):
        with fake_gpu():
            return list(train(spec, run_dir=tmp_path / name, home=home))

    run("whole")
    launches, seen = log.all, set()
    for tenth in range(11):
        with mock.patch.object(log, "full_at", max(1, launches * tenth // 10)):
            with pytest.raises(OutOfMemory) as caught:
                run(f"full-{tenth}")
        text = caught.value.text
        assert isinstance(caught.value, WeightsTooLarge) or "per_device_train_batch_size=2" in text
        assert any(w in text for w in ("do not fit", "before the", "at step 1")), text
        seen.add(next(w for w in ("do not fit", "before the first", "at step 1") if w in text))
    assert "at step 1" in seen


def test_a_run_goes_on_with_smaller_batches_after_its_memory_was_full(tmp_path, home):
    changes = {"model.dtype": "float32", "train.retry_when_out_of_memory": True}

    def run(device):
        folder = tmp_path / f"{device[:3]}-{log.full_at}"
        return list(train(spec_of(device, **changes), run_dir=folder, home=home))

    expected = [event.loss for event in run("cpu") if isinstance(event, Step)]
    with fake_gpu():
        run("cuda:0")
        launches = log.all
    with fake_gpu(), mock.patch.object(log, "full_at", launches // 3):
        events = run("cuda:0")
    texts = [event.text for event in events if isinstance(event, Loading)]
    retry = "Out of memory; retrying with per_device_train_batch_size 2"
    assert [text for text in texts if text.startswith(retry)]
    assert isinstance(events[-1], Finished)
    losses = [event.loss for event in events if isinstance(event, Step)]
    assert losses[-2:] == pytest.approx(expected, rel=1e-4)
