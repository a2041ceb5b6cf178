"""The nodes of linear layers: outputs and gradients are those of the separate operations."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from studio.backbone.linear_kernels import Linears, LowRankDelta, project, row_norms
from studio.backbone.sites import Site


def low_rank_linear(x, weight, bias, *factors, transposed=False, **fields):
    """Return `x` through one linear with one delta."""
    module = Conv1D(1, 1) if transposed else nn.Linear(1, 1)
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    site = Site("it", "linear", module, 0, 1, 1, transposed)
    span = (0, x.numel() // x.shape[-1])
    delta = LowRankDelta(lambda: factors, span, gain=len(factors) > 2, **fields)
    return project(x, Linears([site], [delta]))[0]


def plain(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor,
    b: torch.Tensor, *, transposed: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The same in separate operations."""
    base = linear(x, weight.T if transposed else weight, bias)
    return base + linear(linear(x.to(a.dtype), a), b).to(base.dtype)


def make(
    dtype: torch.dtype, *, transposed: bool, biased: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    weight = torch.randn((5, 7) if transposed else (7, 5))
    return (
        torch.randn(2, 3, 5).to(dtype).requires_grad_(),
        weight.to(dtype),
        torch.randn(7).to(dtype) if biased else None,
        torch.randn(2, 5).requires_grad_(),
        torch.randn(7, 2).requires_grad_(),
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_output_and_gradients_equal_the_plain_twin(transposed, biased):
    results = []
    for function in (plain, low_rank_linear):
        x, weight, bias, a, b = make(torch.float32, transposed=transposed, biased=biased)
        y = function(x, weight, bias, a, b, transposed=transposed)
        y.pow(2).sum().backward()
        results.append((y, x.grad, a.grad, b.grad))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_gradients_equal_finite_differences():
    torch.manual_seed(0)
    x, a, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True)
               for s in ((3, 4), (2, 4), (5, 2)))  # fmt: skip
    weight = torch.randn(5, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, a, b: low_rank_linear(x, weight, None, a, b), (x, a, b)
    )
    dropout = {"dropout": 0.5, "seed": 7}
    assert torch.autograd.gradcheck(
        lambda x, a, b: low_rank_linear(x, weight, None, a, b, **dropout), (x, a, b)
    )


@pytest.mark.parametrize("biased", [False, True])
def test_dora_equals_its_formula(biased):
    x, weight, bias, a, b = make(torch.float32, transposed=False, biased=biased)
    magnitude = torch.rand(7).add_(0.5).requires_grad_()
    torch.testing.assert_close(row_norms(weight, a, b), (weight + b @ a).norm(dim=1))
    found = []
    for one_node in (True, False):
        if one_node:
            y = low_rank_linear(x, weight, bias, a, b, magnitude)
        else:
            norms = (weight + b @ a).norm(dim=1).detach()
            y = linear(x, (magnitude / norms)[:, None] * (weight + b @ a), bias)
        leaves = [x, a, b, magnitude]
        found.append([y, *torch.autograd.grad(y.pow(2).sum(), leaves)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_linears_of_one_input_equal_each_of_them_alone():
    torch.manual_seed(0)
    sites = [
        Site(f"{n}", "linear", nn.Linear(6, width).requires_grad_(False), 0, 6, width)
        for n, width in enumerate((5, 3, 4))
    ]
    spans, found = [(0, 4), (4, 9)], []
    leaves = [
        (torch.randn(2, 6, requires_grad=True), torch.randn(s.out_features, 2, requires_grad=True))
        for s in sites
        for _ in spans
    ]
    x = torch.linspace(-1, 1, 54).reshape(9, 6).requires_grad_()
    for together in (True, False):
        deltas = [
            LowRankDelta(lambda own=leaves[2 * n + s]: own, span, n if together else 0)
            for n in range(3)
            for s, span in enumerate(spans)
        ]
        groups = [(sites, deltas)] if together else [
            ([sites[n]], deltas[2 * n : 2 * n + 2]) for n in range(3)
        ]  # fmt: skip
        ys = [y for own, beside in groups for y in project(x, Linears(own, beside))]
        loss = sum(y.pow(2).sum() for y in ys)
        found.append([*ys, *torch.autograd.grad(loss, [x, *(f for pair in leaves for f in pair)])])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def test_low_precision_keeps_the_parameters_gradients_in_float32():
    x, weight, bias, a, b = make(torch.bfloat16, transposed=False, biased=True)
    y = low_rank_linear(x, weight, bias, a, b)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert a.grad is not None
    assert a.grad.dtype == torch.float32
    torch.testing.assert_close(y, plain(x, weight, bias, a, b), rtol=5e-2, atol=1e-1)

    frozen = x.detach()  # the input below the first trained layer
    low_rank_linear(frozen, weight, bias, a, b).sum().backward()
    assert frozen.grad is None


def test_a_training_lora_is_one_node_and_leaves_nothing_behind():
    from studio.backbone import Backbone
    from studio.methods.lora import Lora
    from tests.studio.tiny import tiny_model

    backbone = Backbone(tiny_model("llama"))
    adapter = backbone.attach("a", Lora(r=4))
    for parameter in adapter.parameters():
        parameter.data += 0.1
    backbone.use([("a", 0.5)])
    ids = torch.tensor([[3, 5, 8, 13]])
    expected = backbone.model(ids).logits
    backbone.train("a")
    site = adapter.sites[0]
    assert "forward" in vars(site.module)
    torch.testing.assert_close(backbone.model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    with backbone.evaluating():
        assert "forward" not in vars(site.module)
    backbone.use([])
    assert all("forward" not in vars(s.module) for s in adapter.sites)
