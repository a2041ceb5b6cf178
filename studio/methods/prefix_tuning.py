"""Prefix tuning: trained keys and values before every layer's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from studio.errors import AdapterError
from studio.fields import knob
from studio.methods.method import Init, Method, Params, Phase

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Anatomy, Site


class PrefixTuning(Method):
    """`K' = [K_prefix; K]`, `V' = [V_prefix; V]` in every layer, `K_prefix, V_prefix ∈ R^{P×d_kv}`.

    With `prefix_projection` the prefix is `W_2 tanh(W_1 E)` of a small table `E` while training,
    which steadies it; only the result is stored.

    When to use it: to steer style and task with few parameters while every weight stays as it is;
    many prefixes serve from one model at once.
    Cost: `2 · layers · P · kv_heads · head_dim` parameters, and P positions of every context.
    Source: arXiv:2101.00190.
    """

    title: ClassVar[str] = "Prefix tuning"
    paper: ClassVar[str] = "arXiv:2101.00190"
    phase: ClassVar[Phase] = Phase.KEYS_VALUES
    peft_type: ClassVar[str] = "PREFIX_TUNING"
    base_learning_rate: ClassVar[float] = 1e-2
    largest_learning_rate: ClassVar[float] = 5e-2
    peft_fields: ClassVar[tuple[str, ...]] = ("num_virtual_tokens",)

    name: Literal["prefix_tuning"] = "prefix_tuning"
    num_virtual_tokens: int = knob(
        16, "P: positions before every sequence.", title="Virtual tokens", ge=1, le=4096
    )
    prefix_projection: bool = knob(
        False, "Train through a small network (reparameterisation).", title="Projection",
        advanced=True,
    )  # fmt: skip
    encoder_hidden_size: int = knob(
        512, "Inner size of that network.", title="Projection size", ge=1, le=65536, advanced=True
    )

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """The whole model."""
        return [anatomy.whole()]

    @property
    def num_tokens_before(self) -> int:
        """P."""
        return self.num_virtual_tokens

    def create(self, site: Site, init: Init) -> Params:
        """A small normal prefix; with projection, table and network as in the paper."""
        import torch

        from studio.backbone.sites import kv_size

        width = kv_size(site.module)
        if not self.prefix_projection:
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
        """`(P, layers · 2 · kv_heads · head_dim)`."""
        from torch.nn.functional import linear

        if "transform.0.weight" not in p:
            return p["embedding"]
        inner = linear(p["embedding"], p["transform.0.weight"], p["transform.0.bias"]).tanh()
        return linear(inner, p["transform.2.weight"], p["transform.2.bias"])

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """PEFT's PrefixTuningConfig of the finished prefix."""
        from studio.backbone.sites import Anatomy

        anatomy = Anatomy(sites[0].module)
        return {
            "num_virtual_tokens": self.num_virtual_tokens,
            "token_dim": anatomy.num_kv_heads * anatomy.head_dim,
            "num_attention_heads": anatomy.num_kv_heads,
            "num_layers": anatomy.num_layers,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": anatomy.hidden_size,
            "prefix_projection": False,
            "target_modules": None,
        }

    peft_neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> PrefixTuning:
        """Sizes follow from the tensors; the projection is already computed in the file."""
        ignored = {"token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
                   "encoder_hidden_size", "prefix_projection", "init_weights"}  # fmt: skip
        return super().from_peft({k: v for k, v in config.items() if k not in ignored})

    def to_tensors(self, sites: list[Site], params: dict[str, Params]) -> Params:
        """One table, as PEFT stores it."""
        return {"prompt_embeddings": self.virtual_tokens(params[sites[0].key])}

    def from_tensors(self, tensors: Params, anatomy: Anatomy) -> tuple[list[Site], list[Params]]:
        """Read the one table.

        Raises:
            AdapterError: Other tensors, or a table for another model.
        """
        site = anatomy.whole()
        return [site], [read_table(tensors, (self.num_virtual_tokens, self._width(site)))]

    def _width(self, site: Site) -> int:
        from studio.backbone.sites import kv_size

        return kv_size(site.module)


def read_table(tensors: Params, shape: tuple[int, int]) -> Params:
    """Return the only tensor of a virtual-token file, checked.

    Raises:
        AdapterError: There are other tensors, or its shape is not `shape`.
    """
    if tensors.keys() != {"prompt_embeddings"}:
        other = min(tensors.keys() - {"prompt_embeddings"}, default="nothing")
        raise AdapterError(
            f"The file must hold one tensor, prompt_embeddings; it also (or only) holds {other}."
        )
    table = tensors["prompt_embeddings"].float()
    if table.shape != shape:
        raise AdapterError(
            f"prompt_embeddings has shape {tuple(table.shape)}, but this model needs {shape}: "
            "the adapter was made for another base."
        )
    return {"embedding": table}
