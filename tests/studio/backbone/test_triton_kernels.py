"""Triton kernels against their plain forms, in Triton's interpreter: no card is needed."""

import os
from functools import partial

import pytest
import torch

from studio.backbone import linear_kernels
from studio.backbone.dense_weights import QuantisedLinear, dequantised
from studio.backbone.linear_kernels import PLAIN
from studio.models.quantization import quantised
from studio.training.kernel_check import TOLERANCES, Size, difference, samples
from tests.studio.training import conftest
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


def laid_out(layout, x):
    """A tensor in another layout; a quantised weight has one."""
    plain = isinstance(x, torch.Tensor) and not hasattr(x, "quant_state")
    return layout(x) if plain else x


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
            args = tuple(laid_out(layout, x) for x in args)
            error = difference(KERNELS[name], PLAIN[name], args)
            assert error <= TOLERANCES[str(dtype).removeprefix("torch.")], layout.__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["nf4_product", "nf4_gradient"])
def test_an_nf4_weight_is_read_as_its_library_reads_it(name, dtype):
    """Rows of the identity show each number of the weight, whose 300 blocks are in two groups."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    weight = quantised(torch.randn(75, 256) * torch.rand(75, 1), 4)
    weight.quant_state.dtype = dtype
    assert len(weight.quant_state.state2.absmax) == 2
    wanted = dequantised(weight)
    side = wanted.shape[1 if name == "nf4_product" else 0]
    found = KERNELS[name](torch.eye(side, dtype=dtype), weight, None)
    found = found.T if name == "nf4_product" else found
    if dtype == torch.float32:
        assert torch.equal(found, wanted)
    assert torch.allclose(found, wanted, rtol=2**-7), "the interpreter cuts where a card rounds"


@pytest.mark.parametrize("kind", ["plain scales", "rows cut blocks", "8 bit"])
def test_other_layouts_of_a_quantised_weight_take_the_plain_form(kind):
    pytest.importorskip("bitsandbytes")
    x, g = torch.randn(3, 128), torch.randn(3, 8)
    weight = quantised(torch.randn(8, 128), 8 if kind == "8 bit" else 4)
    if kind == "rows cut blocks":
        weight, x = quantised(torch.randn(8, 100), 4), x[:, :100]
    if kind == "plain scales":
        from bitsandbytes.nn import Params4bit

        weight = Params4bit(torch.randn(8, 128), compress_statistics=False, quant_type="nf4",
                            requires_grad=False, bnb_quantized=False).to("cpu")  # fmt: skip
    for name, one in (("nf4_product", x), ("nf4_gradient", g)):
        assert torch.equal(KERNELS[name](one, weight, None), PLAIN[name](one, weight, None))


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


@pytest.mark.parametrize(("smoothing", "base"), [(0.0, "none"), (0.1, "none"), (0.0, "nf4")])
def test_a_training_step_with_kernels_has_the_same_gradients(smoothing, base, monkeypatch):
    whole = {"hidden_size": 64, "intermediate_size": 128} if base == "nf4" else {}
    monkeypatch.setattr(conftest, "make_model", partial(conftest.make_model, **whole))

    def step(used):
        seen = []

        def watched(name):
            return lambda *args: seen.append(name) or used[name](*args)

        session = make_session(train={"max_steps": 1, "label_smoothing_factor": smoothing})
        if base == "nf4":
            pytest.importorskip("bitsandbytes")
            for site in session.backbone.anatomy.all_linears():
                if site.module is session.loaded.model.lm_head:
                    continue
                site.module.weight = quantised(site.module.weight.data, 4)
                site.module.__class__ = QuantisedLinear
        linear_kernels.activate(CPU, torch.float32, {name: watched(name) for name in used})
        try:
            session.forward_backward(session)
        finally:
            linear_kernels.activate(CPU, torch.float32, {})
        return [p.grad.clone() for p in session.parameters], set(seen)

    expected, _ = step({})
    found, seen = step(KERNELS)
    assert seen == {name for name in KERNELS if base == "nf4" or not name.startswith("nf4")}
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
