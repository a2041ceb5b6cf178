"""Decode with captured CUDA graphs: one launch per token in place of hundreds.

A graph repeats the kernels of one token at fixed addresses. So a batch that has decoded a few
tokens gets a cache of fixed size, where a token's column follows from its number on the device, and
a mask that hides the columns without a token. What would change an address (another stack or
weight, a row that ends, a full cache) ends the graph: the batch goes on without one, and gets
another after `CALM` tokens.

Every graph is compared with the plain path, and the first on a card must be faster; the result is
kept in the home per card, precision, architecture and versions. If anything fails, the plain path
goes on, with a line in the log. `STUDIO_GRAPHS=0` switches graphs off.

Shapes: `B rows, S columns, H kv_heads, E head_dim, V vocabulary`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from studio.backbone import Backbone
from studio.backbone.attention import masking
from studio.backbone.linear_kernels import indexed
from studio.chat.decoding import GRAPHS, PreallocatedLayer
from studio.errors import first_line, is_out_of_memory
from studio.home import Home
from studio.training.kernel_check import card_key, graph_results, milliseconds

logger = logging.getLogger(__name__)
CALM = 4  # tokens under one stack before a capture, which takes as long as several
ROOM, MULTIPLE = 256, 64  # columns for tokens to come, and what the columns are a multiple of
WARM_UPS, CALLS = 2, 5
EXACT, CLOSE = 2e-3, 6e-2  # of the largest logit, in float32 and below it
Run = Callable[[Tensor, Tensor], Tensor]


class FixedLayer(DynamicLayer):
    """A layer's keys and values `(B, H, S, E)` at fixed addresses; a sliding window is a ring.

    Args:
        layer: The layer in whose place it stands.
        held: Its keys and values, of `width` tokens.
        column: Where the next token goes, `(1,)`, on the device.
    """

    def __init__(
        self, layer: Any, held: tuple[Tensor, Tensor], width: int, size: int, column: Tensor
    ) -> None:
        super().__init__()
        self._layer, self._column, self._size = layer, column, size
        count = min(size, held[0].shape[-2])
        places = torch.arange(width - count, width, device=column.device) % size
        self.keys, self.values = (
            old.new_zeros(*old.shape[:2], size, old.shape[-1]).index_copy_(
                2, places, old[:, :, old.shape[-2] - count :]
            )
            for old in held
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the token's states to its column and return all columns."""
        self.keys.index_copy_(2, self._column, key_states)
        self.values.index_copy_(2, self._column, value_states)
        return self.keys, self.values

    def drop_other(self) -> None:
        """Free the tensors of the layer in whose place it stands."""
        self._layer.keys = self._layer.values = self._layer._buffers = None

    def plain(self, width: int) -> Any:
        """Return the layer in whose place this one stood, with all tokens."""
        layer = self._layer
        if isinstance(layer, PreallocatedLayer):
            layer._buffers = self.keys, self.values
            layer.keys, layer.values = self.keys[:, :, :width], self.values[:, :, :width]
            return layer
        held = min(width, layer.sliding_window - 1)
        places = torch.arange(width - held, width, device=self.keys.device) % self._size
        layer.keys, layer.values = (x.index_select(2, places) for x in (self.keys, self.values))
        layer.cumulative_length = width
        return layer


