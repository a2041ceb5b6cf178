"""Isolate the rows of a batch in modules other than attention: mixers and rotary embeddings.

A causal *mixer* (convolution, state space, linear attention) carries tokens from one packed row
into the next. Some take the rows as arguments (`cu_seq_lens_q`, `seq_idx`), which transformers
hands to kernels of their own packages (`fla`, `causal_conv1d`, `mamba_ssm`) and refuses without
them. Any other module receives the packed row `(1, T, …)` as a batch of rows padded on the right
`(R, N, …)`, which cannot reach earlier tokens, and its result is packed again; everything else of
the layer stays packed.

*Rotary factors* may depend on the length of a sequence (LongRoPE, dynamic NTK). transformers
chooses them by the longest row of a batch, and dynamic NTK remembers those of earlier passes. Here
every row has the factors that it has alone.

Shapes: `R rows, N tokens of the longest row, T tokens of all rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_leaves, tree_map_only

from studio.backbone import attention
from studio.backbone.attention import AttentionState

Forward = Callable[..., Any]
Lengths = tuple[int, ...]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


@contextmanager
def packed(
    state: AttentionState, lengths: Sequence[int] | None, device: torch.device,
    shared: Sequence[int] = (),
) -> Iterator[None]:  # fmt: skip
    """Run packed rows of these lengths, or one plain batch if None.

    The lengths stay set afterwards: checkpointing recomputes layers in the backward pass.
    """
    token = attention.packing.set(lengths is not None)
    if lengths is None:
        state.lengths = None
    else:
        state.pack(lengths, device, shared)
    try:
        yield
    finally:
        attention.packing.reset(token)


@contextmanager
def plain(state: AttentionState) -> Iterator[None]:
    """Attend without virtual tokens, kernels and savings; then restore the whole state."""
    before = replace(state)
    state.prefix, state.lean, state.kernel, state.products = None, False, None, False
    try:
        yield
    finally:
        for each in fields(state):
            setattr(state, each.name, getattr(before, each.name))


@contextmanager
def recorded(state: AttentionState) -> Iterator[list[tuple[nn.Module, Tensor, Tensor]]]:
    """Record the keys and values of every attention call, to see if rows are isolated."""
    state.calls = []
    try:
        yield state.calls
    finally:
        state.calls = None


def isolate(module: nn.Module, state: AttentionState) -> None:
    """Let a module run packed rows as a padded batch."""

    def as_batch(own: Forward, lengths: Lengths, args: Args, kwargs: Kwargs) -> Any:
        total, longest = sum(lengths), max(lengths)
        inside = tree_map_only(Tensor, lambda x: unpack(x, lengths), (args, kwargs))
        kept = torch.cat([torch.arange(n) + row * longest for row, n in enumerate(lengths)])
        assert total == len(kept)
        kept = kept.to(_device(args, kwargs))
        positions = state.positions
        state.lengths = None
        state.positions = None if positions is None else unpack(positions, lengths)
        try:
            output = own(*inside[0], **inside[1])
        finally:
            state.lengths, state.positions = lengths, positions

        def pack(x: Tensor) -> Tensor:
            if x.dim() < 2 or tuple(x.shape[:2]) != (len(lengths), longest):
                return x
            return x.flatten(0, 1).index_select(0, kept)[None]

        return tree_map_only(Tensor, pack, output)

    _replace_packed(module, state, as_batch)


def pass_rows(module: nn.Module, state: AttentionState) -> None:
    """Let a module keep packed rows apart itself, by the arguments that kernels have for them."""

    def with_rows(own: Forward, lengths: Lengths, args: Args, kwargs: Kwargs) -> Any:
        device = _device(args, kwargs)
        sizes = torch.tensor(lengths, device=device)
        rows = torch.arange(len(lengths), dtype=torch.int32, device=device)
        ends = torch.nn.functional.pad(sizes.cumsum(0, dtype=torch.int32), (1, 0))
        given = {
            "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(lengths),
            "max_length_k": max(lengths), "seq_idx": rows.repeat_interleave(sizes)[None],
        }  # fmt: skip
        return own(*args, **{**kwargs, **given})

    _replace_packed(module, state, with_rows)


def _replace_packed(
    module: nn.Module, state: AttentionState, run: Callable[[Forward, Lengths, Args, Kwargs], Any]
) -> None:
    """Call `run` in place of a module's own forward wherever several rows are packed."""
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        lengths = state.lengths
        if lengths is None or len(lengths) == 1:
            return own(*args, **kwargs)
        return run(own, lengths, args, kwargs)

    module.forward = forward
    module.__dict__["studio_before_isolation"] = own


