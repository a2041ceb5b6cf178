"""Save activation memory: lean forwards of frozen layers, gradient checkpointing, offloading.

*Lean forwards* of norms, feed-forwards and rotary positions give the same numbers with fewer kept
tensors, where gradients are on, layers are not recomputed, and the part's own weights are frozen:

- a *norm* keeps only its input; an RMSNorm is computed in blocks of rows, others are recomputed;
- a *gated feed-forward* keeps `gate x` and `up x`, and recomputes the activation and the product,
  which the down projection would keep as its input;
- *rotary positions* are one node of queries or keys, which keeps none of them;
- the *last layer* computes its feed-forward only at positions that predict a trained token.

*Checkpointing* keeps one `(1, T, D)` input per layer. With *offloading* these wait in pinned main
memory: each is copied on its own stream while the next layer runs, and fetched back while the layer
above it is recomputed. (transformers and torch's `save_on_cpu` copy on the stream that computes.)

Shapes: `T packed tokens, N positions that predict a trained token, D hidden, H heads, E head_dim`.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from studio.backbone.attention import AttentionState, packing
from studio.backbone.linear_kernels import gated, recomputed, replaceable, row_blocks
from studio.backbone.site_hooks import Hooks
from studio.backbone.sites import Anatomy
from studio.errors import MethodError
from studio.models.find_model import LAST_LAYER_FAMILIES

ROTARY = "apply_rotary_pos_emb"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
MIN_NUMBERS = 1024  # numbers; less is not worth a copy


def install_lean_forwards(anatomy: Anatomy, state: AttentionState, hooks: Hooks) -> None:
    """Replace the forwards of norms, feed-forwards and the last layer."""
    for site in anatomy.norms():
        _set(site.module, _norm(site.module, state))
    sites = {id(site.module): site for site in anatomy.all_linears()}
    for layer in anatomy.layers():
        for module in layer.modules():
            if _is_gated(module):
                parts = [sites.get(id(getattr(module, name))) for name in PROJECTIONS]
                if None not in parts:
                    _set(module, _feed_forward(module, state, hooks, parts))
            if (rotating := _rotating(module, state)) is not None:
                _set(module, rotating)
    last = anatomy.layers()[-1]
    if _is_plain(last):
        _set(last, _last_layer(last, state))


def keep_positions(
    anatomy: Anatomy, state: AttentionState, keep_N: Tensor, kept: Sequence[int] | None
) -> bool:
    """Let the last layer of a packed forward return only these positions; False if it cannot."""
    if not (state.lean and _is_plain(anatomy.layers()[-1])):
        return False
    assert state.lengths is not None
    if kept is None:
        bounds = torch.tensor(state.lengths, device=keep_N.device).cumsum(0)
        kept = torch.searchsorted(keep_N, bounds).diff(prepend=bounds.new_zeros(1)).tolist()
    state.keep, state.kept_lengths = keep_N, tuple(kept)
    return True


def _set(module: nn.Module, forward: Callable[..., Any]) -> None:
    if "forward" not in vars(module):
        module.forward = forward


def _norm(module: Any, state: AttentionState) -> Callable[..., Tensor]:
    own, is_rms = module.forward, _code(type(module)) == _code(LlamaRMSNorm)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not (state.lean and torch.is_grad_enabled()) or _trains(module):
            result: Tensor = own(x, *args, **kwargs)
            return result
        if is_rms and x.dtype == module.weight.dtype:
            flat_TD = x.reshape(-1, x.shape[-1])
            y_TD: Tensor = RmsNormNode.apply(flat_TD, module.weight, module.variance_epsilon)
            return y_TD.view(x.shape)
        return recomputed(own, x)

    return forward


def _feed_forward(
    module: Any, state: AttentionState, hooks: Hooks, parts: Sequence[Any]
) -> Callable[[Tensor], Tensor]:
    own = module.forward

    def forward(x: Tensor) -> Tensor:
        if not (state.lean and torch.is_grad_enabled()):
            return own(x)
        into, out = hooks.linears(parts[:2], x), hooks.linears(parts[2:], x)
        if into is not None and out is not None:
            return gated(x, module.act_fn, into, out)
        return edited(x)

    def product(of_gate: Tensor, of_up: Tensor) -> Tensor:
        result: Tensor = module.act_fn(of_gate) * of_up
        return result

    def edited(x: Tensor) -> Tensor:
        """Call each projection with its edits; their saved product is recomputed."""
        both = module.gate_proj(x), module.up_proj(x)
        inner = recomputed(product, *both)
        kept, where, numbers = [each.detach() for each in both], inner.data_ptr(), inner.numel()

        def pack(tensor: Tensor) -> Tensor | torch.Size:
            same = tensor.data_ptr() == where and tensor.numel() == numbers
            return tensor.shape if same else tensor

        def unpack(saved: Tensor | torch.Size) -> Tensor:
            return saved if isinstance(saved, Tensor) else product(*kept).view(saved)

        with saved_tensors_hooks(pack, unpack):
            result: Tensor = module.down_proj(inner)
            return result

    return forward


def _last_layer(layer: Any, state: AttentionState) -> Callable[..., Tensor]:
    own = layer.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if state.keep is None or args or not packing.get():
            return own(hidden_states, *args, **kwargs)
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        hidden = hidden_states[:, state.keep] + attended[:, state.keep]
        state.lengths = state.kept_lengths
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    return forward


def _rotating(module: Any, state: AttentionState) -> Callable[..., Any] | None:
    """Return an attention's own forward with rotary positions as one node; None for others."""
    own = inspect.unwrap(type(module).forward)
    plain = own.__globals__.get(ROTARY)
    known = inspect.unwrap(getattr(modeling_llama, ROTARY)).__code__
    if plain is None or ROTARY not in own.__code__.co_names:
        return None
    half = modeling_llama.rotate_half.__code__
    plain_half = getattr(inspect.unwrap(plain).__globals__.get("rotate_half"), "__code__", None)
    code = inspect.unwrap(plain).__code__
    if plain_half is None or plain_half.co_code != half.co_code:
        return None  # NanoChat turns the other way
    if (code.co_code, code.co_names) != (known.co_code, known.co_names):
        return None

    def rotate(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        packed = q.shape[0] == k.shape[0] == cos.shape[0] == 1 and q.dtype == k.dtype == cos.dtype
        if unsqueeze_dim != 1 or not (packed and state.lean and torch.is_grad_enabled()):
            rotated: tuple[Tensor, Tensor] = plain(q, k, cos, sin, unsqueeze_dim)
            return rotated
        return RotaryNode.apply(q, cos[0], sin[0]), RotaryNode.apply(k, cos[0], sin[0])

    names = {**own.__globals__, ROTARY: rotate}
    forward = FunctionType(own.__code__, names, "forward", own.__defaults__, own.__closure__)
    forward.__kwdefaults__ = own.__kwdefaults__
    return MethodType(forward, module)


def _is_plain(layer: nn.Module) -> bool:
    return type(layer).__name__.removesuffix("DecoderLayer").lower() in LAST_LAYER_FAMILIES


def _is_gated(module: nn.Module) -> bool:
    """Return True if its code computes `down(act(gate x) · up x)` and nothing else.

    Names do not suffice: Gemma 3n drops activations in between, Falcon H1 scales them.
    """
    if {name for name, _ in module.named_children()} != {*PROJECTIONS, "act_fn"}:
        return False
    return not list(module.act_fn.parameters()) and _code(type(module)) == _code(LlamaMLP)


def _code(cls: type[nn.Module]) -> tuple[bytes, tuple[str, ...]]:
    code = inspect.unwrap(cls.forward).__code__
    return code.co_code, code.co_names


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


class RmsNormNode(torch.autograd.Function):
    """`w ⊙ x / √(mean x² + ε)` with a frozen `w`, in float32 inside."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        """Return `(T, D)`."""
        y_TD, inverse_T1 = rms_norm(x_TD, weight_D, epsilon)
        ctx.save_for_backward(x_TD, inverse_T1)
        ctx.weight = weight_D
        return y_TD

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of `x`."""
        x_TD, inverse_T1 = ctx.saved_tensors
        return rms_norm_gradient(x_TD, ctx.weight, inverse_T1, outputs[0]), None, None


@replaceable
def rms_norm(x_TD: Tensor, weight_D: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return `(T, D)` and `1 / √(mean x² + ε)` as `(T, 1)` in float32."""
    y_TD, inverse_T1 = torch.empty_like(x_TD), x_TD.new_empty(len(x_TD), 1, dtype=torch.float32)
    for rows, y, inverse in row_blocks(x_TD, y_TD, inverse_T1):
        wide = rows.float()
        torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).add_(epsilon), out=inverse)
        torch.mul(weight_D, (wide * inverse).to(y.dtype), out=y)
    return y_TD, inverse_T1


@replaceable
def rms_norm_gradient(
    x_TD: Tensor, weight_D: Tensor, inverse_T1: Tensor, outer_TD: Tensor
) -> Tensor:
    """Return the gradient of `x` `(T, D)`."""
    grad_TD = torch.empty_like(x_TD)
    for rows, inverse, outer, grad in row_blocks(x_TD, inverse_T1, outer_TD, grad_TD):
        normed, wide = rows.float() * inverse, (outer * weight_D).float()
        share = (wide * normed).mean(-1, keepdim=True)
        grad.copy_(wide.sub_(normed.mul_(share)).mul_(inverse))
    return grad_TD


class RotaryNode(torch.autograd.Function):
    """`x cos + rotate_half(x) sin` of queries or keys `(1, H, T, E)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        """Return `(1, H, T, E)`."""
        ctx.save_for_backward(cos_TE, sin_TE)
        return rotated(x, cos_TE, sin_TE, False)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        """Rotate the gradient back."""
        cos_TE, sin_TE = ctx.saved_tensors
        return rotated(outputs[0], cos_TE, sin_TE, True), None, None


@replaceable
def rotated(x: Tensor, cos_TE: Tensor, sin_TE: Tensor, back: bool) -> Tensor:
    """Return `x` `(1, H, T, E)` rotated by its position, or `back` for gradients."""
    result = x.new_empty(x.shape[2], x.shape[1], x.shape[3])
    half, sign = x.shape[3] // 2, -1 if back else 1
    sin_TE = sin_TE.roll(half, -1) if back else sin_TE
    for rows, cos, sin, y in row_blocks(x[0].transpose(0, 1), cos_TE, sin_TE, result):
        cos, sin = cos[:, None], sin[:, None]
        torch.mul(rows, cos, out=y)
        y[..., :half].addcmul_(rows[..., half:], sin[..., :half], value=-sign)
        y[..., half:].addcmul_(rows[..., :half], sin[..., half:], value=sign)
    return result.transpose(0, 1)[None]


def set_checkpointing(anatomy: Anatomy, on: bool, *, offload: bool) -> None:
    """Switch gradient checkpointing of every layer on or off, optionally with offloading.

    Raises:
        MethodError: The architecture has no checkpointing.
    """
    model = anatomy.model
    if on and not model.supports_gradient_checkpointing:
        raise MethodError(
            f"{type(model).__name__} does not support gradient checkpointing: set "
            "train.gradient_checkpointing=false."
        )
    switch = ("gradient", "activation")[hasattr(model, "activation_checkpointing_enable")]
    if on:
        getattr(model, f"{switch}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{switch}_checkpointing_disable")()
    device = next(model.parameters()).device
    offload_hooks = Offload(device) if on and offload else None
    for layer in anatomy.layers():
        # Only the layers' own flag: dropout of the base stays off while adapters train.
        layer.training = on
        if on and hasattr(layer, "_gradient_checkpointing_func"):
            _checkpoint(layer, offload_hooks)


def _checkpoint(layer: nn.Module, offload_hooks: Offload | None) -> None:
    """Run a layer's checkpoints without its own dropout, and offload its inputs."""
    own: Any = layer._gradient_checkpointing_func

    def run(function: Callable[..., Any], *args: Any) -> Any:
        def evaluating(*inner: Any) -> Any:
            training, layer.training = layer.training, False
            try:
                return function(*inner)
            finally:
                layer.training = training

        if offload_hooks is None:
            return own(evaluating, *args)
        # A checkpoint has its own hooks inside, so these see only the layer's inputs.
        with saved_tensors_hooks(offload_hooks.pack, offload_hooks.unpack):
            return own(evaluating, *args)

    layer._gradient_checkpointing_func = run


@dataclass(eq=False, slots=True, weakref_slot=True)
class OffloadedTensor:
    """A tensor in main memory, with a copy on the device shortly before it is needed."""

    host: Tensor
    near: Tensor | None
    fetched: torch.cuda.Event | None = None
    before: weakref.ref[OffloadedTensor] | None = None


class Offload:
    """Saved-tensor hooks that offload; on a CPU they copy without streams (for tests)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._newest: weakref.ref[OffloadedTensor] | None = None

    def pack(self, tensor: Tensor) -> Tensor | OffloadedTensor:
        """Copy a tensor to main memory; the newest stays on the device for the backward."""
        if tensor.device != self._device or tensor.numel() < MIN_NUMBERS:
            return tensor
        before = self._newest
        if before and (kept := before()):
            kept.near = None
        made = OffloadedTensor(self._to_host(tensor), tensor.detach(), before=before)
        self._newest = weakref.ref(made)
        return made

    def unpack(self, kept: Tensor | OffloadedTensor) -> Tensor:
        """Return the tensor on its device and prefetch the one that is needed next."""
        if isinstance(kept, Tensor):
            return kept
        self._fetch(kept)
        near, kept.near = kept.near, None
        assert near is not None
        if kept.fetched is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(kept.fetched)
            near.record_stream(current)
        if kept.before and (following := kept.before()):
            self._fetch(following)
        return near

    def _to_host(self, tensor: Tensor) -> Tensor:
        if self._stream is None:
            return tensor.detach().clone()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        with torch.cuda.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)
        return host

    def _fetch(self, kept: OffloadedTensor) -> None:
        if kept.near is not None:
            return
        if self._stream is None:
            kept.near = kept.host.clone()
            return
        with torch.cuda.stream(self._stream):
            kept.near = kept.host.to(self._device, non_blocking=True)
            kept.fetched = self._stream.record_event()
