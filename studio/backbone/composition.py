"""Adapters in memory, and how several weighted ones compose at one site.

An adapter holds the parameters of one method at each site. At a site there are sums, gains and
ordered edits:

    x~ = x · Π (1 + w (g_in − 1))                      gains on the input
    y0 = f(x~) + Σ w · delta(x~)                       deltas commute and sum
    y1 = y0 · Π (1 + w (g_out − 1))                    gains on the output
    y  = fold in stack order: h ← h + w · transform(h)  the only part where order matters

`f` is the backbone's own module. Keys and values of prefixes and prompts are concatenated in stack
order (`virtual_tokens.py`). Every edit acts on all rows or on the rows of its lane.

In decoding, low-rank deltas share two products, `B (w ⊙ (A x))`: the adapters are concatenated to
`Aᵀ (I, R)` and `Bᵀ (R, O)`, and each row's weights select its own part; those of all rows are in
`B`. Decoding a few rows is bound by the number of calls, not by arithmetic.

Shapes: `B batch, T tokens, I in_features, O out_features, R ranks of all adapters`; a packed batch
has `B = 1`, and its rows are ranges of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from studio.backbone.linear_kernels import draw_seed, recomputed
from studio.backbone.sites import Site
from studio.errors import AdapterError
from studio.methods.method import Method, Params, Phase

Stack = tuple[tuple[str, float], ...]


class Adapter:
    """Trained parameters of one method, by site."""

    def __init__(
        self, name: str, method: Method, sites: list[Site], params: list[Params],
        beside: dict[str, Method] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.method = method
        self.beside = beside or {}
        """Methods of sites whose parameters are not those of `method`, by key."""
        self.sites = sites
        self.training = False
        self.params: dict[str, Params] = {}
        placed: dict[tuple[int, torch.device], nn.Parameter] = {}  # shared tensors stay shared
        for site, own in zip(sites, params, strict=True):
            self.params[site.key] = {
                key: _placed(tensor, site, placed) for key, tensor in own.items()
            }

    def method_at(self, key: str) -> Method:
        """Return the method whose parameters a site has."""
        return self.beside.get(key, self.method)

    def parameters(self) -> list[nn.Parameter]:
        """Return every trained tensor, in a fixed order."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return every trained tensor with its name `<site key>/<name>`, in a fixed order.

        One that several sites share is returned once.
        """
        found = {
            id(tensor): (f"{key}/{name}", tensor)
            for key, own in reversed(self.params.items())
            for name, tensor in reversed(own.items())
            if isinstance(tensor, nn.Parameter) and not name.startswith("_")
        }
        return list(reversed(found.values()))

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_expert_parameters(self) -> int:
        """Number of trained parameters at routed experts."""
        experts = [site.key for site in self.sites if site.num_experts]
        return sum(p.numel() for key in experts for p in self.params[key].values())

    def state(self) -> dict[str, Tensor]:
        """Return every tensor by `<site key>/<name>`, detached, for checkpoints."""
        return {
            f"{key}/{name}": tensor.detach()
            for key, own in self.params.items()
            for name, tensor in own.items()
            if not name.startswith("__")
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load the tensors of a checkpoint.

        Raises:
            AdapterError: The names or shapes differ from this adapter's.
        """
        mine = self.state()
        if mine.keys() != state.keys():
            raise AdapterError(
                "The checkpoint was made with another method or other target modules."
            )
        for key, tensor in mine.items():
            if tensor.shape != state[key].shape:
                raise AdapterError(
                    f"The checkpoint's {key} has shape {tuple(state[key].shape)}, "
                    f"this run's {tuple(tensor.shape)}."
                )
            tensor.copy_(state[key])


def _placed(
    tensor: Tensor, site: Site, placed: dict[tuple[int, torch.device], nn.Parameter]
) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor  # full fine-tuning: the model's own
    device = next((p.device for p in site.module.parameters()), tensor.device)
    key = (id(tensor), device)
    if key not in placed:
        placed[key] = nn.Parameter(tensor.to(device), requires_grad=False)
    return placed[key]


