"""Activation memory: gradient checkpointing, offloading, and leaner forwards of frozen layers.

*Offloading*: checkpointing keeps one `(1, T, D)` input per layer. With offloading these wait in
pinned main memory: each is copied on its own stream while the next layer runs, and fetched back
while the layer above it is recomputed. (transformers and torch's `save_on_cpu` copy on the stream
that computes.)

*Leaner forwards* compute the same numbers with fewer kept tensors, where gradients are on, layers
are not recomputed, and the part's own weights are frozen:

- a *norm* keeps only its input and recomputes its inner steps in the backward pass;
- a *gated feed-forward* keeps `gate x` and `up x`, and recomputes the activation and the product,
  which the down projection would keep as its input;
- the *last layer* computes its feed-forward only at positions that predict a trained token.

Shapes: `T packed tokens, N positions that predict a trained token, D hidden`.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.llama.modeling_llama import LlamaMLP

from studio.backbone.attention import AttentionState, packing
from studio.backbone.sites import Anatomy
from studio.errors import MethodError
from studio.models.architecture import LAST_LAYER_FAMILIES

MIN_NUMBERS = 1024  # numbers; less is not worth a copy


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


GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class Recomputation:
    """Inputs of a function, and its result recomputed on first use in the backward pass."""

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        self.function = function
        self._inputs = [tensor.detach() for tensor in inputs]
        self._result: Tensor | None = None

    def result(self, needed: Sequence[bool]) -> Tensor:
        """Return the result, with its own graph down to the inputs that need gradients."""
        if self._result is None:
            with torch.enable_grad():
                for tensor, need in zip(self._inputs, needed, strict=True):
                    tensor.requires_grad_(need)
                self._result = self.function(*self._inputs)
        return self._result

    def gradients(self, needed: Sequence[bool], outer: Tensor) -> list[Tensor | None]:
        """Return the inputs' gradients and free the result."""
        result, self._result = self.result(needed), None
        wanted = [tensor for tensor, need in zip(self._inputs, needed, strict=True) if need]
        found = iter(torch.autograd.grad(result, wanted, outer))
        return [next(found) if need else None for need in needed]


class Recomputed(torch.autograd.Function):
    """A function that keeps only its inputs for the backward."""

    @staticmethod
    def forward(ctx: Any, recomputation: Recomputation, *inputs: Tensor) -> Tensor:
        """Return `again.function(*inputs)`."""
        ctx.recomputation = recomputation
        return recomputation.function(*inputs)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Recompute the function for its gradients."""
        return None, *ctx.recomputation.gradients(ctx.needs_input_grad[1:], outputs[0])


def install_lean_forwards(anatomy: Anatomy, state: AttentionState) -> None:
    """Replace the forwards of norms, feed-forwards and the last layer."""
    for site in anatomy.norms():
        _set(site.module, _norm(site.module, state))
    for layer in anatomy.layers():
        for module in layer.modules():
            if _is_gated(module):
                _set(module, _feed_forward(module, state))
    last = anatomy.layers()[-1]
    if _is_plain(last):
        _set(last, _last_layer(last, state))


def _set(module: nn.Module, forward: Callable[..., Any]) -> None:
    if "forward" not in vars(module):
        module.forward = forward


def _norm(module: nn.Module, state: AttentionState) -> Callable[..., Tensor]:
    own = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not (state.lean and torch.is_grad_enabled()) or _trains(module):
            result: Tensor = own(x, *args, **kwargs)
            return result
        result = Recomputed.apply(Recomputation(own, [x]), x)
        return result

    return forward


def _feed_forward(module: Any, state: AttentionState) -> Callable[[Tensor], Tensor]:
    own = module.forward

    def product(gate: Tensor, up: Tensor) -> Tensor:
        result: Tensor = module.act_fn(gate) * up
        return result

    def forward(x: Tensor) -> Tensor:
        if not (state.lean and torch.is_grad_enabled()):
            return own(x)
        gate, up = module.gate_proj(x), module.up_proj(x)
        recomputation = Recomputation(product, [gate, up])
        needed = (gate.requires_grad, up.requires_grad)
        inner: Tensor = Recomputed.apply(recomputation, gate, up)

        def pack(tensor: Tensor) -> Tensor | torch.Size:
            same = tensor.data_ptr() == inner.data_ptr() and tensor.numel() == inner.numel()
            return tensor.shape if same else tensor

        def unpack(kept: Tensor | torch.Size) -> Tensor:
            if isinstance(kept, Tensor):
                return kept
            return recomputation.result(needed).detach().view(kept)

        with saved_tensors_hooks(pack, unpack):
            return module.down_proj(inner)

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


def _is_plain(layer: nn.Module) -> bool:
    return type(layer).__name__.removesuffix("DecoderLayer").lower() in LAST_LAYER_FAMILIES


def _is_gated(module: nn.Module) -> bool:
    """Return True if its code computes `down(act(gate x) · up x)` and nothing else.

    Names do not suffice: Gemma 3n drops activations in between, Falcon H1 scales them.
    """
    if {name for name, _ in module.named_children()} != GATED:
        return False
    return not list(module.act_fn.parameters()) and _code(type(module)) == _code(LlamaMLP)


def _code(cls: type[nn.Module]) -> tuple[bytes, tuple[str, ...]]:
    code = inspect.unwrap(cls.forward).__code__
    return code.co_code, code.co_names


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))
