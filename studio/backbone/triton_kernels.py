"""Triton kernels of RMSNorm, SwiGLU, rotary positions, NF4 products and the head's loss.

Each has the name and the arguments of its plain form (`linear_kernels.PLAIN`), which takes two to
eight launches. All compute in float32 and round when they store. Only `training/kernel_check.py`
imports this module, and only where Triton is installed.

An NF4 weight is stored as bitsandbytes does: two numbers a byte, the first in its high half; one
scale per block of a row, itself in 8 bit with a scale per group of blocks.

Shapes: `T tokens, D hidden, F inner, H heads, E head_dim, C rows of logits, V vocabulary, I
in_features, O out_features`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from studio.backbone.linear_kernels import PLAIN

FLAT_BLOCK, HEAD_BLOCK, NF4_BLOCK = 1024, 4096, 64


@triton.jit
def _rms_norm(x, weight, y, inverse, stride, width, epsilon, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = at < width
    wide = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + epsilon)
    # Llama rounds before it multiplies by the weight.
    normed = (wide * scale).to(y.dtype.element_ty).to(tl.float32)
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + at, (gain * normed).to(y.dtype.element_ty), mask=inside)
    tl.store(inverse + row, scale)


@triton.jit
def _rms_norm_gradient(
    x, weight, inverse, outer, grad, x_stride, outer_stride, width, BLOCK: tl.constexpr
):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = at < width
    scale = tl.load(inverse + row)
    normed = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32) * scale
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    wide = tl.load(outer + row * outer_stride + at, mask=inside, other=0.0).to(tl.float32) * gain
    found = (wide - normed * (tl.sum(wide * normed, 0) / width)) * scale
    tl.store(grad + row * width + at, found.to(grad.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu(gate, up, y, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, (g * tl.sigmoid(g) * u).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_gradient(gate, up, outer, of_gate, y, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(outer + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    kind = y.dtype.element_ty
    tl.store(y + at, (g * s * u).to(kind), mask=inside)
    tl.store(outer + at, (d * g * s).to(kind), mask=inside)
    tl.store(of_gate + at, (d * u * s * (1 + g * (1 - s))).to(kind), mask=inside)


@triton.jit
def _rotated(
    x, cos, sin, y, head_stride, token_stride, cos_stride, sin_stride, heads, half,
    BACK: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token, at = tl.program_id(0).to(tl.int64), tl.arange(0, HALF)
    head = tl.arange(0, HEADS).to(tl.int64)
    inside = at < half
    cos, sin = cos + token * cos_stride + at, sin + token * sin_stride + at
    cos_low = tl.load(cos, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos_high = tl.load(cos + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_low = tl.load(sin, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_high = tl.load(sin + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    mask = (head < heads)[:, None] & inside[None, :]
    x += token * token_stride + head[:, None] * head_stride + at[None, :]
    low = tl.load(x, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(x + half, mask=mask, other=0.0).to(tl.float32)
    if BACK:
        first, second = low * cos_low + high * sin_high, high * cos_high - low * sin_low
    else:
        first, second = low * cos_low - high * sin_low, high * cos_high + low * sin_high
    kind = y.dtype.element_ty
    y += (token * heads + head[:, None]) * (2 * half) + at[None, :]
    tl.store(y, first.to(kind), mask=mask)
    tl.store(y + half, second.to(kind), mask=mask)


@triton.jit
def _loss_and_gradient(
    logits, targets, losses, stride, vocabulary, smoothing,
    SMOOTHED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    largest, total, wanted = -float("inf"), 0.0, 0.0
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at, mask=at < vocabulary, other=-float("inf")).to(tl.float32)
        # Not loaded by its place: in the second loop another thread overwrites it.
        own = tl.where(at == target, (1 - smoothing) * x, 0.0)
        if SMOOTHED:
            own += tl.where(at < vocabulary, smoothing / vocabulary * x, 0.0)
        wanted += tl.sum(own, 0)
        higher = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(x - higher), 0)
        largest = higher
    tl.store(losses + row, tl.log(total) + largest - wanted)
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at, mask=at < vocabulary, other=0.0).to(tl.float32)
        found = tl.exp(x - largest) / total - tl.where(at == target, 1 - smoothing, 0.0)
        if SMOOTHED:
            found -= smoothing / vocabulary
        tl.store(logits + at, found.to(logits.dtype.element_ty), mask=at < vocabulary)


@triton.jit
def _nf4_halves(
    packed, scales, code, groups, group_code, offset, row, inside, block, width,
    GROUP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Return the numbers at even and at odd places of one block of some rows, in float32."""
    at = row * (width // SIZE) + block
    scale = tl.load(scales + at, mask=inside, other=0).to(tl.int32)
    scale = tl.load(group_code + scale) * tl.load(groups + at // GROUP, mask=inside, other=0.0)
    scale = (scale + tl.load(offset))[:, None]
    half = tl.arange(0, SIZE // 2)
    place = row * (width // 2) + block * (SIZE // 2)
    both = tl.load(packed + place[:, None] + half[None, :], mask=inside[:, None], other=0)
    both = both.to(tl.int32)
    return tl.load(code + (both >> 4)) * scale, tl.load(code + (both & 15)) * scale


@triton.jit
def _nf4_product(
    x, packed, scales, code, groups, group_code, offset, bias, y, stride, tokens, outputs, width,
    BIASED: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    parts = tl.cdiv(outputs, ROWS)
    token = (tl.program_id(0) // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = (tl.program_id(0) % parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here, inside = token < tokens, row < outputs
    half = tl.arange(0, SIZE // 2)
    total = tl.zeros((ROWS, ROWS), dtype=tl.float32)
    for block in range(width // SIZE):
        even, odd = _nf4_halves(packed, scales, code, groups, group_code, offset, row, inside,
                                block, width, GROUP, SIZE)  # fmt: skip
        place = x + token[:, None] * stride + block * SIZE + 2 * half[None, :]
        x_even = tl.load(place, mask=here[:, None], other=0.0)
        x_odd = tl.load(place + 1, mask=here[:, None], other=0.0)
        even, odd = even.to(x_even.dtype), odd.to(x_odd.dtype)
        if WIDE:
            x_even, x_odd = x_even.to(tl.float32), x_odd.to(tl.float32)
            even, odd = even.to(tl.float32), odd.to(tl.float32)
        total = tl.dot(x_even, tl.trans(even), total, input_precision="ieee")
        total = tl.dot(x_odd, tl.trans(odd), total, input_precision="ieee")
    if BIASED:
        total += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)[None, :]
    mask = here[:, None] & inside[None, :]
    tl.store(y + token[:, None] * outputs + row[None, :], total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _nf4_gradient(
    outer, packed, scales, code, groups, group_code, offset, grad, stride, tokens, outputs, width,
    ADDS: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    parts = width // SIZE
    token = (tl.program_id(0) // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(0) % parts
    here, half = token < tokens, tl.arange(0, SIZE // 2)
    place = grad + token[:, None] * width + block * SIZE + 2 * half[None, :]
    first = tl.zeros((ROWS, SIZE // 2), dtype=tl.float32)
    second = tl.zeros((ROWS, SIZE // 2), dtype=tl.float32)
    if ADDS:
        first += tl.load(place, mask=here[:, None], other=0.0).to(tl.float32)
        second += tl.load(place + 1, mask=here[:, None], other=0.0).to(tl.float32)
    for start in range(0, outputs, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        inside = row < outputs
        even, odd = _nf4_halves(packed, scales, code, groups, group_code, offset, row, inside,
                                block, width, GROUP, SIZE)  # fmt: skip
        g = tl.load(outer + token[:, None] * stride + row[None, :],
                    mask=here[:, None] & inside[None, :], other=0.0)  # fmt: skip
        even, odd = even.to(g.dtype), odd.to(g.dtype)
        if WIDE:
            g, even, odd = g.to(tl.float32), even.to(tl.float32), odd.to(tl.float32)
        first = tl.dot(g, even, first, input_precision="ieee")
        second = tl.dot(g, odd, second, input_precision="ieee")
    kind = grad.dtype.element_ty
    tl.store(place, first.to(kind), mask=here[:, None])
    tl.store(place + 1, second.to(kind), mask=here[:, None])


def rms_norm(x_TD: Tensor, weight_D: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return `(T, D)` and `1 / √(mean x² + ε)` as `(T, 1)` in float32."""
    x_TD = _rows(x_TD)
    y_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    inverse_T1 = torch.empty(len(x_TD), 1, dtype=torch.float32, device=x_TD.device)
    sizes = (x_TD.stride(0), x_TD.shape[1], epsilon)
    _run(_rms_norm, len(x_TD), x_TD, weight_D.contiguous(), y_TD, inverse_T1, *sizes,
         **_block(x_TD.shape[1]))  # fmt: skip
    return y_TD, inverse_T1


def rms_norm_gradient(
    x_TD: Tensor, weight_D: Tensor, inverse_T1: Tensor, outer_TD: Tensor
) -> Tensor:
    """Return the gradient of `x` `(T, D)`."""
    x_TD, outer_TD = _rows(x_TD), _rows(outer_TD)
    grad_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    sizes = (x_TD.stride(0), outer_TD.stride(0), x_TD.shape[1])
    _run(_rms_norm_gradient, len(x_TD), x_TD, weight_D.contiguous(), inverse_T1.contiguous(),
         outer_TD, grad_TD, *sizes, **_block(x_TD.shape[1]))  # fmt: skip
    return grad_TD


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """Return `silu(gate) ⊙ up`, `(T, F)`."""
    gate_TF, up_TF = gate_TF.contiguous(), up_TF.contiguous()
    inner_TF, count = torch.empty_like(gate_TF), gate_TF.numel()
    _run(_swiglu, triton.cdiv(count, FLAT_BLOCK), gate_TF, up_TF, inner_TF, count, BLOCK=FLAT_BLOCK)
    return inner_TF


def swiglu_gradient(gate_TF: Tensor, up_TF: Tensor, outer_TF: Tensor, of_gate_TF: Tensor) -> Tensor:
    """Return `silu(gate) ⊙ up`; replace its gradient by that of `up`, and fill that of `gate`."""
    gate_TF, up_TF = gate_TF.contiguous(), up_TF.contiguous()
    inner_TF, count = torch.empty_like(gate_TF), gate_TF.numel()
    written = [each.contiguous() for each in (outer_TF, of_gate_TF)]
    _run(_swiglu_gradient, triton.cdiv(count, FLAT_BLOCK), gate_TF, up_TF, *written, inner_TF,
         count, BLOCK=FLAT_BLOCK)  # fmt: skip
    for own, copied in zip((outer_TF, of_gate_TF), written, strict=True):
        if copied is not own:
            own.copy_(copied)
    return inner_TF


def rotated(x: Tensor, cos_TE: Tensor, sin_TE: Tensor, back: bool) -> Tensor:
    """Return `x` `(1, H, T, E)` rotated by its position, or `back` for gradients."""
    x, cos_TE, sin_TE = (_rows(each) for each in (x, cos_TE, sin_TE))
    _, heads, tokens, width = x.shape
    y = torch.empty(tokens, heads, width, dtype=x.dtype, device=x.device)
    strides = (x.stride(1), x.stride(2), cos_TE.stride(0), sin_TE.stride(0))
    wide, half = triton.next_power_of_2(heads), triton.next_power_of_2(width // 2)
    _run(_rotated, tokens, x, cos_TE, sin_TE, y, *strides, heads, width // 2, BACK=back, HEADS=wide,
         HALF=half, num_warps=min(16, max(4, wide * half // 512)))  # fmt: skip
    return y.transpose(0, 1)[None]


def loss_and_gradient(logits_CV: Tensor, targets_C: Tensor, smoothing: float) -> Tensor:
    """Return the losses `(C,)` in float32; replace the logits by their gradient in place."""
    rows = _rows(logits_CV)
    losses_C = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    block = min(HEAD_BLOCK, triton.next_power_of_2(rows.shape[1]))
    _run(_loss_and_gradient, len(rows), rows, targets_C.contiguous(), losses_C, rows.stride(0),
         rows.shape[1], smoothing, SMOOTHED=smoothing > 0, BLOCK=block, num_warps=8)  # fmt: skip
    if rows is not logits_CV:
        logits_CV.copy_(rows)
    return losses_C


def nf4_product(x_TI: Tensor, weight: Any, bias_O: Tensor | None) -> Tensor:
    """Return `x Wᵀ + b`, `(T, O)`; other layouts than those of QLoRA take the plain form."""
    if not _is_nf4(weight, bias_O):
        return PLAIN["nf4_product"](x_TI, weight, bias_O)
    x_TI, (outputs, width) = _rows(x_TI), weight.quant_state.shape
    y_TO = torch.empty(len(x_TI), outputs, dtype=x_TI.dtype, device=x_TI.device)
    bias = y_TO if bias_O is None else bias_O.contiguous()
    programs = triton.cdiv(len(x_TI), NF4_BLOCK) * triton.cdiv(outputs, NF4_BLOCK)
    sizes = (x_TI.stride(0), len(x_TI), outputs, width)
    _run(_nf4_product, programs, x_TI, *_nf4_parts(weight), bias, y_TO, *sizes,
         BIASED=bias_O is not None, **_nf4_sizes(x_TI, weight))  # fmt: skip
    return y_TO


def nf4_gradient(outer_TO: Tensor, weight: Any, grad_TI: Tensor | None) -> Tensor:
    """Return `g W`, `(T, I)`, added to the gradient so far, in place, if there is one."""
    if not _is_nf4(weight, grad_TI) or (grad_TI is not None and not grad_TI.is_contiguous()):
        return PLAIN["nf4_gradient"](outer_TO, weight, grad_TI)
    outer_TO, (outputs, width) = _rows(outer_TO), weight.quant_state.shape
    like = {"dtype": outer_TO.dtype, "device": outer_TO.device}
    own_TI = torch.empty(len(outer_TO), width, **like) if grad_TI is None else grad_TI
    programs = triton.cdiv(len(outer_TO), NF4_BLOCK) * (width // weight.quant_state.blocksize)
    sizes = (outer_TO.stride(0), len(outer_TO), outputs, width)
    _run(_nf4_gradient, programs, outer_TO, *_nf4_parts(weight), own_TI, *sizes,
         ADDS=grad_TI is not None, **_nf4_sizes(outer_TO, weight))  # fmt: skip
    return own_TI


def _is_nf4(weight: Any, added: Tensor | None) -> bool:
    """Return True for NF4 with doubly quantised scales, in rows of whole blocks."""
    state = weight.quant_state
    plain = state.quant_type == "nf4" and state.nested and len(state.shape) == 2
    whole = plain and state.shape[1] % state.blocksize == 0 and weight.dtype == torch.uint8
    return bool(whole and (added is None or added.device == weight.device))


def _nf4_parts(weight: Any) -> tuple[Tensor, ...]:
    """Return bytes and scales of a weight, its code, the scales of scales, their code, offset."""
    state = weight.quant_state
    inner = state.state2
    return weight.data, state.absmax, state.code, inner.absmax, inner.code, state.offset


def _nf4_sizes(x: Tensor, weight: Any) -> dict[str, Any]:
    """Return the sizes of blocks; products of the interpreter are in float32."""
    state, wide = weight.quant_state, x.dtype == torch.float32 or x.device.type != "cuda"
    return {"WIDE": wide, "GROUP": state.state2.blocksize, "SIZE": state.blocksize,
            "ROWS": NF4_BLOCK}  # fmt: skip


def _run(kernel: Any, programs: int, first: Tensor, *args: Any, **how: Any) -> None:
    """Launch a kernel on the device of its first tensor, which need not be the current one."""
    if not programs:
        return
    if first.device.type != "cuda":  # the interpreter
        kernel[(programs,)](first, *args, **how)
        return
    with torch.cuda.device(first.device):
        kernel[(programs,)](first, *args, **how)


def _rows(x: Tensor) -> Tensor:
    """Return a tensor whose last dimension is contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _block(width: int) -> dict[str, int]:
    """Return the block that holds a row, and the warps for it."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}


KERNELS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        rms_norm, rms_norm_gradient, swiglu, swiglu_gradient, rotated, loss_and_gradient,
        nf4_product, nf4_gradient,
    )
}  # fmt: skip
