"""(IA)³: trained gains on keys, values and the feed-forward's inner activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from studio.errors import MethodError
from studio.methods.method import START, Init, Method, Params, Phase

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Anatomy, Site

KEYS_VALUES = (
    "k_proj", "v_proj", "c_attn", "qkv_proj", "query_key_value", "kv_b_proj", "self.key",
    "self.value",
)  # fmt: skip
FEED_FORWARD = (
    "down_proj", "c_proj", "fc2", "w2", "fc_out", "dense_4h_to_h", "output_linear", "output.dense",
)  # fmt: skip


class IA3(Method):
    """`y = l ⊙ (W x + b)` for keys and values, `y = W (l ⊙ x) + b` for the MLP's last layer, with
    `l` starting at one.

    When to use it: for a very small adapter that merges exactly; gains multiply when stacked.
    Cost: one number per output (keys, values) or input (feed-forward) of each targeted layer.
    Source: arXiv:2205.05638.
    """

    title: ClassVar[str] = "IA³"
    paper: ClassVar[str] = "arXiv:2205.05638"
    phase: ClassVar[Phase] = Phase.GAIN
    peft_type: ClassVar[str] = "IA3"
    base_learning_rate: ClassVar[float] = 3e-3
    width_exponent: ClassVar[float] = 1.72
    largest_learning_rate: ClassVar[float] = 0.17
    peft_ignored: ClassVar[tuple[str, ...]] = ("feedforward_modules",)
    peft_neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "fan_in_fan_out": (True, False), "init_ia3_weights": (True, False),
    }  # fmt: skip

    name: Literal["ia3"] = "ia3"

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Return keys and values (fused projections whole) and the last layer of each MLP.

        Routed experts have no gain.

        Raises:
            MethodError: There are no keys and values, or no feed-forward.
        """
        every = anatomy.group("all-linear")
        attention = [site for site in every if _is_named(site, KEYS_VALUES)]
        feed = [site for site in every if _is_feed_forward(site)]
        if not attention or not (feed or anatomy.experts()):
            raise MethodError(
                "(IA)³ scales keys, values and the feed-forward, which "
                f"{type(anatomy.model).__name__} does not have as linear layers of their own (it "
                f"has {', '.join(anatomy.linear_names())}): use LoRA."
            )
        return sorted([*attention, *feed], key=lambda site: site.layer)

    def candidates(self, anatomy: Anatomy) -> list[Site]:
        """Return every linear layer inside the decoder layers."""
        return anatomy.inner_linears()

    def create(self, site: Site, init: Init) -> Params:
        """Return `l = 1`, named for the side that it scales."""
        import torch

        if _is_feed_forward(site):
            return {"gain_in": torch.ones(site.in_features)}
        return {"gain_out": torch.ones(site.out_features)}

    def gain_in(self, p: Params, site: Site) -> Tensor | None:
        """Return `l` of the feed-forward's input."""
        return p.get("gain_in")

    def gain_out(self, p: Params, site: Site) -> Tensor | None:
        """Return `l` of keys and values."""
        return p.get("gain_out")

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """Return the fields of PEFT's IA3Config."""
        return {
            "target_modules": [site.key for site in sites],
            "fan_in_fan_out": any(site.transposed for site in sites),
        }

    def patterns(self, sites: list[Site], params: dict[str, Params]) -> dict[str, Any]:
        """Return PEFT's `feedforward_modules`: the layers whose input is scaled."""
        return {
            "feedforward_modules": [site.key for site in sites if "gain_in" in params[site.key]]
        }

    def tensor_name(self, site: Site, name: str) -> str:
        """Return PEFT's key, `ia3_l` for both sides."""
        return f"{START}{site.key}.{'ia3_l' if name else ''}"

    def to_file(self, name: str, tensor: Tensor, site: Site) -> Tensor:
        """Return `(1, in)` for the feed-forward and `(out, 1)` elsewhere, as PEFT stores it."""
        return tensor.reshape(1, -1) if name == "gain_in" else tensor.reshape(-1, 1)

    def from_file(self, name: str, tensor: Tensor, site: Site) -> Tensor:
        """Return a vector."""
        return tensor.reshape(-1)

    def shapes(self, site: Site, tensors: Params) -> dict[str, tuple[int, ...]]:
        """Return the one gain of a site: of its input if the file's tensor is a row."""
        found = tensors.get(self.tensor_name(site, "gain"))
        if found is not None and len(found) == 1:
            return {"gain_in": (site.in_features,)}
        return {"gain_out": (site.out_features,)}


def _is_feed_forward(site: Site) -> bool:
    inside = any("attn" in part or "attention" in part for part in site.key.split("."))
    return _is_named(site, FEED_FORWARD) and not inside


def _is_named(site: Site, names: tuple[str, ...]) -> bool:
    return f".{site.key}".endswith(tuple(f".{name}" for name in names))
