"""Prompt tuning: trained embeddings before the sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from studio.fields import knob
from studio.methods.method import Init, Params, Phase, VirtualTokenMethod

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Site


class PromptTuning(VirtualTokenMethod):
    """`[P; X]`: trained embeddings `P ∈ R^{P×D}` before the embeddings `X` of the sequence.

    Since attention is causal, the prompt's keys and values do not depend on what follows: they are
    computed once per batch and act as a prefix of every row, in training and in chat.

    When to use it: when the adapter must be tiny (a few kilobytes) and the model is large; small
    models learn less this way than with LoRA.
    Cost: `P · D` parameters, and P positions of every context.
    Source: arXiv:2104.08691.
    """

    title: ClassVar[str] = "Prompt tuning"
    paper: ClassVar[str] = "arXiv:2104.08691"
    phase: ClassVar[Phase] = Phase.PROMPT
    peft_type: ClassVar[str] = "PROMPT_TUNING"
    base_learning_rate: ClassVar[float] = 2e-2
    width_exponent: ClassVar[float] = 0.8
    largest_learning_rate: ClassVar[float] = 0.15
    peft_ignored: ClassVar[tuple[str, ...]] = (
        *VirtualTokenMethod.peft_ignored, "prompt_tuning_init", "prompt_tuning_init_text",
        "tokenizer_name_or_path", "tokenizer_kwargs", "encoder_reparameterization_type",
        "encoder_num_layers", "encoder_dropout",
    )  # fmt: skip

    name: Literal["prompt_tuning"] = "prompt_tuning"
    prompt_tuning_init: Literal["SAMPLE_VOCAB", "RANDOM", "TEXT"] = knob(
        "TEXT", "Initial embeddings: those of a text, of random tokens, or noise of the same "
        "scale.", title="Initialisation",
    )  # fmt: skip
    prompt_tuning_init_text: str = knob(
        "", "Text to start from, truncated or repeated to P tokens; empty takes the first row.",
        title="Initial text", advanced=True, max_length=20_000, lines=4,
    )  # fmt: skip

    def create(self, site: Site, init: Init) -> Params:
        """Return rows of the model's embedding table, or noise of their scale."""
        import torch

        table = site.module.get_input_embeddings().weight.detach().float().cpu()
        count = self.num_virtual_tokens
        if self.prompt_tuning_init == "RANDOM":
            noise = torch.empty(count, table.shape[1]).normal_(generator=init.generator)
            return {"embedding": noise * table.std()}
        text = self.prompt_tuning_init_text
        if self.prompt_tuning_init == "SAMPLE_VOCAB":
            init, text = Init(init.generator), ""
        return {"embedding": table[self.start(text, table.shape[0], init)].clone()}

    def virtual_tokens(self, p: Params) -> Tensor:
        """Return `(P, D)`."""
        return p["embedding"]