@dataclass(slots=True)
class Rows:
    """Rows that an edit acts on; `numbers` is None for all rows."""

    numbers: tuple[int, ...] | None
    _cache: tuple[tuple[int, ...] | None, torch.device, Tensor] | None = None

    def index(self, lengths: tuple[int, ...] | None, device: torch.device) -> Tensor:
        """Return row numbers, or token numbers in a packed batch of rows of `lengths`."""
        assert self.numbers is not None
        if self._cache and self._cache[0] == lengths and self._cache[1] == device:
            return self._cache[2]
        if lengths is None:
            index = torch.tensor(self.numbers, device=device)
        else:
            starts = [(sum(lengths[:row]), lengths[row]) for row in self.numbers]
            index = torch.cat([torch.arange(at, at + n, device=device) for at, n in starts])
        self._cache = (lengths, device, index)
        return index

    def span(self, lengths: tuple[int, ...]) -> tuple[int, int] | None:
        """Return start and stop of the rows' tokens in a packed batch; None if not contiguous."""
        if self.numbers is None:
            return 0, sum(lengths)
        first, last = self.numbers[0], self.numbers[-1]
        if self.numbers != tuple(range(first, last + 1)):
            return None
        start = sum(lengths[:first])
        return start, start + sum(lengths[first : last + 1])


@dataclass(frozen=True, slots=True)
class Edit:
    """Edit of one adapter at one site, with its weight and rows."""

    method: Method
    params: Params
    weight: float
    rows: Rows
    adapter: str
    training: bool

    def factors(self, site: Site) -> list[Tensor]:
        """Return `A` and `B` of a low-rank edit, with the weight in `B`, and DoRA's norms."""
        found = self.method.low_rank(self.params, site)
        assert found is not None
        a_RI, b_OR, *norms = found
        return [a_RI, b_OR if self.weight == 1 else b_OR * self.weight, *norms]


@dataclass(slots=True)
class SitePlan:
    """All edits at one site, by phase, in stack order."""

    site: Site
    deltas: list[Edit] = field(default_factory=list)
    gains: list[Edit] = field(default_factory=list)
    transforms: list[Edit] = field(default_factory=list)
    _fused: FusedDeltas | None = None
    _fused_rows: int = 0

    def add(self, edit: Edit) -> None:
        """Add an edit to those of its phase."""
        phases = {Phase.DELTA: self.deltas, Phase.GAIN: self.gains,
                  Phase.TRANSFORM: self.transforms}  # fmt: skip
        phases[edit.method.phase].append(edit)

    @property
    def is_routed(self) -> bool:
        """True if an edit acts on some rows only."""
        edits = (*self.deltas, *self.gains, *self.transforms)
        return any(edit.rows.numbers is not None for edit in edits)

    @property
    def is_one_node(self) -> bool:
        """True if the site only trains low-rank products, for all rows or per row group."""
        if not self.deltas or self.gains or self.transforms:
            return False
        if len(self.deltas) > 1 and any(edit.rows.numbers is None for edit in self.deltas):
            return False
        return all(
            edit.training
            and edit.method.low_rank(edit.params, self.site) is not None
            and (not edit.method.scales_rows or (self.is_one_product and edit.weight == 1))
            for edit in self.deltas
        )

    @property
    def is_one_product(self) -> bool:
        """True if the site has one product for all rows."""
        return len(self.deltas) == 1 and self.deltas[0].rows.numbers is None

    def apply_input(self, x: Tensor, lengths: tuple[int, ...] | None) -> Tensor:
        """Return `x~`: the input after gains."""
        for edit in self.gains:
            gain = edit.method.gain_in(edit.params, self.site)
            if gain is not None:
                x = _scale_rows(x, gain, edit, lengths)
        return x

    def apply_output(
        self, x: Tensor, y: Tensor, residual: Tensor | None, lengths: tuple[int, ...] | None
    ) -> Tensor:
        """Return the module's output `y` after deltas, gains and transforms.

        Args:
            x: The module's (scaled) input.
            y: The module's own output.
            residual: The residual stream that enters this sub-layer, for transforms that read it.
            lengths: Row lengths of a packed batch, else None.
        """
        base = y
        fused = self._fuse(x, lengths)
        if fused is not None:
            y = fused.add_to(y, x)
        for edit in self.deltas if fused is None else ():
            x_rows, base_rows = (select_rows(one, edit.rows, lengths) for one in (x, base))
            change = self._change(edit, edit.method.delta, x=x_rows, y=base_rows)
            if (span := _span(edit.rows, lengths)) is None:
                y = _add_rows(y, change, edit, lengths)
                continue
            y = y.clone() if y is base else y  # once, whatever the number of lanes
            y.narrow(_row_axis(y, lengths), *span).add_(change.to(y.dtype), alpha=edit.weight)
        for edit in self.gains:
            gain = edit.method.gain_out(edit.params, self.site)
            if gain is not None:
                y = _scale_rows(y, gain, edit, lengths)
        for edit in self.transforms:
            stream = x if residual is None else residual
            change = self._change(
                edit, edit.method.transform, x=select_rows(stream, edit.rows, lengths),
                h=select_rows(y, edit.rows, lengths),
            )  # fmt: skip
            y = _add_rows(y, change, edit, lengths)
        return y

    def _change(self, edit: Edit, rule: Callable[..., Tensor], **given: Tensor) -> Tensor:
        """Return the change of an edit, in training as a node that keeps what the rule reads."""
        method, site, training = edit.method, self.site, edit.training
        if not (training and torch.is_grad_enabled()):
            return rule(edit.params, *given.values(), site, training=training)
        names, unread, keys = method.reads, dict.fromkeys(given), list(edit.params)

        def function(*tensors: Tensor) -> Tensor:
            read = unread | dict(zip(names, tensors, strict=False))
            own = dict(zip(keys, tensors[len(names) :], strict=True))
            return rule(own, *read.values(), site, training=True)

        inputs = [*(given[name] for name in names), *edit.params.values()]
        return recomputed(function, *inputs, seed=draw_seed() if method.input_dropout else 0)

    def _fuse(self, x: Tensor, lengths: tuple[int, ...] | None) -> FusedDeltas | None:
        """Return the deltas as one product where nothing trains: if rows differ, or per token."""
        if not self.deltas or lengths is not None or x.dim() != 3 or torch.is_grad_enabled():
            return None
        routed = any(edit.rows.numbers is not None for edit in self.deltas)
        if not routed and x.shape[1] > 1:  # the reference that routed lanes are compared with
            return None
        if not routed and any(edit.training for edit in self.deltas):
            return None  # its parameters change
        rows = x.shape[0] if routed else -1
        if self._fused_rows != rows:
            self._fused, self._fused_rows = fuse(self.deltas, self.site, x), rows
        return self._fused


