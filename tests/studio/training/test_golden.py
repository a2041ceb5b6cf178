"""What must be exactly so, whatever is made faster."""

import hashlib

import pytest
import torch

from studio.training.batching import pack
from studio.training.training_events import Finished, Saved, Step
from studio.training.training_session import Session
from tests.studio.training.conftest import make_rows, run_all

CPU = torch.device("cpu")


def run_steps(session: Session, count: int) -> list[Step]:
    return [session.step() for _ in range(count)]


def adapter_bytes(session: Session) -> bytes:
    return b"".join(t.numpy().tobytes() for t in session.adapter.state().values())


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
