"""A session: float16 gradients reach the adapter, the balance of routers by hand."""

from types import SimpleNamespace

import pytest
import torch

from studio.training.training_session import ExpertBalance, Session, evenness, forward_backward

SPEC = {
    "method": {"name": "lora", "r": 4},
    "train": {
        "max_steps": 1, "per_device_train_batch_size": 4, "eval_steps": -1, "max_grad_norm": 0,
        "gradient_accumulation_steps": 4,
    },
}  # fmt: skip


def gradient(own: Session, scale: int | None = None) -> tuple[torch.Tensor, float]:
    """Return the step's gradient of the B matrices, and its norm as the step reports it."""
    passed = forward_backward(own)
    norm = own._reduce_and_clip(passed.scale if scale is None else scale)
    parts = [p.grad.flatten() for p in own.parameters if p.grad is not None and p.grad.any()]
    return torch.cat(parts), float(norm)


def test_the_gradient_in_float16_is_that_of_float32(session, monkeypatch):
    """With 100,000 targets a step (a multiple of the few here), float16 would flush most to 0."""
    exact, norm = gradient(session(**SPEC))
    half = session(**SPEC)
    half.loaded.model.to(torch.float16)
    half.loaded.dtype = torch.float16
    close, close_norm = gradient(half)
    assert torch.nn.functional.cosine_similarity(exact, close, dim=0) > 0.999
    assert close_norm == pytest.approx(norm, rel=0.01)

    many = 100_000  # as if the loss were divided by so many before the backward pass
    for parameter in half.parameters:
        parameter.grad = None
    half.progress.step = 0
    monkeypatch.setattr(Session, "sum_over_ranks", lambda self, value: many)
    with_scale, _ = gradient(half)
    for parameter in half.parameters:
        parameter.grad = None
    monkeypatch.setattr(Session, "gradient_scale", lambda self, targets: 1)
    without, _ = gradient(half)
    similar = torch.nn.functional.cosine_similarity
    assert similar(exact, with_scale, dim=0) > 0.999
    assert len(without) != len(exact) or similar(exact, without, dim=0) < 0.99


def test_evenness_is_the_entropy_as_a_part_of_its_largest_value():
    assert evenness(torch.tensor([5, 5, 5, 5])) == pytest.approx(1)
    assert evenness(torch.tensor([9, 0, 0, 0])) == 0
    assert evenness(torch.tensor([4, 4, 0, 0])) == pytest.approx(0.5)  # log 2 / log 4


def test_each_step_counts_its_own_tokens_and_unused_experts_are_named_at_the_end():
    layer = SimpleNamespace(key="layers.0.experts", tokens_E=torch.tensor([3, 3]))
    balance, sibling = ExpertBalance([layer]), ExpertBalance([layer])
    balance.begin_step()
    layer.tokens_E += torch.tensor([2, 0])
    assert balance.of_step() == 0
    sibling.begin_step()
    layer.tokens_E += torch.tensor([0, 7])
    assert sibling.of_step() == 0
    balance.begin_step()
    layer.tokens_E += torch.tensor([4, 0])
    assert balance.of_step() == 0
    site = SimpleNamespace(key="layers.0.experts.down_proj", num_experts=2)
    adapter = SimpleNamespace(sites=[site])
    assert "1 of 2 experts saw no token" in balance.warning(adapter, steps=2, processes=1)
    assert balance.warning(adapter, steps=7, processes=1) == "", "resumed at step 5"
    assert balance.warning(adapter, steps=2, processes=2) == "", "rank 0 saw a half"
    balance.begin_step()
    layer.tokens_E += torch.tensor([0, 1])
    assert balance.of_step() == 1 - 1
    assert balance.warning(adapter, steps=3, processes=1) == ""


def test_a_dense_model_has_no_balance():
    assert ExpertBalance([]).of_step() is None