def select_rows(x: Tensor, rows: Rows, lengths: tuple[int, ...] | None) -> Tensor:
    """Return the rows that an edit acts on: `(rows, T, ·)`, or `(1, tokens, ·)` when packed."""
    if rows.numbers is None:
        return x
    if (span := _span(rows, lengths)) is not None:
        return x.narrow(_row_axis(x, lengths), *span)
    return x.index_select(_row_axis(x, lengths), rows.index(lengths, x.device))


def _span(rows: Rows, lengths: tuple[int, ...] | None) -> tuple[int, int] | None:
    """Return start and size of some rows that adjoin in a packed batch without gradients."""
    if rows.numbers is None or lengths is None or torch.is_grad_enabled():
        return None
    span = rows.span(lengths)
    return None if span is None else (span[0], span[1] - span[0])


def _row_axis(x: Tensor, lengths: tuple[int, ...] | None) -> int:
    """Return the axis of rows or, packed, of tokens: latent attention has them behind its heads."""
    return 0 if lengths is None else x.shape.index(sum(lengths))


def _add_rows(y: Tensor, change: Tensor, edit: Edit, lengths: tuple[int, ...] | None) -> Tensor:
    change = change.to(y.dtype)
    if edit.rows.numbers is None:
        return y + change if edit.weight == 1 else torch.add(y, change, alpha=edit.weight)
    if change.dim() < y.dim():
        change = change.expand_as(select_rows(y, edit.rows, lengths))
    axis = _row_axis(y, lengths)
    return y.index_add(axis, edit.rows.index(lengths, y.device), change, alpha=edit.weight)


def _scale_rows(y: Tensor, gain: Tensor, edit: Edit, lengths: tuple[int, ...] | None) -> Tensor:
    factor = (1 + edit.weight * (gain - 1)).to(y.dtype)
    if edit.rows.numbers is None:
        return y * factor
    index = edit.rows.index(lengths, y.device)
    axis = _row_axis(y, lengths)
    return y.index_copy(axis, index, y.index_select(axis, index) * factor)


