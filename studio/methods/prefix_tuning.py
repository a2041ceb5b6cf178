"""Prefix tuning: trained keys and values before those of every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from studio.fields import knob
from studio.methods.method import Init, Params, Phase, VirtualTokenMethod

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Anatomy, Site


class PrefixTuning(VirtualTokenMethod):
    """`K' = [K_prefix; K]`, `V' = [V_prefix; V]` in every layer, `K_prefix, V_prefix ∈ R^{P×d_kv}`.

    With `prefix_projection` the prefix is `W_2 tanh(W_1 E)` of a small table `E` in training,
    which is more stable; only the result is stored.

    When to use it: to steer style and task with few parameters; one model serves many prefixes at
    once.
    Cost: `2 · layers · P · kv_heads · head_dim` parameters, and P positions of every context.
    Source: arXiv:2101.00190.
    """

    title: ClassVar[str] = "Prefix tuning"
    paper: ClassVar[str] = "arXiv:2101.00190"
    phase: ClassVar[Phase] = Phase.KEYS_VALUES
    peft_type: ClassVar[str] = "PREFIX_TUNING"
    base_learning_rate: ClassVar[float] = 1e-2
    width_exponent: ClassVar[float] = 1.4
    largest_learning_rate: ClassVar[float] = 0.3
    peft_ignored: ClassVar[tuple[str, ...]] = (
        *VirtualTokenMethod.peft_ignored, "prefix_projection", "init_weights",
    )  # fmt: skip

    name: Literal["prefix_tuning"] = "prefix_tuning"
    prefix_init: Literal["TEXT", "RANDOM"] = knob(
        "TEXT", "Initial keys and values: those that the base computes for a text, or small noise.",
        title="Initialisation",
    )  # fmt: skip
    prefix_init_text: str = knob(
        "", "Text to start from, truncated or repeated to P tokens; empty takes the first row.",
        title="Initial text", advanced=True, max_length=20_000, lines=4,
    )  # fmt: skip
    prefix_projection: bool = knob(
        False, "Train the output of a small network (reparameterisation).", title="Projection",
        advanced=True,
    )  # fmt: skip
    encoder_hidden_size: int = knob(
        512, "Hidden size of that network.", title="Projection size", ge=1, le=65536, advanced=True
    )

    def token_width(self, anatomy: Anatomy) -> int:
        """Return the size of keys and values in all layers that have their own."""
        return anatomy.key_width

    def create(self, site: Site, init: Init) -> Params:
        """Return keys and values of a text, a small normal prefix, or with projection a network."""
        import torch

        from studio.backbone.sites import anatomy_of

        width = self.token_width(anatomy_of(site.module))
        if not self.prefix_projection:
            if self.prefix_init == "TEXT" and init.keys_values:
                vocabulary = site.module.get_input_embeddings().weight.shape[0]
                ids = self.start(self.prefix_init_text, vocabulary, init)
                return {"embedding": init.keys_values(ids)}
            shape = (self.num_virtual_tokens, width)
            return {"embedding": torch.empty(shape).normal_(std=0.02, generator=init.generator)}
        inner, table = self.encoder_hidden_size, site.in_features
        draw = lambda *shape: torch.empty(shape).normal_(std=0.02, generator=init.generator)  # noqa: E731
        return {
            "embedding": draw(self.num_virtual_tokens, table) * 50,
            "transform.0.weight": draw(inner, table), "transform.0.bias": torch.zeros(inner),
            "transform.2.weight": draw(width, inner), "transform.2.bias": torch.zeros(width),
        }  # fmt: skip

    def virtual_tokens(self, p: Params) -> Tensor:
        """Return `(P, keys and values of all layers)`."""
        from torch.nn.functional import linear

        if "transform.0.weight" not in p:
            return p["embedding"]
        inner = linear(p["embedding"], p["transform.0.weight"], p["transform.0.bias"]).tanh()
        return linear(inner, p["transform.2.weight"], p["transform.2.bias"])

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """Return the fields of PEFT's PrefixTuningConfig, for the computed prefix."""
        from studio.backbone.sites import anatomy_of

        anatomy = anatomy_of(sites[0].module)
        keys = anatomy.key_shapes
        return super().to_peft(sites) | {
            "token_dim": keys[0].heads * keys[0].key_size, "num_attention_heads": keys[0].heads,
            "num_layers": len(keys), "encoder_hidden_size": anatomy.hidden_size,
            "prefix_projection": False,
        }  # fmt: skip
