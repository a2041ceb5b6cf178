"""Forward hooks on the sites: they apply the active plan.

A hook exists only where a plan has edits, so other sites cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from studio.backbone.attention import AttentionState
from studio.backbone.composition import SitePlan
from studio.backbone.linear_kernels import Linears, LowRankDelta, Span, draw_seed, project
from studio.backbone.sites import Anatomy, Site
from studio.errors import MethodError

Plans = dict[str, SitePlan]
SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linear layers that read one input, so that their trained products may be one."""


def is_plain_linear(module: Any) -> bool:
    """Return True for a linear layer that computes `W x + b`, its weight in 4 bit or not."""
    return type(module) in (nn.Linear, Conv1D) or (
        isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state")
    )


class Hooks:
    """Applies plans while the model runs."""

    def __init__(self, anatomy: Anatomy, state: AttentionState) -> None:
        self._anatomy = anatomy
        self._state = state
        self._plans: Plans = {}
        self._handles: dict[str, list[Any]] = {}
        self._residuals: dict[str, Tensor] = {}
        self._replaced: dict[str, Site] = {}
        self._ready: dict[str, tuple[Tensor, Tensor]] = {}  # input and output, computed together
        self._apart: set[str] = set()

    def apply(self, plans: Plans) -> None:
        """Apply these plans from now on."""
        self._plans = plans
        for key in self._handles.keys() - plans.keys():
            for handle in self._handles.pop(key):
                handle.remove()
        modules = {key for key, plan in plans.items() if plan.site.kind != "experts"}
        for key in modules - self._handles.keys():
            self._handles[key] = self._install(plans[key].site)
        self._replace_forwards({key for key in modules if plans[key].is_one_node})

    def plan_of(self, key: str) -> SitePlan | None:
        """Return the active plan of a site; experts ask for theirs (`experts.py`)."""
        return self._plans.get(key)

    def _lengths(self, x: Tensor, plan: SitePlan) -> tuple[int, ...] | None:
        """Return the row lengths of a tensor in which rows follow each other, else None.

        A mixture of experts passes flat `(tokens, features)` tensors to its linears.

        Raises:
            MethodError: Rows have adapters of their own, and the tensor mixes the rows.
        """
        if x.dim() > 2 or not plan.is_routed:
            return self._state.lengths
        found = self._state.token_rows(len(x))
        if found is None:
            raise MethodError(
                f"{plan.site.key} does not see every token of a batch, so adapters of several rows "
                "cannot share it; leave this module out of target_modules, or use one adapter."
            )
        return found

    def _replace_forwards(self, wanted: set[str]) -> None:
        """Give exactly these linear layers a forward with their trained products in one node."""
        for key in self._replaced.keys() - wanted:
            del self._replaced.pop(key).module.forward  # uncovers the class's own
        for key in wanted - self._replaced.keys():
            site = self._plans[key].site
            if is_plain_linear(site.module) and "forward" not in vars(site.module):
                site.module.forward = self._one_node(site)
                self._replaced[key] = site

    def _one_node(self, site: Site) -> Callable[[Tensor], Tensor]:
        module: Any = site.module
        parent, _, name = site.key.rpartition(".")
        names = next((names for names in SHARED_INPUT if name in names), (name,))

        def forward(x: Tensor) -> Tensor:
            computed_for, y = self._ready.pop(site.key, (None, x))
            if computed_for is x:
                return y
            if self._ready:  # computed and not read: these do not share their inputs
                self._apart.add(parent)
                self._ready.clear()
            keys = [site.key] if parent in self._apart else [f"{parent}.{own}" for own in names]
            sites = [self._replaced[key] for key in keys if key in self._replaced]
            linears = self.linears(sites, x) or self.linears(sites := [site], x)
            if linears is None:
                plan = self._plans[site.key]
                base = type(module).forward(module, x)
                return plan.apply_output(x, base, None, self._lengths(x, plan))
            self._ready = {
                one.key: (x, y) for one, y in zip(sites, project(x, linears), strict=True)
            }
            return self._ready.pop(site.key)[1]

        return forward

    def linears(self, sites: Sequence[Site], x: Tensor) -> Linears | None:
        """Return linear layers of one input with their low-rank edits; None if they have others."""
        deltas = []
        for number, site in enumerate(sites):
            plan, module = self._plans.get(site.key), site.module
            if plan is None and is_plain_linear(module):
                hooked = module._forward_hooks or module._forward_pre_hooks
                if hooked or "forward" in vars(module) or module.weight.requires_grad:
                    return None
                continue
            if plan is None or site.key not in self._replaced:
                return None
            spans: list[Span | None] = [(0, x.numel() // x.shape[-1])]
            if not plan.is_one_product:
                lengths = self._lengths(x, plan)
                spans = [edit.rows.span(lengths) if lengths else None for edit in plan.deltas]
            for edit, span in zip(plan.deltas, spans, strict=True):
                if span is None:  # not packed, or its rows do not follow each other
                    return None
                factors, dropout = partial(edit.factors, site), edit.method.input_dropout
                seed = draw_seed() if dropout else 0
                gain = edit.method.scales_rows
                deltas.append(LowRankDelta(factors, span, number, gain, dropout, seed))
        return Linears(sites, deltas)

    @contextmanager
    def applying(self, plans: Plans) -> Iterator[None]:
        """Apply plans temporarily, for sites that have hooks already."""
        before, self._plans = self._plans, plans
        replaced = set(self._replaced)
        self._replace_forwards({key for key in replaced if key in plans and plans[key].is_one_node})
        try:
            yield
        finally:
            self._plans = before
            self._replace_forwards(replaced)

    def _install(self, site: Site) -> list[Any]:
        key, is_mlp = site.key, site.kind == "mlp"

        def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            plan = self._plans.get(key)
            if plan is None or not plan.gains or not args:
                return None
            return (plan.apply_input(args[0], self._lengths(args[0], plan)), *args[1:])

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            plan = self._plans.get(key)
            if plan is None or key in self._replaced:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            x = args[0] if args else hidden
            x = x[..., None] if site.kind == "embedding" else x
            residual = self._residuals.pop(key, None) if is_mlp else None
            changed = plan.apply_output(x, hidden, residual, self._lengths(hidden, plan))
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handles: list[Any] = [
            site.module.register_forward_pre_hook(before),
            site.module.register_forward_hook(after),
        ]
        norm = self._anatomy.residual_norm(site) if is_mlp else None
        if norm is not None:

            def remember(module: nn.Module, args: tuple[Any, ...]) -> None:
                self._residuals[key] = args[0]

            handles.append(norm.register_forward_pre_hook(remember))
        return handles