def group_rows(stacks: Iterable[Stack]) -> list[tuple[str, float, Rows]]:
    """Turn one stack per row into (adapter, weight, rows), keeping each row's own order.

    Rows with an adapter at the same position and weight share its edit: four lanes of one adapter
    cost one product.
    """
    placed: dict[tuple[int, str, float], list[int]] = {}
    for row, stack in enumerate(stacks):
        for place, (name, weight) in enumerate(stack):
            placed.setdefault((place, name, weight), []).append(row)
    ordered = sorted(placed.items(), key=lambda item: item[0][0])
    return [(name, weight, Rows(tuple(rows))) for (_, name, weight), rows in ordered]


_checked = WeakTensorKeyDictionary()
MAX_RANK = 256  # beyond it, computing all parts for every row costs more than the calls it saves


@dataclass(frozen=True, slots=True)
class FusedDeltas:
    """One site's low-rank edits for all rows of a batch."""

    a_IR: Tensor
    b_RO: Tensor
    weights_BR: Tensor | None

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return `y` plus each row's delta for the input `x`, both `(B, T, ·)`."""
        if x.dtype != self.a_IR.dtype or y.dtype != x.dtype or y.shape[1] != 1:
            parts_BTR = x.to(self.a_IR.dtype) @ self.a_IR
            if self.weights_BR is not None:
                parts_BTR = parts_BTR * self.weights_BR[:, None]
            return y + (parts_BTR @ self.b_RO).to(y.dtype)
        # One token a row, all in one precision: decoding. Two products, the second one adds.
        parts_BR = torch.mm(x[:, 0], self.a_IR)
        if self.weights_BR is not None:
            parts_BR.mul_(self.weights_BR)
        return torch.addmm(y[:, 0], parts_BR, self.b_RO)[:, None]


def fuse(edits: Sequence[Edit], site: Site, x: Tensor) -> FusedDeltas | None:
    """Concatenate low-rank edits; None if one is not a plain product or not finite.

    Infinities must stay in their own row, but `0 · inf` would spread them. On a GPU the products
    run in the precision of the input `x`, as in training.
    """
    factors = [edit.method.factors(edit.params, site) for edit in edits]
    pairs = [pair for pair in factors if pair is not None]
    if len(pairs) < len(edits) or sum(len(a) for a, _ in pairs) > MAX_RANK:
        return None
    if not all(_is_finite(one) for edit in edits for one in edit.params.values()):
        return None
    a_RI = torch.cat([a for a, _ in pairs])
    routed = any(edit.rows.numbers is not None for edit in edits)
    own = [b if routed or edit.weight == 1 else b * edit.weight
           for edit, (_, b) in zip(edits, pairs, strict=True)]  # fmt: skip
    b_OR = torch.cat(own, dim=1)
    kind = a_RI.dtype if x.device.type == "cpu" else x.dtype
    weights_BR = _row_weights(edits, pairs, len(x)).to(a_RI.device, kind) if routed else None
    return FusedDeltas(a_RI.t().to(kind).contiguous(), b_OR.t().to(kind).contiguous(), weights_BR)


def _is_finite(parameter: Tensor) -> bool:
    """Return True if it has no infinity; asked once per version, since the host waits for it."""
    found: tuple[int, bool] | None = _checked.get(parameter)
    if found is None or found[0] != parameter._version:
        found = parameter._version, bool(parameter.isfinite().all())
        _checked[parameter] = found
    return found[1]


def _row_weights(
    edits: Sequence[Edit], pairs: Sequence[tuple[Tensor, Tensor]], rows: int
) -> Tensor:
    """Return the weight of each rank of all adapters for each row, `(B, R)`."""
    columns = []
    for edit, (a_RI, _) in zip(edits, pairs, strict=True):
        own = torch.zeros(rows, 1, dtype=a_RI.dtype)
        own[list(range(rows) if edit.rows.numbers is None else edit.rows.numbers)] = edit.weight
        columns.append(own.expand(-1, len(a_RI)))
    return torch.cat(columns, dim=1)
