"""Triton kernels against their plain forms, in Triton's interpreter: no card is needed."""

import os

import pytest
import torch

from studio.backbone import kernels
from studio.backbone.kernels import PLAIN
from studio.training.kernel_check import TOLERANCES, Size, difference, samples
from tests.studio.training.conftest import make_session

triton = pytest.importorskip("triton", reason="Triton is not installed: it is for Linux only")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("the kernels are compiled for a card here", allow_module_level=True)

from studio.backbone import triton_kernels  # noqa: E402
from studio.backbone.triton_kernels import KERNELS  # noqa: E402

CPU = torch.device("cpu")
SIZES = {
    "odd": Size(rows=5, hidden=37, inner=29, heads=3, head_dim=10, vocabulary=101),
    "powers of two": Size(rows=4, hidden=64, inner=32, heads=4, head_dim=16, vocabulary=128),
    "one": Size(rows=1, hidden=1, inner=1, heads=1, head_dim=2, vocabulary=2),
    "no rows": Size(rows=0, hidden=8, inner=8, heads=2, head_dim=4, vocabulary=8),
}


def as_it_is(x):
    return x


def with_gaps(x):
    """The same numbers between others, along every dimension."""
    if x.dim() < 2:
        return x
    wide = torch.full([2 * size for size in x.shape], 7, dtype=x.dtype)
    place = tuple(slice(None, None, 2) for _ in x.shape)
    wide[place] = x
    return wide[place]


def between_columns(x):
    """The same numbers as the first columns of a wider tensor."""
    if x.dim() < 2:
        return x
    return torch.cat([x, torch.full_like(x, 7)], -1)[..., : x.shape[-1]]


def test_every_plain_form_has_a_kernel():
    assert set(KERNELS) == set(PLAIN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_computes_what_its_plain_form_does(name, size, dtype, monkeypatch):
    monkeypatch.setattr(triton_kernels, "FLAT_BLOCK", 16)  # several programs, the last half full
    monkeypatch.setattr(triton_kernels, "HEAD_BLOCK", 32)
    for layout in (as_it_is, with_gaps, between_columns):
        for args in samples(name, SIZES[size], CPU, dtype):
            args = tuple(layout(x) if isinstance(x, torch.Tensor) else x for x in args)
            error = difference(KERNELS[name], PLAIN[name], args)
            assert error <= TOLERANCES[str(dtype).removeprefix("torch.")], layout.__name__


def test_heads_may_lie_far_apart(tmp_path):
    far = torch.from_file(str(tmp_path / "x"), shared=True, size=2**32 + 2, dtype=torch.int8)
    x = far.as_strided((1, 3, 1, 2), (0, 2**30, 2, 1), 2**31)  # the last at 2³¹; the file is sparse
    x[:] = torch.arange(1, 7).view(1, 3, 1, 2)
    assert torch.equal(KERNELS["rotated"](x, torch.ones(1, 2), torch.zeros(1, 2), False), x)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, which computes here
def test_infinite_and_missing_logits_reach_the_loss():
    logits = torch.randn(4, 50)
    logits[0, 3], logits[1, 4], logits[2, 5] = float("inf"), float("nan"), -float("inf")
    losses = triton_kernels.loss_and_gradient(logits, torch.tensor([1, 1, 1, 1]), 0.0)
    assert losses.isfinite().tolist() == [False, False, True, True]
    assert logits[2].isfinite().all() and logits[2, 5] == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_training_step_with_kernels_has_the_same_gradients(smoothing):
    def step(used):
        seen = []

        def watched(name):
            return lambda *args: seen.append(name) or used[name](*args)

        session = make_session(train={"max_steps": 1, "label_smoothing_factor": smoothing})
        kernels.activate(CPU, torch.float32, {name: watched(name) for name in used})
        try:
            session.forward_backward(session)
        finally:
            kernels.activate(CPU, torch.float32, {})
        return [p.grad.clone() for p in session.parameters], set(seen)

    expected, _ = step({})
    found, seen = step(KERNELS)
    assert seen == set(KERNELS)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
