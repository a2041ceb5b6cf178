"""Experts: the routed matrices of a mixture, as sites where low-rank adapters act.

transformers stores all experts of a layer as 3-D parameters of one module, whose forward it looks
up by name. The function here is registered under "studio": it sorts the tokens by expert, applies
the site plans of `composition.py` to each projection, and counts the tokens that each expert saw.
Experts that transformers computes on every token (Llama 4) get a forward that leaves out the tokens
to which the router gave nothing, whose result is zero.

A site's key is the parameter's path (`model.layers.0.mlp.experts.gate_up_proj`). A module of
another kind is not adapted, and `Experts.of` says which.

Shapes: `T tokens, K experts per token, S pairs sorted by expert, E experts, D hidden, I
in_features, O out_features`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from studio.backbone.attention import AttentionState
from studio.backbone.composition import Edit, SitePlan
from studio.backbone.dense_weights import dequantised
from studio.backbone.expert_kernels import GroupedDelta, GroupedLinear, Groups, grouped_product
from studio.backbone.expert_layout import ExpertLayout, expert_layout
from studio.backbone.sites import Site
from studio.errors import MethodError

NAME = "studio"
PlanOf = Callable[[str], SitePlan | None]


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
