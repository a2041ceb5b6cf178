"""Activation memory: gradient checkpointing and offloading.

*Offloading*: checkpointing keeps one `(1, T, D)` input per layer. With offloading these wait in
pinned main memory: each is copied on its own stream while the next layer runs, and fetched back
while the layer above it is recomputed. (transformers and torch's `save_on_cpu` copy on the stream
that computes.)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from studio.backbone.sites import Anatomy
from studio.errors import MethodError

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