class Capture:
    """The graph of one batch, while it has one.

    Args:
        run: Runs the model on ids and positions `(B, 1)`; returns the logits `(B, V)`.
    """

    def __init__(self, graphs: Graphs, run: Run, cache: DynamicCache) -> None:
        self._graphs, self._run, self._cache = graphs, run, cache
        self._graph: Any = None
        self._held: list[Any] = []
        self._version, self._calm, self._off = -1, 0, False

    def step(self, tokens: Sequence[int]) -> Tensor | None:
        """Return the logits after one more token of each row; None if the plain path must."""
        if self._graph is None:
            due = self._calm + 1 >= CALM and not (self._off or self._graphs.why)
            # A sliding window forgets the first of these with the step of the plain path.
            self._held = [(layer.keys, layer.values) for layer in self._cache.layers if due]
            return None
        if self._version != self._graphs.version or self._width == self._room:
            self.end()
            self._held = []
            return None
        self._width += 1
        self._host_B1[:, 0] = torch.tensor(tokens)
        self._ids_B1.copy_(self._host_B1, non_blocking=True)
        self._lengths_B += 1
        self._place += 1
        self._graph.replay()
        return self._logits_BV.clone()

    def after_step(
        self, tokens: Sequence[int], logits_BV: Tensor, *, width: int, lengths_B: Tensor,
        pads: Sequence[int],
    ) -> None:  # fmt: skip
        """Capture a graph after a step of the plain path, if it is time.

        Args:
            width: Tokens of the longest row, these included.
            lengths_B: Tokens of each row; the graph counts on.
            pads: Columns on the left without a token.
        """
        calm = self._calm + 1 if self._version == self._graphs.version else 1
        self._version, self._calm = self._graphs.version, calm
        kinds = {type(layer) for layer in self._cache.layers}
        if calm < CALM or not self._held:
            return
        if not kinds <= {PreallocatedLayer, DynamicSlidingWindowLayer}:
            self._off = True
            return
        plain = list(self._cache.layers)
        try:
            self._fix(tokens, width, lengths_B, pads)
            with torch.cuda.device(self._ids_B1.device):  # of streams and graphs
                self._record()
            why = self._graphs.compare(self._replayed, self._eager, logits_BV)
        except Exception as error:  # of a model, torch or driver: the plain path goes on
            self._off = is_out_of_memory(error)  # which may pass, until the next batch
            why = "" if self._off else f"{type(error).__name__}: {first_line(error, 200)}"
        self._held = []
        if why or self._off:
            self._graph, self._cache.layers = None, plain
        for layer in self._cache.layers:
            if isinstance(layer, FixedLayer):
                layer.drop_other()
        if why:
            self._graphs.refuse(why)

    def end(self) -> None:
        """Give the graph up and the cache back."""
        self._graph, self._calm = None, 0
        self._cache.layers = [
            layer.plain(self._width) if isinstance(layer, FixedLayer) else layer
            for layer in self._cache.layers
        ]

    def _fix(
        self, tokens: Sequence[int], width: int, lengths_B: Tensor, pads: Sequence[int]
    ) -> None:
        device = lengths_B.device
        self._width, self._lengths_B = width, lengths_B
        self._room = -(-(width + max(ROOM, width // 4)) // MULTIPLE) * MULTIPLE
        self._place = torch.full((1,), width - 1, device=device)
        self._pads_B1 = torch.tensor(pads, device=device)[:, None]
        pinned = device.type == "cuda"  # so that a copy does not wait
        self._host_B1 = torch.empty(len(tokens), 1, dtype=torch.long, pin_memory=pinned)
        self._host_B1[:, 0] = torch.tensor(tokens)
        self._ids_B1 = self._host_B1.to(device)
        self._columns: dict[int, tuple[Tensor, Tensor]] = {}  # by size: all, and the token's own
        layers = self._cache.layers
        for number, (layer, held) in enumerate(zip(layers, self._held, strict=True)):
            if not layer.is_initialized:
                continue
            size = min(self._room, getattr(layer, "sliding_window", self._room))
            if size not in self._columns:
                whole = torch.arange(size, device=device)
                self._columns[size] = whole, torch.full((1,), width - 1, device=device) % size
            layers[number] = FixedLayer(layer, held, width - 1, size, self._columns[size][1])
            self._held[number] = held = None

    def _eager(self) -> Tensor:
        """Run the model on the last token at its fixed addresses."""
        for size, (_, own) in self._columns.items():
            torch.remainder(self._place, size, out=own)
        mask = masking.set(self._mask)
        try:
            return self._run(self._ids_B1, self._lengths_B[:, None] - 1)
        finally:
            masking.reset(mask)

    def _mask(self, window: int | None) -> Tensor:
        """Return `(B, 1, 1, S)`, True where a column holds a token that the new one sees."""
        size = min(self._room, window or self._room)
        columns_S, _ = self._columns[size]
        tokens_S = self._place - torch.remainder(self._place - columns_S, size)
        return (tokens_S >= self._pads_B1)[:, None, None]

    def _record(self) -> None:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._eager()
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._logits_BV = self._eager()
            except BaseException:
                with suppress(Exception):
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = graph

    def _replayed(self) -> Tensor:
        self._graph.replay()
        return self._logits_BV


class Graphs:
    """The graphs of a model on its card, or the reason to use none."""

    def __init__(
        self, backbone: Backbone, *, device: torch.device, dtype: torch.dtype, home: Home
    ) -> None:
        self._backbone, self._device, self._home = backbone, indexed(device), home
        self._allowed = EXACT if dtype == torch.float32 else CLOSE
        quantized = " 4-bit" if getattr(backbone.model, "is_loaded_in_4bit", False) else ""
        versions = (metadata.version(name) for name in ("torch", "transformers"))
        self._key = card_key(device, dtype, type(backbone.model).__name__ + quantized, *versions)
        known = graph_results(home).read().get(self._key)
        self._is_new, self.why = known is None, str((known or {}).get("why", ""))

    @property
    def version(self) -> int:
        """A number that changes with the active stacks."""
        return self._backbone.changes

    def of(self, run: Run, cache: DynamicCache) -> Capture:
        """Return the capture of a batch."""
        return Capture(self, run, cache)

    def compare(
        self, replayed: Callable[[], Tensor], eager: Callable[[], Tensor], wanted_BV: Tensor
    ) -> str:
        """Return why a graph is not to be used; empty if it is right and, once a card, faster."""
        wanted_BV = wanted_BV.float()
        error = float((replayed().float() - wanted_BV).abs().max())
        scale = max(1.0, float(wanted_BV.abs().max()))
        if not error <= self._allowed * scale:
            return f"its logits differ by {error:.2g} of {scale:.2g}"
        if not self._is_new:
            return ""
        own, plain = (milliseconds(call, self._device, CALLS) for call in (replayed, eager))
        if own > plain:
            return f"{own:.3g} ms a token, {plain:.3g} without it"
        self._keep({"why": "", "milliseconds": own, "plain_milliseconds": plain})
        return ""

    def refuse(self, why: str) -> None:
        """Use no graphs from now on."""
        logger.warning("Decoding without captured graphs (%s): %s", self._key, why)
        self.why = why
        self._keep({"why": why})

    def _keep(self, result: dict[str, Any]) -> None:
        self._is_new = False
        with suppress(OSError):  # a full disk: it is measured again
            graph_results(self._home).keep(self._key, result)


def allow(backbone: Backbone, *, device: torch.device, dtype: torch.dtype, home: Home) -> None:
    """Let batches of a model decode with captured graphs, where its device has them."""
    if device.type == "cuda" and os.environ.get("STUDIO_GRAPHS") != "0":
        graphs = Graphs(backbone, device=device, dtype=dtype, home=home)
        backbone.model.__dict__[GRAPHS] = graphs
