"""Run the routed experts of a mixture with low-rank adapters beside their matrices.

transformers stores all experts of a layer as 3-D parameters of one module, whose forward it looks
up by name. The function here is registered under "studio": it sorts the tokens by expert, applies
the site plans of `composition.py` to each projection, and counts the tokens that each expert saw.
Experts that transformers computes on every token (Llama 4) get a forward that leaves out the tokens
to which the router gave nothing, whose result is zero.

A site's key is the parameter's path (`model.layers.0.mlp.experts.gate_up_proj`). A module of
another kind is not adapted, and `not_adapted` names it.

Each token goes to K experts. Its (token, expert) pairs are sorted by expert, so every expert's
tokens are one span, and one call computes the products of all experts. A low-rank delta adds two
thin grouped products per projection; `B A` of an expert is never computed. One autograd node
computes `W x + b + B A x`. The first projection keeps the tokens themselves, not their K gathered
copies, and computes no gradient of `W`.

Shapes: `T tokens, K experts per token, S = T K pairs sorted by expert, E experts, D hidden, I
in_features, O out_features, R rank per expert`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from studio.backbone.attention import AttentionState
from studio.backbone.composition import Edit, SitePlan
from studio.backbone.dense_weights import dequantised
from studio.backbone.sites import ExpertLayout, Site, expert_layout
from studio.errors import MethodError

NAME = "studio"
ALIGNMENT_BYTES = 16  # of the rows that torch's grouped product reads
PlanOf = Callable[[str], SitePlan | None]


class Experts:
    """One layer's experts as they run: plans of its sites, and what its router did."""

    def __init__(
        self, key: str, module: Any, layout: ExpertLayout, plan_of: PlanOf, state: AttentionState
    ) -> None:
        self.key = key
        self._module = module
        self._layout = layout
        self._plan_of = plan_of
        self._state = state
        self.tokens_E = torch.zeros(module.num_experts, dtype=torch.int64)
        """Tokens that each expert saw in training."""

    def forward(self, hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return the weighted sum of each token's experts, `(T, D)`."""
        module = self._module
        groups = Groups.of(index_TK, module.num_experts)
        self._count(groups)
        y_SO = self._project(self._layout.first, hidden_TD, groups, gathers=True)
        y_SO = module._apply_gate(y_SO) if module.has_gate else module.act_fn(y_SO)
        y_SD = self._project(self._layout.last, y_SO, groups, gathers=False)
        if getattr(module, "has_post_expert_norm", False):  # since transformers 5.20
            y_SD = module.post_expert_norm(y_SD)
        y_SD = y_SD * weights_TK.reshape(-1)[groups.order_S][:, None]
        return groups.combine(y_SD).to(hidden_TD.dtype)

    def forward_scaled(self, scaled: Tensor) -> Tensor:
        """Return each expert's result for every token, `(E T, D)`, of inputs times their weight."""
        module = self._module
        sizes = torch.linalg.vector_norm(scaled.detach(), float("inf"), dim=-1)
        chosen_S = sizes.nonzero()[:, 0]
        groups = Groups.chosen(chosen_S, len(scaled), module.num_experts)
        self._count(groups)
        y_SO = self._project(self._layout.first, scaled[chosen_S], groups, gathers=False)
        gate, up = y_SO.chunk(2, -1)
        y_SD = self._project(self._layout.last, up * module.act_fn(gate), groups, gathers=False)
        return torch.zeros_like(scaled).index_copy(0, chosen_S, y_SD.to(scaled.dtype))

    def _count(self, groups: Groups) -> None:
        if torch.is_grad_enabled():
            if self.tokens_E.device != groups.counts_E.device:
                self.tokens_E = self.tokens_E.to(groups.counts_E.device)
            self.tokens_E += groups.counts_E

    def _project(self, name: str, x: Tensor, groups: Groups, *, gathers: bool) -> Tensor:
        """Return one projection of all pairs with its edits."""
        weight = getattr(self._module, name)
        bias = getattr(self._module, f"{name}_bias") if self._layout.has_bias else None
        plan = self._plan_of(f"{self.key}.{name}")
        if weight.requires_grad:  # full fine-tuning
            matrices = weight if self._layout.transposed else weight.mT
            x_SI = groups.gather(x) if gathers else x
            y_SO = grouped_product(x_SI, matrices, groups.offsets_E)
            return y_SO if bias is None else y_SO + bias[groups.experts_S]
        kind = PackedWeights if hasattr(weight, "quant_state") else FullWeights
        stored = kind(weight, self._layout.transposed)
        if plan is None:
            return GroupedLinear.apply(x, groups, stored, bias, gathers, None, None)
        if len(plan.deltas) == 1 and plan.deltas[0].rows.numbers is None:
            factors = plan.deltas[0].factors(plan.site)
            return GroupedLinear.apply(x, groups, stored, bias, gathers, *factors)
        y_SO = GroupedLinear.apply(x, groups, stored, bias, gathers, None, None)
        for edit in plan.deltas:
            y_SO = self._add(y_SO, x, edit, plan.site, groups, gathers=gathers)
        return y_SO

    def _add(
        self, y_SO: Tensor, x: Tensor, edit: Edit, site: Site, groups: Groups, *, gathers: bool
    ) -> Tensor:
        """Add the delta of one adapter to its rows."""
        x_SI = groups.gather(x) if gathers else x
        if edit.rows.numbers is None:
            return y_SO + GroupedDelta.apply(x_SI, groups, *edit.factors(site))
        lengths = self._state.token_rows(groups.num_tokens)
        if lengths is None:
            raise MethodError(
                f"{self.key} does not see every token of a batch, so lanes with an adapter of "
                "experts cannot share it; run them one after the other."
            )
        part = groups.of_tokens(edit.rows.index(lengths, y_SO.device))
        change = GroupedDelta.apply(x_SI[part.pairs], part, *edit.factors(site))
        return y_SO.index_add(0, part.pairs, change)


def install(
    modules: Iterable[tuple[str, nn.Module]], plan_of: PlanOf, state: AttentionState
) -> list[Experts]:
    """Let every module of experts compute with the plans of its sites; return them in order."""
    if NAME not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(NAME, _forward)
    found = []
    for key, module in modules:
        if layout := expert_layout(module):
            experts = Experts(key, module, layout, plan_of, state)
            module.__dict__["studio_experts"] = experts
            if layout.scaled:
                module.forward = experts.forward_scaled
            else:
                module.config._experts_implementation_internal = NAME
            found.append(experts)
    return found


def _forward(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    experts: Experts | None = module.__dict__.get("studio_experts")
    if experts is None:  # another model of the same configuration object
        plain: Tensor = ALL_EXPERTS_FUNCTIONS["grouped_mm"](module, hidden, index, weights)
        return plain
    return experts.forward(hidden, index, weights)


def not_adapted(modules: Iterable[tuple[str, nn.Module]], sites: Iterable[Site]) -> list[str]:
    """Return the classes of modules with stacked expert matrices that no site edits."""
    edited = {id(site.module) for site in sites if site.num_experts}
    found = [
        type(module).__name__
        for _, module in modules
        if "expert" in type(module).__name__.lower() and not isinstance(module, nn.Linear)
        if id(module) not in edited
        and any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))
    ]
    return list(dict.fromkeys(found))


