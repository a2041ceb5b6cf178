"""P-tuning: prompt tuning whose embeddings are the output of a small network."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from studio.fields import knob
from studio.methods.method import Init, Params, kaiming_uniform
from studio.methods.prompt_tuning import PromptTuning

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Site


class PTuning(PromptTuning):
    """`[MLP(E); X]`: a table `E ∈ R^{P×D}` goes through `W_3 relu(W_2 relu(W_1 ·))`; the output is
    prepended to the sequence.

    When to use it: where prompt tuning learns too slowly; the network couples the virtual tokens.
    Cost: after training as prompt tuning: only the network's output, `P · D` numbers, is stored.
    Source: arXiv:2103.10385 (with the MLP encoder).
    """

    title: ClassVar[str] = "P-tuning"
    paper: ClassVar[str] = "arXiv:2103.10385"
    peft_type: ClassVar[str] = "P_TUNING"
    base_learning_rate: ClassVar[float] = 2e-3
    width_exponent: ClassVar[float] = 0.5
    largest_learning_rate: ClassVar[float] = 1.2e-2

    name: Literal["p_tuning"] = "p_tuning"  # type: ignore[assignment]
    encoder_hidden_size: int = knob(
        256, "Inner size of the network.", title="Encoder size", ge=1, le=65536, advanced=True
    )

    def create(self, site: Site, init: Init) -> Params:
        """Return the table as in prompt tuning and the Kaiming-uniform network."""
        import torch

        params = super().create(site, init)
        sizes = [site.in_features, self.encoder_hidden_size, self.encoder_hidden_size]
        for place, (fan_in, fan_out) in enumerate(
            zip(sizes, [*sizes[1:], site.in_features], strict=True)
        ):
            weight = kaiming_uniform(fan_out, fan_in, init.generator)
            params[f"mlp.{2 * place}.weight"] = weight
            params[f"mlp.{2 * place}.bias"] = torch.zeros(fan_out)
        return params

    def virtual_tokens(self, p: Params) -> Tensor:
        """Return `(P, D)`: the network's output, or the stored table after training."""
        from torch.nn.functional import linear

        hidden = p["embedding"]
        for place in (0, 2, 4):
            if f"mlp.{place}.weight" in p:
                hidden = linear(hidden, p[f"mlp.{place}.weight"], p[f"mlp.{place}.bias"])
                hidden = hidden.relu() if place < 4 else hidden
        return hidden
