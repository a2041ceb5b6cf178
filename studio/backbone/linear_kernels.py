"""Autograd nodes of frozen linear layers with trained low-rank deltas, and of gated feed-forwards.

As separate operations, `W x + B A x` saves its input twice in low precision, passes three times
over an output-sized tensor to scale and add, and lets autograd add two input gradients. One node
keeps `x` and `A x`, accumulates inside the matrix products, and computes no gradient of `W`.

- Linears that read one input (queries, keys and values; gate and up) share a node: their `A` are
  one product, and their gradients of `x` accumulate in place.
- `W` may be stored in 4 bit: it is dequantised for each product and never kept.
- Dropout keeps a seed, not a mask. DoRA scales the rows of the output by `m / ‖W + B A‖`.
- Rows of sibling adapters follow each other in a packed batch, so each adapter's tokens are one
  span: one product with `W` for all tokens, then each span's own `B A x` is added in place.
- A gated feed-forward `down(act(gate x) ⊙ up x)` keeps `gate x` and `up x` and recomputes the
  rest, in blocks of rows that stay in the processor's cache.

A plain function that has a kernel of one launch is marked `replaceable`; it stays the reference.
`activate` names the kernels of a device and precision, which are then called in its place
(`training/kernel_check.py` decides which). On any other device the plain function runs.

Adapter parameters stay float32; the products run in the input's precision, as under autocast.

Shapes: `T tokens (all leading dimensions), I in_features, O out_features, R rank, F inner`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import groupby
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from studio.backbone.dense_weights import dequantised
from studio.backbone.sites import Site

P = ParamSpec("P")
R = TypeVar("R")
Kernels = Mapping[str, Callable[..., Any]]
PLAIN: dict[str, Callable[..., Any]] = {}
"""Functions that a kernel of the same name and arguments may replace."""
_active: dict[tuple[str, torch.device, torch.dtype], Callable[..., Any]] = {}
Span = tuple[int, int]
SILU = nn.SiLU()
BLOCK_NUMBERS = 131_072  # of a row block: its tensors in 16 bit fit a second-level cache of 2 MB


def replaceable(plain: Callable[P, R]) -> Callable[P, R]:
    """Let a kernel replace a function; device and precision are those of its first argument."""
    name = plain.__name__
    PLAIN[name] = plain

    @wraps(plain)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        x: Any = args[0]
        kernel = _active.get((name, x.device, x.dtype)) if _active else None
        return (kernel or plain)(*args, **kwargs)

    return call


def activate(device: torch.device, dtype: torch.dtype, kernels: Kernels) -> None:
    """Use exactly these kernels on a device and for a precision from now on."""
    device = indexed(device)
    for key in [key for key in _active if key[1:] == (device, dtype)]:
        del _active[key]
    _active.update({(name, device, dtype): kernel for name, kernel in kernels.items()})


def indexed(device: torch.device) -> torch.device:
    """Return a device as tensors on it name it: `cuda` is the current one."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


@dataclass(frozen=True, slots=True)
class LowRankDelta:
    """A low-rank product beside one of several linears.

    Attributes:
        factors: Returns `A (R, I)`, `B (O, R)` with the scale in it, and `m (O,)` of DoRA.
        span: Its tokens.
        linear: Number of the linear.
        gain: True for DoRA, which is its linear's only delta.
        dropout: Probability that an input is zeroed.
        seed: Of the dropout's mask.
    """

    factors: Callable[[], Sequence[Tensor]]
    span: Span
    linear: int = 0
    gain: bool = False
    dropout: float = 0.0
    seed: int = 0

    def dropped(self, x_TI: Tensor) -> Tensor:
        """Return the span of `x`, zeroed by the mask and not yet rescaled."""
        part = x_TI[slice(*self.span)]
        return part * self.mask(part) if self.dropout else part

    def mask(self, part: Tensor) -> Tensor:
        """Return zeros and ones, the same each time."""
        with seeded(self.seed, part.device):
            return torch.empty_like(part).bernoulli_(1 - self.dropout)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw random numbers from a seed and leave the generators as they were; 0 changes nothing."""
    if not seed:
        yield
        return
    own = [device] if device.type in ("cuda", "xpu") else []
    with torch.random.fork_rng(own, device_type=device.type if own else "cuda"):
        torch.manual_seed(seed)
        yield


def draw_seed() -> int:
    """Return a seed that follows from torch's own generator."""
    return int(torch.randint(1, 2**62, ()))


