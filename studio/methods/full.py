"""Full fine-tuning: train every weight of the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from studio.methods.method import Method, Phase

if TYPE_CHECKING:
    from studio.backbone.sites import Anatomy, Site


class Full(Method):
    """`W ← W − η ∇W` for every weight of the model.

    When to use it: as the reference for other methods, or on small models. The result is a model,
    not an adapter: it cannot be stacked.
    Cost: all parameters, their gradients and two optimizer moments: about 16 bytes per parameter
    in float32.
    Source: the reference in every paper here, e.g. arXiv:2106.09685.
    """

    title: ClassVar[str] = "Full fine-tuning"
    paper: ClassVar[str] = "arXiv:2106.09685"
    phase: ClassVar[Phase] = Phase.WEIGHTS
    peft_type: ClassVar[str] = ""
    base_learning_rate: ClassVar[float] = 5e-5
    width_exponent: ClassVar[float] = 1.32
    largest_learning_rate: ClassVar[float] = 2e-3

    name: Literal["full"] = "full"

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Return the whole model."""
        return [anatomy.whole()]
