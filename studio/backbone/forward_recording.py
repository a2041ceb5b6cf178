"""Record one short forward pass to learn a model's anatomy: which modules run, and what they mix.

Two rows are packed into one pass, and every block of the decoder layers is then run again with
tokens changed. A block *mixes* tokens if the first one changes later positions of its row, and
*leaks* if the first row changes the other. Blocks that leak are isolated (`row_isolation.py`)
from the inside out. So families need no names: a block that mixes tokens is attention if it calls
the attention function, else another mixer (linear attention, convolution, state space); a block
that does not mix is a feed-forward.

Shapes: `T tokens of both rows, D hidden`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from studio.backbone import row_isolation
from studio.backbone.attention import AttentionState
from studio.backbone.forward_probes import (
    ROWS,
    accepted,
    counts_from_zero,
    differs,
    first_tensor,
    forward,
    has_plain_head,
    raise_if_full,
    same_alone,
    same_padded,
    sample_ids,
    token_axis,
)

if TYPE_CHECKING:
    from studio.backbone.sites import Anatomy

logger = logging.getLogger(__name__)

BlockKind = Literal["attention", "mixer", "mlp"]
Isolation = Callable[[nn.Module, AttentionState], None]


@dataclass(frozen=True, slots=True)
class Block:
    """A module of a decoder layer from hidden states to hidden states.

    `norm` is the key of the norm whose output the block reads, if any.
    """

    key: str
    kind: BlockKind
    norm: str = ""


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys and values of one call of the attention function.

    `source` is the number of the call that computed them: another one where layers share keys.
    """

    module: str
    heads: int
    key_size: int
    value_size: int
    source: int