@dataclass(slots=True)
class Linears:
    """Frozen linear layers that read one input, with the deltas beside them."""

    sites: Sequence[Site]
    deltas: Sequence[LowRankDelta] = ()
    weights: list[Any] = field(init=False)
    _dtypes: list[torch.dtype] = field(init=False)

    def __post_init__(self) -> None:
        self.weights = [site.module.weight for site in self.sites]
        self.deltas = sorted(self.deltas, key=lambda one: (one.seed, one.span))

    def factors(self) -> list[Tensor]:
        """Return the factors of every delta, as the nodes take them."""
        return [tensor for one in self.deltas for tensor in one.factors()]

    def forward(self, x_TI: Tensor, factors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return each linear's `(T, O)`, and what the backward needs beside `x`."""
        ys, kept, gained = [], [], {one.linear for one in self.deltas if one.gain}
        self._dtypes = [factor.dtype for factor in factors]
        for number in range(len(self.sites)):
            bias = None if number in gained else self._bias(number)
            if self._is_quantised(number):
                ys.append(nf4_product(x_TI, self.weights[number], bias))
                continue
            weight_IO = self._weight(number, x_TI.dtype).T
            ys.append(x_TI @ weight_IO if bias is None else torch.addmm(bias, x_TI, weight_IO))
        left = iter(factors)
        for deltas in self._bundles():
            owns = [[next(left) for _ in range(2 + one.gain)] for one in deltas]
            firsts = [own[0] for own in owns]
            a_RI = (firsts[0] if len(firsts) == 1 else torch.cat(firsts)).to(x_TI.dtype)
            seconds = [own[1].to(x_TI.dtype) for own in owns]
            h_TR = deltas[0].dropped(x_TI) @ a_RI.T
            h_TR = h_TR.div_(1 - deltas[0].dropout) if deltas[0].dropout else h_TR
            kept += [a_RI, h_TR, *seconds]
            places = a_RI.split([len(first) for first in firsts])
            for one, own, own_a, b_OR, part in zip(
                deltas, owns, places, seconds, _parts(h_TR, seconds), strict=True
            ):
                y_TO, bias = ys[one.linear], self._bias(one.linear)
                y_TO[slice(*one.span)].addmm_(part, b_OR.T)
                if one.gain:
                    norm_O = row_norms(self._weight(one.linear, x_TI.dtype), own_a, b_OR)
                    gain_O = (own[2] / norm_O).to(y_TO.dtype)
                    ys[one.linear] = y_TO.mul_(gain_O) if bias is None else y_TO * gain_O + bias
                    kept += [own[2], norm_O, y_TO]  # with the gain in it, if there is no bias
        return ys, kept

    def backward(
        self, outer: Sequence[Tensor], kept: Sequence[Tensor], reaches_x: bool,
        x_of: Callable[[Tensor | None], Tensor],
    ) -> tuple[Tensor | None, list[Tensor]]:  # fmt: skip
        """Return the gradient of `x`, if it is needed, and those of the factors.

        `outer` are the gradients of the outputs, `kept` what `forward` returned. `x_of` returns
        `x`; it is given the gradient of `x` and may overwrite it.
        """
        grads, left, dtype = list(outer), iter(kept), outer[0].dtype
        bundles, found = [], []
        for deltas in self._bundles():
            a_RI, h_TR = next(left), next(left)
            seconds, ends = [next(left) for _ in deltas], []
            for one, b_OR, part in zip(deltas, seconds, _parts(h_TR, seconds), strict=True):
                gains = []
                if one.gain:
                    m_O, norm_O, y_TO = next(left), next(left), next(left)
                    gain_O = m_O / norm_O
                    grad_O = (grads[one.linear] * y_TO).sum(0, dtype=torch.float32)
                    grad_O = grad_O / gain_O if self._bias(one.linear) is None else grad_O
                    grads[one.linear] = grads[one.linear] * gain_O.to(dtype)
                    gains = [grad_O / norm_O]
                grad_TO = grads[one.linear][slice(*one.span)]
                ends.append(grad_TO @ b_OR)
                found.append([grad_TO.T @ part, *gains])
            low_TR = ends[0] if len(ends) == 1 else torch.cat(ends, 1)
            low_TR = low_TR.div_(1 - deltas[0].dropout) if deltas[0].dropout else low_TR
            bundles.append((deltas, a_RI, low_TR, seconds))
        grad_x: Tensor | None = None
        for number, grad_TO in enumerate(grads if reaches_x else ()):
            if self._is_quantised(number):
                grad_x = nf4_gradient(grad_TO, self.weights[number], grad_x)
                continue
            weight_OI = self._weight(number, dtype)
            grad_x = grad_TO @ weight_OI if grad_x is None else grad_x.addmm_(grad_TO, weight_OI)
        for deltas, a_RI, low_TR, _ in bundles:
            if grad_x is not None:
                part_TI = grad_x[slice(*deltas[0].span)]
                if deltas[0].dropout:
                    part_TI.addcmul_(deltas[0].mask(part_TI), low_TR @ a_RI)
                else:
                    part_TI.addmm_(low_TR, a_RI)
        x_TI, firsts = x_of(grad_x) if bundles else None, []
        for deltas, _, low_TR, seconds in bundles:
            of_a = (low_TR.T @ deltas[0].dropped(x_TI)).to(self._dtypes[0])
            firsts += of_a.split([b_OR.shape[1] for b_OR in seconds])
        grads = [grad for own in zip(firsts, found, strict=True) for grad in (own[0], *own[1])]
        return grad_x, [g.to(kind) for g, kind in zip(grads, self._dtypes, strict=True)]

    def _is_quantised(self, number: int) -> bool:
        """Return True for a weight in 4 bit or 8 bit that is stored as `(O, I)`."""
        quantised = getattr(self.weights[number], "quant_state", None) is not None
        return quantised and not self.sites[number].transposed

    def _weight(self, number: int, dtype: torch.dtype) -> Tensor:
        """Return a weight as `(O, I)` in the input's precision."""
        weight = self.weights[number]
        if getattr(weight, "quant_state", None) is not None:
            weight = dequantised(weight).to(dtype)
        return weight.T if self.sites[number].transposed else weight

    def _bias(self, number: int) -> Tensor | None:
        bias: Tensor | None = self.sites[number].module.bias
        return bias

    def _bundles(self) -> list[list[LowRankDelta]]:
        """Return the deltas in groups that read the same tokens; the `A` of a group are one."""
        return [list(one) for _, one in groupby(self.deltas, key=lambda one: (one.seed, one.span))]


@replaceable
def nf4_product(x_TI: Tensor, weight: Any, bias_O: Tensor | None) -> Tensor:
    """Return `x Wᵀ + b`, `(T, O)`, of a quantised weight, which is dequantised for it."""
    weight_IO = dequantised(weight).to(x_TI.dtype).T
    return x_TI @ weight_IO if bias_O is None else torch.addmm(bias_O, x_TI, weight_IO)


@replaceable
def nf4_gradient(outer_TO: Tensor, weight: Any, grad_TI: Tensor | None) -> Tensor:
    """Return `g W`, `(T, I)`, added to the gradient so far, in place, if there is one."""
    weight_OI = dequantised(weight).to(outer_TO.dtype)
    return outer_TO @ weight_OI if grad_TI is None else grad_TI.addmm_(outer_TO, weight_OI)


def _parts(h_TR: Tensor, seconds: list[Tensor]) -> tuple[Tensor, ...]:
    """Return each delta's part of `A x`."""
    return h_TR.split([b_OR.shape[1] for b_OR in seconds], 1)


def row_norms(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor) -> Tensor:
    """Return `‖W + B A‖` per row in float32, without computing `B A`."""
    a_RI, b_OR, cross_OR = a_RI.float(), b_OR.float(), (weight_OI @ a_RI.T.to(weight_OI.dtype))
    squares_O = torch.linalg.vector_norm(weight_OI, dim=1, dtype=torch.float32).square()
    squares_O += ((2 * cross_OR.float() + b_OR @ (a_RI @ a_RI.T)) * b_OR).sum(1)
    return squares_O.clamp_min_(0).sqrt_()


class LinearsNode(torch.autograd.Function):
    """`y_n = x W_nᵀ + b_n`, and `y_n += (x_g A_gᵀ) B_gᵀ` on the span of each delta `g` of it."""

    @staticmethod
    def forward(ctx: Any, linears: Linears, x_TI: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        """Return each linear's `(T, O)`."""
        ys, kept = linears.forward(x_TI, factors)
        ctx.linears = linears
        ctx.save_for_backward(x_TI if linears.deltas else None, *kept)
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `x` and of every factor."""
        x_TI, *kept = ctx.saved_tensors
        grad_x, grads = ctx.linears.backward(
            outputs, kept, ctx.needs_input_grad[1], lambda grad_x: x_TI
        )
        return None, grad_x, *grads


def project(x: Tensor, linears: Linears) -> list[Tensor]:
    """Return the outputs of linears with their deltas, for any leading dimensions of `x`."""
    ys = LinearsNode.apply(linears, x.reshape(-1, x.shape[-1]), *linears.factors())
    return [y_TO.view(*x.shape[:-1], y_TO.shape[-1]) for y_TO in ys]


class Recomputed(torch.autograd.Function):
    """A function of tensors that keeps only its inputs for the backward."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], seed: int, *inputs: Tensor) -> Tensor:
        """Return `function(*inputs)`; 0 means none."""
        ctx.function, ctx.seed = function, seed
        ctx.save_for_backward(*inputs)
        with seeded(seed, inputs[0].device):
            return function(*inputs)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the function again, for its gradients."""
        needed = ctx.needs_input_grad[2:]
        inputs = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        with torch.enable_grad(), seeded(ctx.seed, inputs[0].device):
            result = ctx.function(*inputs)
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        found = iter(torch.autograd.grad(result, wanted, outputs[0], allow_unused=True))
        return None, None, *(next(found) if need else None for need in needed)


def recomputed(function: Callable[..., Tensor], *inputs: Tensor, seed: int = 0) -> Tensor:
    """Return `function(*inputs)`, recomputed in the backward pass with the same random numbers."""
    result: Tensor = Recomputed.apply(function, seed, *inputs)
    return result


def row_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same rows of every tensor, few enough for a processor's cache; all on a GPU."""
    rows = len(tensors[0])
    if rows and tensors[0].device.type == "cpu":
        width = max(tensor.numel() for tensor in tensors) // rows
        rows = max(1, BLOCK_NUMBERS * torch.get_num_threads() // width)
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


class GatedNode(torch.autograd.Function):
    """`down(act(gate x) ⊙ up x)`, which keeps `gate x` and `up x`."""

    @staticmethod
    def forward(
        ctx: Any, act: nn.Module, into: Linears, down: Linears, x_TI: Tensor, *factors: Tensor
    ) -> Tensor:
        """Return `(T, O)`; `into` are gate and up."""
        own = sum(2 + one.gain for one in into.deltas)
        (gate_TF, up_TF), kept_into = into.forward(x_TI, factors[:own])
        inner_TF = swiglu(gate_TF, up_TF) if _is_silu(act) else _product(act, gate_TF, up_TF)
        (y_TO,), kept_down = down.forward(inner_TF, factors[own:])
        ctx.parts, ctx.split = (act, into, down), len(kept_into)
        ctx.save_for_backward(x_TI if into.deltas else None, gate_TF, up_TF, *kept_into, *kept_down)
        return y_TO

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `x` and of the factors of gate, up and down."""
        act, into, down = ctx.parts
        x_TI, gate_TF, up_TF, *kept = ctx.saved_tensors
        silu = _is_silu(act)
        reaches_inner = ctx.needs_input_grad[3] or bool(into.deltas)
        of_gate = torch.empty_like(gate_TF) if reaches_inner else gate_TF

        def recompute(of_inner: Tensor | None) -> Tensor:
            """Return the product; replace its gradient by that of `up x`, and fill `of_gate`."""
            if of_inner is None:
                return swiglu(gate_TF, up_TF) if silu else _product(act, gate_TF, up_TF)
            if silu:
                return swiglu_gradient(gate_TF, up_TF, of_inner, of_gate)
            return _product_gradient(act, gate_TF, up_TF, of_inner, of_gate)

        split = ctx.split
        of_inner, of_down = down.backward(outputs, kept[split:], reaches_inner, recompute)
        if of_inner is None:
            return None, None, None, None, *of_down
        if not down.deltas:
            recompute(of_inner)
        grad_x, of_into = into.backward(
            [of_gate, of_inner], kept[:split], ctx.needs_input_grad[3], lambda grad_x: x_TI
        )
        return None, None, None, grad_x, *of_into, *of_down


def gated(x: Tensor, act: nn.Module, into: Linears, down: Linears) -> Tensor:
    """Return `down(act(gate x) ⊙ up x)`, for any leading dimensions of `x`."""
    flat, factors = x.reshape(-1, x.shape[-1]), (*into.factors(), *down.factors())
    y_TO: Tensor = GatedNode.apply(act, into, down, flat, *factors)
    return y_TO.view(*x.shape[:-1], y_TO.shape[-1])


@replaceable
def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """Return `silu(gate) ⊙ up`, `(T, F)`."""
    return _product(SILU, gate_TF, up_TF)


@replaceable
def swiglu_gradient(gate_TF: Tensor, up_TF: Tensor, outer_TF: Tensor, of_gate_TF: Tensor) -> Tensor:
    """Return `silu(gate) ⊙ up`; replace its gradient by that of `up`, and fill that of `gate`."""
    return _product_gradient(SILU, gate_TF, up_TF, outer_TF, of_gate_TF)


def _product(act: nn.Module, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    inner_TF = torch.empty_like(gate_TF)
    for gate, up, inner in row_blocks(gate_TF, up_TF, inner_TF):
        torch.mul(act(gate), up, out=inner)
    return inner_TF


def _product_gradient(
    act: nn.Module, gate_TF: Tensor, up_TF: Tensor, outer_TF: Tensor, of_gate_TF: Tensor
) -> Tensor:
    inner_TF = torch.empty_like(gate_TF)
    for gate, up, inner, du, dg in row_blocks(gate_TF, up_TF, inner_TF, outer_TF, of_gate_TF):
        active = act(gate)
        _activation_gradient(act, du * up, gate, out=dg)
        du.mul_(active)
        torch.mul(active, up, out=inner)
    return inner_TF


def _is_silu(act: nn.Module) -> bool:
    return type(act).__name__ in ("SiLU", "SiLUActivation")


def _activation_gradient(act: nn.Module, outer: Tensor, x: Tensor, out: Tensor) -> None:
    if _is_silu(act):
        torch.ops.aten.silu_backward.grad_input(outer, x, grad_input=out)
        return
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out.copy_(torch.autograd.grad(act(x), x, outer)[0])
