"""Sizes of a mixture of experts from its configuration, for estimates (no torch).

Most of a mixture's weights are its routed experts, and each token passes through a few of them.

Shapes: `D hidden, F inner, E experts, K experts per token`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from studio.methods.method import Method

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
ACTIVE = ("num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk")
FIRST = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Routed experts of a model: layers with them, experts, experts per token, sizes."""

    layers: int
    experts: int
    active: int
    hidden: int
    inner: int

    @property
    def parameters(self) -> int:
        """Weights of all routed experts: gate, up and down."""
        return self.layers * self.experts * 3 * self.hidden * self.inner

    @property
    def active_parameters(self) -> int:
        """Weights of routed experts that one token passes through."""
        return self.parameters * self.active // self.experts

    @property
    def largest_parameter(self) -> int:
        """Numbers of the largest 3-D parameter, which a quantised base dequantises at once."""
        return 2 * self.experts * self.hidden * self.inner

    def trained(self, method: Method) -> int:
        """Return the trained parameters of an adapter beside the experts."""
        targets = getattr(method, "target_modules", ())
        named = not isinstance(targets, str) and any("experts" in name for name in targets)
        if not method.is_low_rank or not (targets in ("all-linear", "mlp") or named):
            return 0
        if getattr(method, "use_dora", False):
            return 0  # experts are left out
        rank = getattr(method, "expert_r", 0) or max(1, getattr(method, "r", 1) // self.experts)
        return self.layers * self.experts * rank * (2 * self.hidden + 3 * self.inner)

    def activations(self, method: Method) -> int:
        """Return the numbers that autograd keeps per token and layer with experts.

        Of each of the K experts: gate, up and their product's factors (3 F), and the output that
        the router's weight multiplies (D); with an adapter also the input of the down projection.
        """
        beside = self.inner if self.trained(method) else 0
        return self.active * (3 * self.inner + self.hidden + beside)


def read_mixture(config: dict[str, Any], *, hidden: int, layers: int) -> Mixture | None:
    """Return the routed experts of a text configuration, or None of a dense model."""
    experts, active = _first(config, EXPERTS), _first(config, ACTIVE)
    inner = _first(config, ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size"))
    if experts < 2 or not active or not inner:
        return None
    dense = min(layers - 1, _first(config, FIRST))
    return Mixture(
        layers=layers - dense, experts=experts, active=active, hidden=hidden, inner=inner
    )


def shared_inner(config: dict[str, Any]) -> int:
    """Return the inner size of what runs beside the routed experts: shared experts or an MLP."""
    if "enable_moe_block" in config:  # an MLP beside the mixture
        return _first(config, ("intermediate_size",))
    shared = _first(config, ("n_shared_experts", "moe_num_shared_experts", "num_shared_experts"))
    inner = _first(config, ("moe_intermediate_size", "intermediate_size"))
    return _first(config, ("shared_expert_intermediate_size",)) or shared * inner


def _first(config: dict[str, Any], names: tuple[str, ...]) -> int:
    """Return the first size that the configuration has; where layers differ, the largest."""
    for name in names:
        value = config.get(name)
        numbers = value if isinstance(value, list) else [value]
        found = [each for each in numbers if isinstance(each, int) and each > 0]
        if found:
            return max(found)
    return 0