@dataclass(slots=True)
class Call:
    """Arguments and result of a module in the recorded pass."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(slots=True)
class Recording:
    """Findings of a recorded forward pass.

    Attributes:
        runs: Number of calls of each module that ran.
        blocks: The blocks of the decoder layers, in order.
        keys: Calls of the attention function, in order.
        isolated: Modules that would mix packed rows, with what keeps these apart: arguments of the
            module's own (`pass_rows`), or a padded batch of its own (`isolate`).
        separable: False if packed rows stay apart only in a batch padded as a whole.
        paddable: False if not even padding on the right keeps rows apart.
        positions: False if the model counts positions in its own way and must not be given any.
        plain_head: True if the logits are the product of the head and nothing else.
        problem: The error for which the model does not run at all; empty if it does.
    """

    runs: dict[str, int] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    keys: list[Keys] = field(default_factory=list)
    isolated: dict[str, Isolation] = field(default_factory=dict)
    separable: bool = True
    paddable: bool = True
    positions: bool = True
    plain_head: bool = False
    problem: str = ""


def record(anatomy: Anatomy, state: AttentionState | None = None) -> Recording:
    """Run the text tower once on two packed rows and return what was learned.

    Blocks that would let packed rows leak are isolated in place. Without the state of a backbone
    nothing is packed and nothing changed.
    """
    alone, state = state is None, state or AttentionState()
    found = Recording()
    ids = sample_ids(anatomy)
    try:
        with (
            torch.no_grad(), row_isolation.plain(state),
            row_isolation.recorded(state) as attended,
        ):  # fmt: skip
            found.positions = counts_from_zero(anatomy, state, ids)
            found.plain_head = has_plain_head(anatomy, ids)
            attended.clear()
            try:
                calls = _run(anatomy, state, ids, None if alone else ROWS, found.positions)
            except Exception as error:
                raise_if_full(error)
                logger.info("Packed rows cannot be recorded: %s: %s", type(error).__name__, error)
                found.separable = False
                attended.clear()
                calls = _run(anatomy, state, ids, None, found.positions)
            found.keys = _keys(anatomy, attended)
            attended.clear()
            found.runs = {key: len(each) for key, each in calls.items()}
            blocks = Blocks(anatomy, state, calls, found)
            found.blocks = blocks.find()
            if found.separable:
                found.separable = not alone and (
                    found.positions and blocks.separate() and same_alone(anatomy, state, ids)
                )
    except Exception as error:
        raise_if_full(error)
        logger.warning("Recording of %s", type(anatomy.model).__name__, exc_info=error)
        found.separable, found.problem = False, "" if found.runs else type(error).__name__
    if not found.separable and not alone and found.runs:
        found.paddable = same_padded(anatomy, state, ids)
    if not found.separable:
        row_isolation.undo(anatomy.modules[key] for key in found.isolated)
        found.isolated = {}
    return found


class Blocks:
    """The blocks of the recorded layers, found and tested by running them again."""

    def __init__(
        self, anatomy: Anatomy, state: AttentionState, calls: dict[str, list[Call]],
        found: Recording,
    ) -> None:  # fmt: skip
        self._anatomy, self._state, self._calls, self._found = anatomy, state, calls, found
        self._attended = {keys.module for keys in found.keys}
        self._mixes: dict[str, bool] = {}

    def find(self) -> list[Block]:
        """Return the outermost blocks of every layer that ran, in the order of their calls."""
        known: dict[Any, list[Block]] = {}
        found: list[Block] = []
        for key in self._layers():
            form = self._form(key)
            if form not in known:
                known[form] = [
                    Block(_inner(each.key, key), each.kind, _inner(each.norm, key))
                    for each in self._inside(key)
                ]
            found += [
                Block(f"{key}.{each.key}", each.kind, each.norm and f"{key}.{each.norm}")
                for each in known[form]
            ]
        order = {key: place for place, key in enumerate(self._calls)}
        return sorted(found, key=lambda block: order[block.key])

    def separate(self) -> bool:
        """Isolate what leaks; return True if no layer leaks afterwards."""
        known: dict[Any, list[tuple[str, Isolation]]] = {}
        for key in self._layers():
            form, before = self._form(key), len(self._found.isolated)
            if form not in known:
                if not self._settle(key):
                    return False
                made = [*self._found.isolated.items()][before:]
                known[form] = [(_inner(each, key), way) for each, way in made]
                continue
            for name, way in known[form]:
                way(self._anatomy.modules[f"{key}.{name}"], self._state)
                self._found.isolated[f"{key}.{name}"] = way
        return True

    def _layers(self) -> list[str]:
        return [key for key in self._anatomy.layer_keys if key in self._calls]

    def _form(self, key: str) -> Any:
        """Return what equal layers have in common, so that each kind is tested once."""
        modules = self._anatomy.modules[key].named_modules()
        inside = [(name, type(module), f"{key}.{name}") for name, module in modules]
        return tuple(
            (name, cls, path in self._calls, path in self._attended) for name, cls, path in inside
        )

    def _inside(self, key: str) -> list[Block]:
        found: list[Block] = []
        for child in self._children(key):
            if not self._is_hidden(child) or self._is_single(child):
                found += self._inside(child)
                continue
            inner = self._inside(child)
            both = {block.kind == "mlp" for block in inner} == {True, False}
            if both and self._mixing(child):
                found += inner
            else:
                found.append(Block(child, self._kind(child), self._norm_before(child)))
        return found

    def _kind(self, key: str) -> BlockKind:
        if not self._mixing(key):
            return "mlp"
        inside = f"{key}."
        uses = any(module == key or module.startswith(inside) for module in self._attended)
        return "attention" if uses else "mixer"

    def _settle(self, key: str) -> bool:
        """Isolate as little as possible inside a module until it does not leak."""
        is_layer = key in self._anatomy.layer_keys
        if not is_layer and not self._leaks(key):
            return True
        for child in self._children(key):  # of a layer each, since its residual hides small leaks
            self._settle(child)
        if not self._leaks(key):
            return True
        module = self._anatomy.modules[key]
        if is_layer or not self._is_hidden(key):
            return False
        takes_rows = accepted(module, {"cu_seq_lens_q": None}) != {}
        ways = (row_isolation.pass_rows, row_isolation.isolate)
        for way in ways[not takes_rows :]:
            way(module, self._state)
            try:
                leaks = self._leaks(key)
            except Exception as error:  # without its kernel, or arguments that are no rows
                raise_if_full(error)
                logger.info("%s, %s: %s", key, way.__name__, error)
                leaks = True
            if not leaks:
                self._found.isolated[key] = way
                return True
            row_isolation.undo([module])
        return False

    def _children(self, key: str) -> Iterator[str]:
        for name, child in self._anatomy.modules[key].named_children():
            inner = f"{key}.{name}"
            if inner in self._calls:
                yield inner
            elif any(True for _ in child.children()):
                yield from self._children(inner)

    def _is_single(self, key: str) -> bool:
        """Return True for a module without linear layers inside (a norm, a linear layer)."""
        module = self._anatomy.modules[key]
        return not any(part is not module and _is_linear(part) for part in module.modules())

    def _is_hidden(self, key: str) -> bool:
        """Return True if the module maps `(1, T, D)` to `(1, T, D)`."""
        call = self._calls[key][0]
        given, result = _first(call.args, call.kwargs), first_tensor(call.output)
        size = (1, sum(ROWS), self._anatomy.hidden_size)
        return (
            given is not None and result is not None
            and tuple(given.shape) == tuple(result.shape) == size
        )  # fmt: skip

    def _norm_before(self, key: str) -> str:
        call = self._calls[key][0]
        given = _first(call.args, call.kwargs)
        for other, calls in self._calls.items():
            if (
                any(each.output is given for each in calls)
                and "norm" in type(self._anatomy.modules[other]).__name__.lower()
            ):
                return other
        return ""

    def _mixing(self, key: str) -> bool:
        if key not in self._mixes:
            before, after = self._again(key, 1)
            self._mixes[key] = differs(before, after, slice(1, ROWS[0]))
        return self._mixes[key]

    def _leaks(self, key: str) -> bool:
        before, after = self._again(key, ROWS[0])
        return differs(before, after, slice(ROWS[0], None))

    def _again(self, key: str, count: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the results of a module with its own input and with its first tokens changed."""
        module, call = self._anatomy.modules[key], self._calls[key][0]
        given = _first(call.args, call.kwargs)
        if given is None or (axis := token_axis(given)) is None:
            return None, None
        other = given.clone()
        first = other.narrow(axis, 0, count)
        if given.is_floating_point():
            first.neg_().add_(first.abs().mean().clamp_min(0.1))
        else:
            first.add_(1)
        results = []
        for value in (given, other):
            args, kwargs = tree_map_only(
                Tensor, lambda x, v=value: v if x is given else x, (call.args, call.kwargs)
            )
            results.append(first_tensor(module(*args, **kwargs)))
        return results[0], results[1]


