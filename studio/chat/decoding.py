"""Decode a batch of growing rows: prefill, one token per row and step, a growing cache.

Rows are padded on the left and carry explicit positions, so a row's logits do not depend on the
length of its neighbours. Finished rows leave the batch and its cache.

Shapes: `B rows, T tokens, K positions, V vocabulary, H kv_heads, S keys, E head_dim`.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Linear
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer

from studio.backbone.forward_probes import accepted
from studio.backbone.row_isolation import rope_types
from studio.backbone.sites import anatomy_of

if TYPE_CHECKING:
    from studio.chat.captured_decoding import Capture

SPARE = 64  # spare positions in the cache and the mask
MIN_ROWS, MAX_ROWS = 2, 8  # where the transposed product is faster
LARGE_WEIGHT = 2**19  # parameters, 2 MiB: more than one core's cache
GRAPHS = "studio_graphs"  # a model's attribute: its captured graphs, if it may have some


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values `(B, H, S, E)`: views of buffers with spare positions.

    transformers' own layer copies all keys and values at every token to append one.
    """

    _buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the states of the new tokens and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        keys, values = self._buffers_for(key_states, value_states, start, end)
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select these rows."""
        super().batch_select_indices(indices)
        self._buffers = None

    def _buffers_for(
        self, key_states: Tensor, value_states: Tensor, start: int, end: int
    ) -> tuple[Tensor, Tensor]:
        if self._buffers is not None and self._buffers[0].shape[-2] >= end:
            return self._buffers
        keys, values = (
            states.new_empty(*states.shape[:2], end + max(SPARE, end // 4), states.shape[-1])
            for states in (key_states, value_states)
        )
        if start:
            keys[:, :, :start] = self.keys
            values[:, :, :start] = self.values
        self._buffers = keys, values
        return self._buffers


def preallocated_cache(config: Any) -> DynamicCache:
    """Return an empty cache for a model; sliding windows and linear attention keep theirs."""
    cache = DynamicCache(config=config)
    cache.layers = [
        PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def cache_argument(model: Any) -> str:
    """Return the name under which a model takes its cache; transformers 5.2x changed it."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def use_transposed_products(model: Any) -> None:
    """Compute `x Wᵀ` as `(W xᵀ)ᵀ` in the large layers of a CPU model, for 2 to 8 rows.

    MKL's own product with few rows and a weight larger than the cache takes up to three times as
    long as one row. Measured with one thread, relative time of the transposed product: 0.4 to 0.9
    in widening layers (up, gate, head) with two to eight rows; in narrowing layers 0.6 to 0.8 with
    four rows and no gain otherwise. Weights stay as they are; with gradients nothing changes.
    """
    for module in model.modules():
        if type(module) is not torch.nn.Linear or "forward" in vars(module):
            continue
        weight = module.weight
        here = weight.device.type == "cpu" and weight.dtype == torch.float32
        if here and weight.numel() >= LARGE_WEIGHT:
            _transpose(module)