class ExpertWeights(Protocol):
    """Frozen matrices of all experts, in full or in 4-bit precision."""

    def used(self, groups: Groups, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return `(H, I, O)` matrices and the ends of their spans, at least of experts in use."""


@dataclass(frozen=True, slots=True, eq=False)
class FullWeights:
    """All experts' matrices as the module stores them."""

    parameter: Tensor
    transposed: bool

    def used(self, groups: Groups, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return `(E, I, O)` and the ends of all spans."""
        matrices = self.parameter if self.transposed else self.parameter.mT
        return matrices.to(dtype), groups.offsets_E


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeights:
    """All experts' matrices in 4 bit, dequantised per use."""

    parameter: Any
    transposed: bool

    def used(self, groups: Groups, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the matrices of the experts in use, or of all where most are."""
        state = self.parameter.quant_state
        experts, rows, columns = state.shape
        used = groups.counts_E.nonzero()[:, 0]
        few = 2 * len(used) <= experts and rows * columns % state.blocksize == 0
        matrices = dequantised(self.parameter, used if few else None).to(dtype)
        offsets = groups.offsets_E[used] if few else groups.offsets_E
        return matrices if self.transposed else matrices.mT, offsets


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Pairs of token and expert, sorted by expert.

    Attributes:
        order_S: Number of each sorted pair in token order (`token K + place`).
        inverse_S: The reverse.
        experts_S: Expert of each sorted pair.
        counts_E: Pairs of each expert.
        offsets_E: End of each expert's span.
        per_token: K.
        num_tokens: T.
    """

    order_S: Tensor
    inverse_S: Tensor
    experts_S: Tensor
    counts_E: Tensor
    offsets_E: Tensor
    per_token: int
    num_tokens: int

    @classmethod
    def of(cls, index_TK: Tensor, num_experts: int) -> Groups:
        """Sort the pairs of a router's choice."""
        experts_S, order_S = torch.sort(index_TK.reshape(-1), stable=True)
        inverse_S = torch.empty_like(order_S)
        inverse_S[order_S] = torch.arange(len(order_S), device=order_S.device)
        counts_E = torch.bincount(experts_S, minlength=num_experts)
        offsets_E = counts_E.cumsum(0).to(torch.int32)
        per_token, num_tokens = index_TK.shape[-1], len(order_S) // index_TK.shape[-1]
        return cls(order_S, inverse_S, experts_S, counts_E, offsets_E, per_token, num_tokens)

    @classmethod
    def chosen(cls, places_S: Tensor, size: int, num_experts: int) -> Groups:
        """Return the pairs at some of the `size` places of an expert after the other."""
        tokens = size // num_experts
        experts_S, order_S = places_S // tokens, places_S % tokens
        counts_E = torch.bincount(experts_S, minlength=num_experts)
        offsets_E = counts_E.cumsum(0).to(torch.int32)
        return cls(order_S, order_S, experts_S, counts_E, offsets_E, 1, tokens)

    @property
    def tokens_S(self) -> Tensor:
        """Token of each sorted pair."""
        return self.order_S // self.per_token

    def gather(self, x_TD: Tensor) -> Tensor:
        """Return each sorted pair's token."""
        return x_TD[self.tokens_S]

    def combine(self, y_SD: Tensor) -> Tensor:
        """Return the sum of each token's pairs."""
        return y_SD[self.inverse_S].view(-1, self.per_token, y_SD.shape[-1]).sum(1)

    def of_tokens(self, tokens: Tensor) -> Part:
        """Return the pairs of some tokens, still sorted by expert."""
        chosen_T = torch.zeros(self.num_tokens, dtype=torch.bool, device=tokens.device)
        chosen_T[tokens] = True
        pairs = chosen_T[self.tokens_S].nonzero()[:, 0]
        counts = torch.bincount(self.experts_S[pairs], minlength=len(self.counts_E))
        return Part(pairs, counts.cumsum(0).to(torch.int32))


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some of the sorted pairs, by number, with the end of each expert's span among them."""

    pairs: Tensor
    offsets_E: Tensor


def grouped_product(x_SI: Tensor, weight_EIO: Tensor, offsets_E: Tensor) -> Tensor:
    """Return each span of `x` times its expert's matrix, `(S, O)`."""
    if _is_native(x_SI, weight_EIO):
        found: Tensor = torch.nn.functional.grouped_mm(x_SI, weight_EIO, offs=offsets_E)
        return found
    spans = _spans(offsets_E)
    if not spans:
        return x_SI.new_empty(0, weight_EIO.shape[-1])
    return torch.cat([x_SI[start:stop] @ weight_EIO[e] for e, start, stop in spans])


def grouped_outer(g_SO: Tensor, x_SI: Tensor, offsets_E: Tensor) -> Tensor:
    """Return each span's `gᵀ x`, `(E, O, I)`; zero for an expert without tokens."""
    if _is_native(g_SO, x_SI):
        found: Tensor = torch.nn.functional.grouped_mm(g_SO.T, x_SI, offs=offsets_E)
        return found
    outer = x_SI.new_zeros(len(offsets_E), g_SO.shape[1], x_SI.shape[1])
    for e, start, stop in _spans(offsets_E):
        torch.mm(g_SO[start:stop].T, x_SI[start:stop], out=outer[e])
    return outer


def _spans(offsets_E: Tensor) -> list[tuple[int, int, int]]:
    """Return expert, start and stop of every span that is not empty."""
    ends = offsets_E.tolist()
    return [(e, start, stop) for e, (start, stop) in enumerate(zip([0, *ends], ends, strict=False))
            if start < stop]  # fmt: skip


def _is_native(*tensors: Tensor) -> bool:
    """Return True if torch's own grouped product takes these tensors."""
    first = tensors[0]
    if first.device.type not in ("cpu", "cuda"):
        return False
    if first.device.type == "cuda" and torch.cuda.get_device_capability(first.device) < (8, 0):
        return False
    unit = ALIGNMENT_BYTES // first.element_size()
    sizes = [size for t in tensors for size in (t.shape[-2:] if t.dim() == 3 else t.shape[-1:])]
    aligned = all(t.data_ptr() % ALIGNMENT_BYTES == 0 for t in tensors)
    return first.shape[0] > 0 and aligned and all(size % unit == 0 for size in sizes)


class JoinedFactors:
    """`A` and `B` of all experts as one matrix each, of E R columns and rows.

    A processor prepares each product of a new size for about half a millisecond, and the spans of
    experts have other sizes in every step. One product for all experts that leaves out nothing
    costs less than E small ones as long as E R is a fraction of the width.
    """

    def __init__(self, groups: Groups, a_ERI: Tensor, b_EOR: Tensor, gathers: bool) -> None:
        """Take factors in the input's precision; `gathers` as in `GroupedLinear`."""
        rank = a_ERI.shape[1]
        self.shapes = a_ERI.shape, b_EOR.mT.shape
        self.a_NI, self.b_NO = a_ERI.flatten(0, 1), b_EOR.mT.flatten(0, 1)
        self.columns_SR = groups.experts_S[:, None] * rank + torch.arange(rank)
        places_S = groups.tokens_S if gathers else torch.arange(len(groups.order_S))
        self.places_S1 = places_S[:, None]
        self.rows = len(groups.order_S) // (groups.per_token if gathers else 1)

    @staticmethod
    def fits(x: Tensor, a_ERI: Tensor) -> bool:
        """Return True on a processor if E R is small beside the input's width."""
        return x.device.type == "cpu" and 4 * a_ERI.shape[0] * a_ERI.shape[1] <= x.shape[-1]

    def low(self, x: Tensor, x_SI: Tensor) -> Tensor:
        """Return `A x` of each pair, `(S, R)`."""
        return (x @ self.a_NI.T)[self.places_S1, self.columns_SR]

    def add(self, y_SO: Tensor, h_SR: Tensor) -> None:
        """Add `B h` to each pair."""
        y_SO.addmm_(self._spread(h_SR), self.b_NO)

    def gradients(self, g_SO: Tensor, x: Tensor, h_SR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `Bᵀ g` of each pair and the gradients of `A` and `B`."""
        part_SR = (g_SO @ self.b_NO.T).gather(1, self.columns_SR)
        grad_a = (self._at_inputs(part_SR).T @ x).view(self.shapes[0])
        return part_SR, grad_a, (self._spread(h_SR).T @ g_SO).view(self.shapes[1]).mT

    def add_to_inputs(self, grad_x: Tensor, part_SR: Tensor) -> None:
        """Add `Aᵀ part` to the gradient of the input, `(T, I)` if it gathers, else `(S, I)`."""
        grad_x.addmm_(self._at_inputs(part_SR), self.a_NI)

    def _spread(self, h_SR: Tensor) -> Tensor:
        """Return `(S, E R)`: each pair's numbers in its expert's columns, zeros elsewhere."""
        zeros = h_SR.new_zeros(len(h_SR), len(self.a_NI))
        return zeros.scatter_(1, self.columns_SR, h_SR)

    def _at_inputs(self, part_SR: Tensor) -> Tensor:
        """Return the sums of each input row's pairs in their experts' columns, `(rows, E R)`."""
        zeros = part_SR.new_zeros(self.rows, len(self.a_NI))
        return zeros.index_put_((self.places_S1, self.columns_SR), part_SR, accumulate=True)


class GroupedFactors:
    """`A` and `B` of each expert in a product of its own, which torch groups."""

    def __init__(
        self, groups: Groups | Part, a_ERI: Tensor, b_EOR: Tensor, gathers: bool = False
    ) -> None:
        """Take factors in the input's precision; `gathers` as in `GroupedLinear`."""
        self.tokens = groups if gathers and isinstance(groups, Groups) else None
        self.ends_E, self.rank = groups.offsets_E, a_ERI.shape[1]
        self.a, self.b = _padded(a_ERI, 1), _padded(b_EOR, 2)

    def low(self, x: Tensor, x_SI: Tensor) -> Tensor:
        """Return `A x` of each pair, `(S, R)` with R padded."""
        return grouped_product(x_SI, self.a.mT, self.ends_E)

    def high(self, h_SR: Tensor) -> Tensor:
        """Return `B h` of each pair."""
        return grouped_product(h_SR, self.b.mT, self.ends_E)

    def add(self, y_SO: Tensor, h_SR: Tensor) -> None:
        """Add `B h` to each pair."""
        y_SO += self.high(h_SR)

    def gradients(self, g_SO: Tensor, x: Tensor, h_SR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `Bᵀ g` of each pair and the gradients of `A` and `B`."""
        part_SR = grouped_product(g_SO, self.b, self.ends_E)
        x_SI = self.tokens.gather(x) if self.tokens else x
        grad_a = grouped_outer(part_SR, x_SI, self.ends_E)[:, : self.rank]
        return part_SR, grad_a, grouped_outer(g_SO, h_SR, self.ends_E)[:, :, : self.rank]

    def of_pairs(self, part_SR: Tensor) -> Tensor:
        """Return `Aᵀ part` of each pair."""
        return grouped_product(part_SR, self.a, self.ends_E)

    def add_to_inputs(self, grad_x: Tensor, part_SR: Tensor) -> None:
        """Add `Aᵀ part` to the gradient of the input, `(T, I)` if it gathers, else `(S, I)`."""
        found = self.of_pairs(part_SR)
        grad_x += self.tokens.combine(found) if self.tokens else found


class GroupedLinear(torch.autograd.Function):
    """`y_s = W_e x_s + b_e + B_e A_e x_s` for each pair, with `W` and `b` frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: Groups, weights: ExpertWeights, bias_EO: Tensor | None,
        gathers: bool, a_ERI: Tensor | None, b_EOR: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Return `(S, O)`; `x` is `(T, I)` if it `gathers`, else `(S, I)`."""
        matrices, offsets = weights.used(groups, x.dtype)
        x_SI = groups.gather(x) if gathers else x
        y_SO = grouped_product(x_SI, matrices, offsets)
        if bias_EO is not None:
            y_SO += bias_EO[groups.experts_S]
        ctx.groups, ctx.weights, ctx.gathers, ctx.factors = groups, weights, gathers, None
        ctx.dtype = x.dtype
        if a_ERI is None or b_EOR is None:
            return y_SO
        kind = JoinedFactors if JoinedFactors.fits(x, a_ERI) else GroupedFactors
        factors = kind(groups, a_ERI.to(x.dtype), b_EOR.to(x.dtype), gathers)
        h_SR = factors.low(x, x_SI)
        factors.add(y_SO, h_SR)
        ctx.factors, ctx.dtypes = factors, (a_ERI.dtype, b_EOR.dtype)
        ctx.save_for_backward(x, h_SR)
        return y_SO

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `x`, `A` and `B`."""
        g_SO, groups, factors = outputs[0].contiguous(), ctx.groups, ctx.factors
        grad_x = grad_a = grad_b = part_SR = None
        if factors:
            x, h_SR = ctx.saved_tensors
            part_SR, grad_a, grad_b = factors.gradients(g_SO, x, h_SR)
            grad_a, grad_b = grad_a.to(ctx.dtypes[0]), grad_b.to(ctx.dtypes[1])
        if ctx.needs_input_grad[0]:
            matrices, offsets = ctx.weights.used(groups, ctx.dtype)
            grad_x = grouped_product(g_SO, matrices.mT, offsets)
            grad_x = groups.combine(grad_x) if ctx.gathers else grad_x
            if factors:
                factors.add_to_inputs(grad_x, part_SR)
        return grad_x, None, None, None, None, grad_a, grad_b


class GroupedDelta(torch.autograd.Function):
    """`y_s = B_e A_e x_s` for some of the pairs: the adapter of some rows."""

    @staticmethod
    def forward(
        ctx: Any, x_PI: Tensor, pairs: Groups | Part, a_ERI: Tensor, b_EOR: Tensor
    ) -> Tensor:
        """Return `(P, O)`."""
        ctx.factors = GroupedFactors(pairs, a_ERI.to(x_PI.dtype), b_EOR.to(x_PI.dtype))
        ctx.dtypes = a_ERI.dtype, b_EOR.dtype
        h_PR = ctx.factors.low(x_PI, x_PI)
        ctx.save_for_backward(x_PI, h_PR)
        result: Tensor = ctx.factors.high(h_PR)
        return result

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `x`, `A` and `B`."""
        x_PI, h_PR = ctx.saved_tensors
        part_PR, grad_a, grad_b = ctx.factors.gradients(outputs[0].contiguous(), x_PI, h_PR)
        grad_x = ctx.factors.of_pairs(part_PR) if ctx.needs_input_grad[0] else None
        return grad_x, None, grad_a.to(ctx.dtypes[0]), grad_b.to(ctx.dtypes[1])


def _padded(factor: Tensor, axis: int) -> Tensor:
    """Return a factor whose rank is a multiple of what the grouped product needs."""
    unit = ALIGNMENT_BYTES // factor.element_size()
    missing = -factor.shape[axis] % unit
    if not missing:
        return factor.contiguous()
    return pad(factor, (0, missing) if axis == 2 else (0, 0, 0, missing))
