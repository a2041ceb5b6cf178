"""Recompute layers in the backward pass, and keep their inputs where there is room.

Recomputation keeps one `(1, T, D)` input a layer. With offloading these wait in pinned main memory:
each is copied away on a stream of its own while the next layer runs, and fetched back while the
layer above it is recomputed, so that the device waits for no copy that is quicker than a layer. The
numbers are the same, to the bit.

transformers (from 5.2x) and torch's `save_on_cpu` offload too, but on the stream that computes.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from studio.methods.layer.sites import Anatomy

SMALLEST = 1024  # numbers; less is not worth a copy


def recompute_layers(anatomy: Anatomy, on: bool, *, offload: bool) -> None:
    """Switch recomputation on or off for every layer, with its inputs in main memory if asked."""
    model = anatomy.model
    switch = ("gradient", "activation")[hasattr(model, "activation_checkpointing_enable")]
    if on:
        getattr(model, f"{switch}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{switch}_checkpointing_disable")()
    device = next(model.parameters()).device
    away = Offload(device) if on and offload else None
    for layer in anatomy.layers():
        # Only the layers' own flag: the base keeps its dropouts off while adapters train.
        layer.training = on
        if away:
            _keep_inputs(layer, away)


def _keep_inputs(layer: nn.Module, away: Offload) -> None:
    own: Any = layer._gradient_checkpointing_func

    def run(*args: Any) -> Any:
        # Within, a checkpoint has hooks of its own: these see nothing but the layer's inputs.
        with saved_tensors_hooks(away.pack, away.unpack):
            return own(*args)

    layer._gradient_checkpointing_func = run


@dataclass(eq=False, slots=True, weakref_slot=True)
class Kept:
    """A tensor in main memory, and on the device for as long as it is about to be needed."""

    host: Tensor
    near: Tensor | None
    fetched: torch.cuda.Event | None = None
    before: weakref.ref[Kept] | None = None


class Offload:
    """Hooks for saved tensors; on a CPU they copy as they do on a GPU, without streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._newest: weakref.ref[Kept] | None = None

    def pack(self, tensor: Tensor) -> Tensor | Kept:
        """Copy a tensor away; the newest stays near too, since the backward pass begins there."""
        if tensor.device != self._device or tensor.numel() < SMALLEST:
            return tensor
        before = self._newest
        if before and (kept := before()):
            kept.near = None
        made = Kept(self._copied_away(tensor), tensor.detach(), before=before)
        self._newest = weakref.ref(made)
        return made

    def unpack(self, kept: Tensor | Kept) -> Tensor:
        """Return the tensor on its device, and begin to fetch the one that is needed next."""
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

    def _copied_away(self, tensor: Tensor) -> Tensor:
        if self._stream is None:
            return tensor.detach().clone()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        with torch.cuda.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)
        return host

    def _fetch(self, kept: Kept) -> None:
        if kept.near is not None:
            return
        if self._stream is None:
            kept.near = kept.host.clone()
            return
        with torch.cuda.stream(self._stream):
            kept.near = kept.host.to(self._device, non_blocking=True)
            kept.fetched = self._stream.record_event()