def _transpose(layer: Linear) -> None:
    plain = layer.forward
    widens = layer.out_features > layer.in_features

    def forward(x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        pays = MIN_ROWS <= rows <= MAX_ROWS if widens else rows == 4
        if not pays or torch.is_grad_enabled():
            return plain(x)
        product = torch.mm(layer.weight, x.reshape(rows, -1).t()).t()
        product = product if layer.bias is None else product + layer.bias
        return product.reshape(*x.shape[:-1], -1)

    layer.forward = forward


CACHES = ("cache", "past_key_values", "cache_params", "state", "mems")


class Batch:
    """Rows that go through the model together, or one after the other where they must.

    Rows share a pass if attention is all that mixes tokens: padding on the left is hidden from it,
    but would run through convolutions and states (`Anatomy.recording`).

    Args:
        prompts: The token ids of each row; none may be empty.
        device: Where the model's input goes.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        assert prompts and all(prompts)
        shares = shares_passes(model)
        groups = [prompts] if shares or len(prompts) == 1 else [[prompt] for prompt in prompts]
        self._parts = [RowGroup(model, group, device, shares=shares) for group in groups]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def prefill(self, probes: Sequence[int] | None = None) -> tuple[Tensor, Tensor | None]:
        """Read the prompts.

        Args:
            probes: One position within each row's own prompt whose logits are wanted too.

        Returns:
            The logits after each prompt `(B, V)`, and those at the probes `(B, V)` or None.
        """
        given = None if probes is None else self._split(probes)
        found = [
            part.prefill(None if given is None else given[number])
            for number, part in enumerate(self._parts)
        ]
        probed = [probe for _, probe in found if probe is not None]
        return torch.cat([logits for logits, _ in found]), torch.cat(probed) if probed else None

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to every row and return the logits after it `(B, V)`."""
        parts = zip(self._parts, self._split(tokens), strict=True)
        return torch.cat([part.step(own) for part, own in parts])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        if len(self._parts) == 1:
            self._parts[0].keep(rows)
        else:
            self._parts = [self._parts[row] for row in rows]

    def _split(self, values: Sequence[int]) -> list[Sequence[int]]:
        return [values] if len(self._parts) == 1 else [[value] for value in values]


def shares_passes(model: Any) -> bool:
    """Return True if rows of different lengths may share a pass, padded on the left."""
    recording = anatomy_of(model).recording
    return recording.separable and not recording.isolated


class RowGroup:
    """Rows padded on the left to one width, with one cache; the model's own if it is one row."""

    _width: int
    _pads: list[int]
    _lengths_B: Tensor
    _mask_BT: Tensor | None
    _capture: Capture | None

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], device: torch.device, *, shares: bool
    ) -> None:
        self._model = model
        self._shares = shares
        self._device = device
        self._rows = [list(prompt) for prompt in prompts]
        self._switch = length_of_switch(model)
        self._start()

    def __len__(self) -> int:
        return len(self._rows)

    def prefill(self, probes: Sequence[int] | None = None) -> tuple[Tensor, Tensor | None]:
        """Read the prompts, as `Batch.prefill`."""
        kept = [self._width - 1]
        places: list[int] = []
        if probes is not None:
            wanted = [pad + probe for pad, probe in zip(self._pads, probes, strict=True)]
            kept = sorted({*kept, *wanted})
            places = [kept.index(place) for place in wanted]
        logits_BKV = self._forward(
            self._ids_BT, torch.tensor(kept, device=self._device) if len(kept) > 1 else 1
        )
        probed_BV = None
        if probes is not None:
            probed_BV = logits_BKV[torch.arange(len(self)), torch.tensor(places)]
        return logits_BKV[:, -1], probed_BV

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to every row and return the logits after it `(B, V)`."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        if self._capture and (logits_BV := self._capture.step(tokens)) is not None:
            self._width += 1
            return logits_BV
        crosses = any(len(row) - 1 == self._switch for row in self._rows)
        if crosses or not (self._own_cache or self._cache_argument):
            self._start()
            return self._forward(self._ids_BT, 1)[:, -1]
        self._lengths_B += 1
        self._width += 1
        logits_BV = self._forward(torch.tensor(tokens, device=self._device)[:, None], 1)[:, -1]
        if self._capture:
            self._capture.after_step(
                tokens, logits_BV, width=self._width, lengths_B=self._lengths_B, pads=self._pads
            )
        return logits_BV

    def peek(self, tails: Sequence[Sequence[int]]) -> Tensor:
        """Return the logits after some further tokens `(B, T, V)`; the rows stay as they are.

        Args:
            tails: Tokens of each row, of one length.
        """
        if self._capture:
            self._capture.end()
        layers = self._cache.layers
        before = self._width, self._lengths_B, [dict(vars(layer)) for layer in layers]
        self._width, self._lengths_B = self._width + len(tails[0]), self._lengths_B + len(tails[0])
        logits_BTV = self._forward(torch.tensor(tails, device=self._device), 0)
        self._width, self._lengths_B, states = before
        for layer, state in zip(layers, states, strict=True):
            grown = {"_buffers": layer._buffers} if isinstance(layer, PreallocatedLayer) else {}
            vars(layer).update(state | grown)
        return logits_BTV

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        if self._capture:
            self._capture.end()
        index = torch.tensor(list(rows), device=self._device)
        if list(rows) != list(range(len(self._rows))):
            self._cache.batch_select_indices(index)
        self._rows = [self._rows[row] for row in rows]
        self._pads = [self._pads[row] for row in rows]
        self._lengths_B = self._lengths_B[index]
        if self._mask_BT is not None:
            self._mask_BT = self._mask_BT[index] if any(self._pads) else None

    def _start(self) -> None:
        """Begin with an empty cache before all tokens of the rows."""
        self._own_cache: dict[str, Any] = {}
        self._cache_argument: dict[str, Any] = {}
        self._capture = None
        if self._shares:
            self._cache = preallocated_cache(self._model.config)
            self._cache_argument = {cache_argument(self._model): self._cache}
            graphs = vars(self._model).get(GRAPHS)
            if graphs is not None and self._switch is None:
                self._capture = graphs.of(self._run_token, self._cache)
        self._width = max(map(len, self._rows))
        self._pads = [self._width - len(row) for row in self._rows]
        padded = [[0] * pad + row for pad, row in zip(self._pads, self._rows, strict=True)]
        self._ids_BT = torch.tensor(padded, device=self._device)
        self._lengths_B = torch.tensor([len(row) for row in self._rows], device=self._device)
        self._mask_BT = self._grown_mask() if any(self._pads) else None

    def _forward(self, ids_BT: Tensor, keep: Tensor | int) -> Tensor:
        positions_BT = (
            self._lengths_B[:, None] - ids_BT.shape[1] + torch.arange(
                ids_BT.shape[1], device=self._device
            )
        ).clamp_min(0)  # fmt: skip
        if self._mask_BT is not None and self._mask_BT.shape[1] < self._width:
            self._mask_BT = self._grown_mask()
        mask_BT = None if self._mask_BT is None else self._mask_BT[:, : self._width]
        return self._run(ids_BT, positions_BT, mask_BT, keep)

    def _run_token(self, ids_B1: Tensor, positions_B1: Tensor) -> Tensor:
        """Return the logits after one token of each row; the cache has a mask of its own."""
        return self._run(ids_B1, positions_B1, None, 1)[:, -1]

    def _run(
        self, ids_BT: Tensor, positions_BT: Tensor, mask_BT: Tensor | None, keep: Tensor | int
    ) -> Tensor:
        given = {
            "input_ids": ids_BT,
            "attention_mask": mask_BT,
            "position_ids": positions_BT,
            "use_cache": True,
            "logits_to_keep": keep,
            **self._cache_argument,
            **self._own_cache,
        }
        with torch.no_grad():
            output = self._model(
                **accepted(self._model, given, optional=("position_ids", "logits_to_keep"))
            )
        if not self._cache_argument:
            names = signature(self._model.forward).parameters
            found = {name: output.get(name) for name in CACHES if name in names}
            self._own_cache = {name: value for name, value in found.items() if value is not None}
        logits_BKV: Tensor = output.logits
        if isinstance(keep, Tensor) and logits_BKV.shape[1] != len(keep):
            return logits_BKV[:, keep]
        return logits_BKV

    def _grown_mask(self) -> Tensor:
        columns = torch.arange(self._width + SPARE, device=self._device)
        return (columns >= torch.tensor(self._pads, device=self._device)[:, None]).long()


def length_of_switch(model: Any) -> int | None:
    """Return the length after which a model recomputes its cache with other rotary factors.

    transformers does so in the classes that have their own preparation of `generate`.
    """
    own = type(model).prepare_inputs_for_generation
    return None if own is GenerationMixin.prepare_inputs_for_generation else longrope_length(model)


def longrope_length(model: Any) -> int | None:
    """Return the length beyond which all positions of a pass get other rotary factors."""
    kinds = {kind for module in model.modules() for kind in rope_types(module)}
    length: int | None = getattr(model.config, "original_max_position_embeddings", None)
    return length if "longrope" in kinds else None
