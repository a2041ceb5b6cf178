"""Triton kernels of RMSNorm, SwiGLU, rotary positions and the head's loss.

Each has the name and the arguments of its plain form (`kernels.PLAIN`), which takes two to eight
launches. All compute in float32 and round when they store. Only `training/kernel_check.py` imports
this module, and only where Triton is installed.

Shapes: `T tokens, D hidden, F inner, H heads, E head_dim, C rows of logits, V vocabulary`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

FLAT_BLOCK, HEAD_BLOCK = 1024, 4096


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
    for each in (rms_norm, rms_norm_gradient, swiglu, swiglu_gradient, rotated, loss_and_gradient)
}