def _inner(key: str, layer: str) -> str:
    """Return a module's key inside its layer; empty for one outside of it."""
    return key.removeprefix(f"{layer}.") if key.startswith(f"{layer}.") else ""


def _run(
    anatomy: Anatomy, state: AttentionState, ids: Tensor, rows: tuple[int, ...] | None,
    with_positions: bool,
) -> dict[str, list[Call]]:  # fmt: skip
    """Return the calls of all modules of the tower, by key."""
    calls: dict[str, list[Call]] = {}

    def keep(key: str) -> Callable[..., None]:
        def after(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            calls.setdefault(key, []).append(Call(args, kwargs, output))

        return after

    with ExitStack() as stack:
        for key, module in anatomy.modules.items():
            if key.startswith(anatomy.tower_key):
                handle = module.register_forward_hook(keep(key), with_kwargs=True)
                stack.callback(handle.remove)
        forward(anatomy, state, ids, rows, with_positions=with_positions)
    return calls


def _keys(anatomy: Anatomy, attended: list[tuple[nn.Module, Tensor, Tensor]]) -> list[Keys]:
    names = {id(module): key for key, module in anatomy.modules.items()}
    found: list[Keys] = []
    seen: dict[int, int] = {}
    for module, key, value in attended:
        source = seen.setdefault(key.data_ptr(), len(found))
        found.append(Keys(names[id(module)], key.shape[1], key.shape[-1], value.shape[-1], source))
    return found


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first tensor argument with an axis of all tokens."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and token_axis(value) is not None:
            return value
    return None


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and (isinstance(module, nn.Linear) or weight.dim() >= 2)