def _device(args: Args, kwargs: Kwargs) -> torch.device:
    return next(x.device for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))


def undo(modules: Iterable[nn.Module]) -> None:
    """Give isolated modules their own forward back."""
    for module in modules:
        module.forward = module.__dict__.pop("studio_before_isolation")


def unpack(x: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return `(1, T, …)` as `(R, N, …)`, and a mask `(1, H, T, T)` as `(R, H, N, N)`.

    Other tensors stay as they are.
    """
    total, longest = sum(lengths), max(lengths)
    if x.dim() >= 2 and tuple(x.shape[:2]) == (1, total):
        return pad_sequence(list(x[0].split(lengths)), batch_first=True)
    if x.dim() == 4 and tuple(x.shape[-2:]) == (total, total) and x.shape[0] == 1:
        hidden = 0 if x.dtype == torch.bool else torch.finfo(x.dtype).min
        rows = x.new_full((len(lengths), x.shape[1], longest, longest), hidden)
        start = 0
        for row, n in enumerate(lengths):
            rows[row, :, :n, :n] = x[0, :, start : start + n, start : start + n]
            rows[row, :, n:, 0] = True if x.dtype == torch.bool else 0  # no empty softmax
            start += n
        return rows
    return x


def install_row_factors(
    tower: nn.Module, state: AttentionState, rope_kinds: Collection[str]
) -> bool:
    """Let rotary embeddings of some types compute each row's factors alone; True if any do."""
    found = [module for module in tower.modules() if rope_types(module) & {*rope_kinds}]
    for module in found:
        if "forward" not in vars(module):
            module.forward = _by_row(module, state)
    return bool(found)


def rope_types(module: nn.Module) -> set[str]:
    """Return the rope types of a rotary embedding; none of any other module."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, dict):
        return {str(kind) for kind in kinds.values()}
    return {kinds} if isinstance(kinds, str) else set()


def _by_row(module: nn.Module, state: AttentionState) -> Callable[..., Any]:
    own = module.forward

    def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = _rows(position_ids, state)
        results = []
        for row in rows:
            _forget(module)
            results.append(own(x, row, *args, **kwargs))
        if len(results) == 1:
            return results[0]
        axis = -2 if state.lengths is not None else -3
        return tuple(torch.cat(parts, dim=axis) for parts in zip(*results, strict=True))

    return forward


def _rows(positions: Tensor, state: AttentionState) -> Sequence[Tensor]:
    """Return each row's positions `(…, 1, T)`, without the places of its padding."""
    if state.lengths is not None and positions.shape[-1] == sum(state.lengths):
        return positions.split(state.lengths, dim=-1)
    rows = list(positions.split(1, dim=-2))
    ends = state.row_ends
    if ends is None or len(ends) != len(rows):
        return rows
    return [row.clamp_max(end) for row, end in zip(rows, ends, strict=True)]


def _forget(module: Any) -> None:
    """Reset the factors that dynamic NTK keeps of an earlier, longer sequence."""
    names = module.rope_type if isinstance(module.rope_type, dict) else [""]
    for name in names:
        prefix = f"{name}_" if name else ""
        original = getattr(module, f"{prefix}original_inv_freq", None)
        if original is not None and "dynamic" in rope_types(module):
            module.register_buffer(f"{prefix}inv_freq", original.clone(), persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
