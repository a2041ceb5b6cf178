"""Forward hooks on the sites: they apply the active plan.

A hook exists only where a plan has edits, so other sites cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from studio.backbone.attention import AttentionState
from studio.backbone.composition import SitePlan
from studio.backbone.linear_kernels import adapter_spans, low_rank_linear
from studio.backbone.sites import Anatomy, Site
from studio.errors import MethodError

Plans = dict[str, SitePlan]


class Hooks:
    """Applies plans while the model runs."""

    def __init__(self, anatomy: Anatomy, state: AttentionState) -> None:
        self._anatomy = anatomy
        self._state = state
        self._plans: Plans = {}
        self._handles: dict[str, list[Any]] = {}
        self._residuals: dict[str, Tensor] = {}
        self._replaced: dict[str, nn.Module] = {}

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
        """Give exactly these linear layers a forward with their trained product in one node."""
        for key in self._replaced.keys() - wanted:
            del self._replaced.pop(key).forward  # uncovers the class's own
        for key in wanted - self._replaced.keys():
            site = self._plans[key].site
            if type(site.module) in (nn.Linear, Conv1D) and "forward" not in vars(site.module):
                site.module.forward = self._one_node(site)
                self._replaced[key] = site.module

    def _one_node(self, site: Site) -> Callable[[Tensor], Tensor]:
        module: Any = site.module

        def forward(x: Tensor) -> Tensor:
            plan = self._plans[site.key]
            lengths = self._lengths(x, plan)
            weight, bias, turned = module.weight, module.bias, site.transposed
            if plan.is_one_product:
                return low_rank_linear(
                    x, weight, bias, *plan.deltas[0].factors(site), transposed=turned
                )
            if (found := adapter_spans(plan.deltas, site, lengths)) is not None:
                spans, factors = found
                return low_rank_linear(x, weight, bias, *factors, spans=spans, transposed=turned)
            return plan.apply_output(x, type(module).forward(module, x), None, lengths)

        return forward

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
