"""Prompt tuning: trained embeddings before the sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from studio.errors import MethodError
from studio.fields import knob
from studio.methods.method import Init, Method, Params, Phase
from studio.methods.prefix_tuning import read_table

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Anatomy, Site


class PromptTuning(Method):
    """`[P; X]`: `P ∈ R^{P×D}` trained embeddings stand before the embeddings `X` of the sequence.

    Since attention is causal, the prompt's keys and values do not depend on what follows: they are
    computed once per batch and serve every row as a prefix, in training and in chat.

    When to use it: when the change must stay tiny (a few kilobytes) and the model is large;
    small models learn less this way than with LoRA.
    Cost: `P · D` parameters, and P positions of every context.
    Source: arXiv:2104.08691.
    """

    title: ClassVar[str] = "Prompt tuning"
    paper: ClassVar[str] = "arXiv:2104.08691"
    phase: ClassVar[Phase] = Phase.PROMPT
    peft_type: ClassVar[str] = "PROMPT_TUNING"
    base_learning_rate: ClassVar[float] = 2e-2
    largest_learning_rate: ClassVar[float] = 1e-1
    peft_fields: ClassVar[tuple[str, ...]] = ("num_virtual_tokens",)

    name: Literal["prompt_tuning"] = "prompt_tuning"
    num_virtual_tokens: int = knob(
        16, "P: positions before every sequence.", title="Virtual tokens", ge=1, le=4096
    )
    prompt_tuning_init: Literal["SAMPLE_VOCAB", "RANDOM", "TEXT"] = knob(
        "SAMPLE_VOCAB",
        "Start from embeddings of random words, from noise of their size, or from a text.",
        title="Initialisation",
    )
    prompt_tuning_init_text: str = knob(
        "", "The text to start from, cut or repeated to P tokens.", title="Initial text",
        advanced=True, max_length=20_000,
    )  # fmt: skip

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """The whole model."""
        return [anatomy.whole()]

    @property
    def num_tokens_before(self) -> int:
        """P."""
        return self.num_virtual_tokens

    def create(self, site: Site, init: Init) -> Params:
        """Rows of the model's own embedding table, or noise of their scale."""
        import torch

        table = site.module.get_input_embeddings().weight.detach().float().cpu()
        count = self.num_virtual_tokens
        if self.prompt_tuning_init == "RANDOM":
            noise = torch.empty(count, table.shape[1]).normal_(generator=init.generator)
            return {"embedding": noise * table.std()}
        if self.prompt_tuning_init == "SAMPLE_VOCAB":
            rows = torch.randint(table.shape[0], (count,), generator=init.generator)
            return {"embedding": table[rows].clone()}
        if init.tokenize is None or not self.prompt_tuning_init_text.strip():
            raise MethodError(
                "prompt_tuning_init is TEXT, but prompt_tuning_init_text is empty; write the text "
                "to start from, or take RANDOM."
            )
        ids = torch.tensor(init.tokenize(self.prompt_tuning_init_text))
        return {"embedding": table[ids.repeat(-(-count // len(ids)))[:count]].clone()}

    def virtual_tokens(self, p: Params) -> Tensor:
        """`(P, D)`."""
        return p["embedding"]

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """PEFT's PromptTuningConfig; the initialisation is history by now."""
        return virtual_config(self.num_virtual_tokens, sites[0])

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Self:
        """Sizes follow from the tensors; how it was initialised does not matter any more."""
        return super().from_peft(without_sizes(config))

    def to_tensors(self, sites: list[Site], params: dict[str, Params]) -> Params:
        """One table, as PEFT stores it."""
        return {"prompt_embeddings": self.virtual_tokens(params[sites[0].key])}

    def from_tensors(self, tensors: Params, anatomy: Anatomy) -> tuple[list[Site], list[Params]]:
        """Read the one table.

        Raises:
            AdapterError: Other tensors, or a table for another model.
        """
        shape = (self.num_virtual_tokens, anatomy.hidden_size)
        return [anatomy.whole()], [read_table(tensors, shape)]


def virtual_config(num_virtual_tokens: int, site: Site) -> dict[str, Any]:
    """The fields that PEFT's prompt-learning configs share."""
    from studio.backbone.sites import Anatomy

    anatomy = Anatomy(site.module)
    return {
        "num_virtual_tokens": num_virtual_tokens,
        "token_dim": anatomy.hidden_size,
        "num_attention_heads": anatomy.num_heads,
        "num_layers": anatomy.num_layers,
        "num_transformer_submodules": 1,
        "target_modules": None,
    }


def without_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Drop the fields of a prompt-learning config that say nothing beyond the tensors."""
    ignored = {
        "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
        "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path",
        "tokenizer_kwargs", "encoder_reparameterization_type", "encoder_hidden_size",
        "encoder_num_layers", "encoder_dropout",
    }  # fmt: skip
    return {key: value for key, value in config.items() if key not in ignored}
