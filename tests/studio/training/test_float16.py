"""float16: gradients far below its smallest number reach the adapter."""

import pytest
import torch

from studio.training.training_session import Session, forward_backward

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
