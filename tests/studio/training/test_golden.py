"""What must be exactly so, whatever is made faster."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from studio.training import loop
from studio.training.batch import pack, pad
from studio.training.events import Evaluated, Event, Finished, Saved, Step
from studio.training.loss import loss_sum
from studio.training.session import Session
from tests.studio.training.conftest import make_model, make_rows
from tests.studio.training.peer import train_with_hf

CPU = torch.device("cpu")
Make = Callable[..., Session]


def run_steps(session: Session, count: int) -> list[Step]:
    return [session.step() for _ in range(count)]


def run_all(session: Session, run_dir: Path, stop_at: int | None = None) -> list[Event]:
    def control() -> loop.Command:
        return "stop" if session.progress.step == stop_at else None

    return list(loop.run(session, run_dir=run_dir, control=control))


def adapter_bytes(session: Session) -> bytes:
    return b"".join(t.numpy().tobytes() for t in session.adapter.state().values())


def test_four_small_batches_equal_one_large(session):
    large = session(train={"per_device_train_batch_size": 4, "max_steps": 5})
    small = session(
        train={
            "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 5
        }
    )  # fmt: skip
    one, four = run_steps(large, 5), run_steps(small, 5)
    assert [s.loss for s in one] == pytest.approx([s.loss for s in four], rel=1e-6)
    assert [s.grad_norm for s in one] == pytest.approx([s.grad_norm for s in four], rel=1e-5)
    for a, b in zip(large.adapter.state().values(), small.adapter.state().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)  # Adam enlarges rounding


def test_packing_equals_padding(session):
    packed = session(train={"packing": True, "max_steps": 5})
    padded = session(train={"packing": False, "max_steps": 5})
    ours, twin = run_steps(packed, 5), run_steps(padded, 5)
    assert [s.loss for s in ours] == pytest.approx([s.loss for s in twin], rel=1e-5)
    assert [s.grad_norm for s in ours] == pytest.approx([s.grad_norm for s in twin], rel=1e-4)
    assert [s.tokens for s in ours] == [s.tokens for s in twin]
    assert packed.evaluate().eval_loss == pytest.approx(padded.evaluate().eval_loss, rel=1e-5)


def test_ten_steps_equal_five_stop_resume_five_bit_for_bit(session, tmp_path):
    spec = {
        "method": {"name": "lora", "lora_dropout": 0.2},
        "train": {"max_steps": 10, "per_device_train_batch_size": 4, "save_steps": -1},
    }
    whole = session(**spec)
    events = run_all(whole, tmp_path / "whole")
    first = session(**spec)
    half = run_all(first, tmp_path / "halves", stop_at=5)
    second = session(**spec)
    rest = run_all(second, tmp_path / "halves")
    assert isinstance(half[-1], Finished)
    assert half[-1].reason == "stopped"
    assert half[-1].adapter is None
    assert adapter_bytes(whole) == adapter_bytes(second)
    steps = [e for e in events if isinstance(e, Step)]
    resumed = [e for e in [*half, *rest] if isinstance(e, Step)]
    assert [(s.step, s.loss, s.grad_norm) for s in steps] == [
        (s.step, s.loss, s.grad_norm) for s in resumed
    ]
    assert rest[-1].first_loss == events[-1].first_loss  # type: ignore[attr-defined]
    evaluated = [(e.step, e.eval_loss) for e in events if isinstance(e, Evaluated)]
    again = [(e.step, e.eval_loss) for e in [*half, *rest] if isinstance(e, Evaluated)]
    assert evaluated == again


def test_the_base_is_never_touched(session):
    own = session()

    def digest() -> str:
        state = own.loaded.model.state_dict()
        return hashlib.sha256(
            b"".join(k.encode() + v.numpy().tobytes() for k, v in state.items())
        ).hexdigest()

    before = digest()
    run_steps(own, 4)
    own.evaluate()
    assert digest() == before


def test_rows_never_leak_into_each_other(session):
    own = session()
    run_steps(own, 2)
    rows = make_rows(8, seed=3).train
    with own.backbone.evaluating():
        one = pack(rows, CPU)
        logits = own.backbone.packed_logits(one.ids_T, one.lengths, torch.arange(one.num_tokens))
        first = one.lengths[0]
        changed = one.ids_T.clone()
        changed[:first] = (changed[:first] + 11) % 97
        other = own.backbone.packed_logits(changed, one.lengths, torch.arange(one.num_tokens))
    assert torch.equal(logits[first:], other[first:])
    assert not torch.equal(logits[:first], other[:first])


def test_packed_gradients_equal_the_padded_ones(session):
    own = session()
    run_steps(own, 2)
    rows = make_rows(8, seed=5).train
    gradients = []
    for batch in (pack(rows, CPU), pad(rows, CPU)):
        own.optimizer.zero_grad()
        loss_sum(own.backbone, batch).backward()
        gradients.append([p.grad.clone() for p in own.parameters if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_nothing(session):
    train = {"max_steps": 4, "per_device_train_batch_size": 4}
    plain = run_steps(session(train=train), 4)
    saving = session(train={**train, "gradient_checkpointing": True})
    spared = run_steps(saving, 4)
    layers = saving.loaded.model.model.layers
    assert all(layer.gradient_checkpointing and layer.training for layer in layers)
    assert [s.loss for s in plain] == pytest.approx([s.loss for s in spared], rel=1e-6)
    assert [s.grad_norm for s in plain] == pytest.approx([s.grad_norm for s in spared], rel=1e-5)


def test_the_loss_falls_and_the_adapter_is_whole(session, tmp_path):
    own = session(train={"max_steps": 40, "learning_rate": 5e-3, "save_total_limit": 1})
    events = run_all(own, tmp_path)
    done = events[-1]
    assert isinstance(done, Finished)
    assert done.last_loss is not None
    assert done.first_loss is not None
    assert done.last_loss < done.first_loss - 0.3
    assert done.adapter == str(tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "MANIFEST.json", "adapter_config.json", "adapter_model.safetensors", "passport.json"
    ]  # fmt: skip
    assert len([e for e in events if isinstance(e, Saved)]) == 5
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000040"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_and_gradients_equal_hf_trainer_with_peft(session, tmp_path, accumulation):
    peft = pytest.importorskip("peft")
    own = session(
        train={
            "max_steps": 5, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant",
            "gradient_accumulation_steps": accumulation, "learning_rate": 1e-3,
        }
    )  # fmt: skip
    own.backbone.save("trained", tmp_path)
    rows = [own.prepared.train[r] for step in range(5) for r in own.plan.step_rows(step)]
    ours = run_steps(own, 5)

    model = peft.PeftModel.from_pretrained(make_model(), tmp_path, is_trainable=True)
    losses, norms = train_with_hf(model, rows, tmp_path / "hf", steps=5, accumulation=accumulation)
    assert [s.loss for s in ours] == pytest.approx(losses, rel=1e-5)
    assert [s.grad_norm for s in ours] == pytest.approx(norms, rel=1e-4)
