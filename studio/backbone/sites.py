"""Find the sites of a model where adapters can act: linear layers, norms, attention, MLPs.

A site's key is the dotted path of its module, which is also its name in PEFT's files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from studio.errors import MethodError, nearest

Kind = Literal["linear", "norm", "attention", "mlp", "embedding", "model"]
MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe", "ffn")
# The norm whose input is the residual stream that enters the MLP; Gemma has more norms than most.
PRE_MLP_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "ffn_norm",
                 "mlp_layernorm", "norm2")  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A module that an adapter can edit, with its key and sizes.

    `transposed` marks GPT-2's Conv1D, whose weight is `(in_features, out_features)`.
    """

    key: str
    kind: Kind
    module: nn.Module
    layer: int
    in_features: int
    out_features: int
    transposed: bool = False


class Anatomy:
    """Finds the parts of a transformers decoder."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        config = model.config.get_text_config()
        self.hidden_size: int = config.hidden_size
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = getattr(config, "num_key_value_heads", None) or self.num_heads
        self.head_dim: int = getattr(config, "head_dim", None) or (
            self.hidden_size // self.num_heads
        )
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.layers_key = self._find_layers()
        self._blocks = {key: self._block_of(key) for key in self.modules}

    # -- parts ---------------------------------------------------------------------------------

    def linears(self, targets: str | tuple[str, ...]) -> list[Site]:
        """Return linear layers by group ("all-linear", "attention", "mlp") or by name.

        A name matches a whole dotted path or its end, as in PEFT.

        Raises:
            MethodError: A name matches nothing.
        """
        if targets == "all-linear":
            return [s for s in self.all_linears() if s.layer >= 0]
        if isinstance(targets, str):
            return [s for s in self.all_linears() if self._blocks[s.key] == targets]
        chosen = {key for name in targets for key in self._matching(name)}
        return [site for site in self.all_linears() if site.key in chosen]

    def layers(self) -> list[nn.Module]:
        """Return the decoder layers."""
        return list(self.modules[self.layers_key].children())

    def all_linears(self) -> list[Site]:
        """Return every linear layer, those outside the decoder layers included."""
        return [self._linear(key) for key in self._linear_keys()]

    def attentions(self) -> list[Site]:
        """Return every layer's attention block."""
        return [
            Site(key, "attention", self.modules[key], layer, self.hidden_size, self.hidden_size)
            for layer, key in enumerate(self._children("attention"))
        ]

    def mlps(self) -> list[Site]:
        """Return every layer's feed-forward block (a mixture of experts counts as one)."""
        return [
            Site(key, "mlp", self.modules[key], layer, self.hidden_size, self.hidden_size)
            for layer, key in enumerate(self._children("mlp"))
        ]

    def residual_norm(self, site: Site) -> nn.Module | None:
        """Return the norm whose input is the residual stream entering this feed-forward block."""
        children = dict(self.modules[f"{self.layers_key}.{site.layer}"].named_children())
        return next((children[name] for name in PRE_MLP_NORMS if name in children), None)

    def biased(self) -> list[Site]:
        """Return every linear layer and norm that owns a bias vector."""
        sites = [*self.all_linears(), *self.norms()]
        return [site for site in sites if getattr(site.module, "bias", None) is not None]

    def norms(self) -> list[Site]:
        """Return every LayerNorm and RMSNorm over the hidden size, the final one included."""
        found = []
        for key, module in self.modules.items():
            weight = getattr(module, "weight", None)
            if "norm" not in type(module).__name__.lower() or weight is None:
                continue
            if weight.dim() == 1 and not list(module.children()):
                size = weight.shape[0]
                found.append(Site(key, "norm", module, self._layer_of(key), size, size))
        return found

    def embedding(self) -> Site:
        """Return the input embeddings."""
        module = self.model.get_input_embeddings()
        key = next(key for key, value in self.modules.items() if value is module)
        return Site(key, "embedding", module, -1, self.hidden_size, self.hidden_size)

    def parameter(self, key: str) -> nn.Parameter | None:
        """Return the model's own parameter of this name, if it has one."""
        module = self.modules.get(key.rpartition(".")[0])
        found = getattr(module, key.rpartition(".")[2], None)
        return found if isinstance(found, nn.Parameter) else None

    def whole(self) -> Site:
        """Return the model itself, the site of virtual tokens."""
        return Site("", "model", self.model, -1, self.hidden_size, self.hidden_size)

    def linear_names(self) -> list[str]:
        """Return the distinct last names of the linear layers inside the decoder layers."""
        return list(dict.fromkeys(s.key.rpartition(".")[2] for s in self.linears("all-linear")))

    def shorten(self, sites: list[Site]) -> list[str]:
        """Return the sites' keys as PEFT's `target_modules`: last names where these suffice."""
        keys = {site.key for site in sites}
        names = list(dict.fromkeys(key.rpartition(".")[2] for key in keys))
        matched = {k for k in self.modules if k.rpartition(".")[2] in names}
        return sorted(names) if matched == keys else sorted(keys)

    # -- finding them --------------------------------------------------------------------------

    def _find_layers(self) -> str:
        for key, module in self.modules.items():
            if isinstance(module, nn.ModuleList) and len(module) == self.num_layers:
                return key
        raise MethodError(
            f"{type(self.model).__name__} has no list of {self.num_layers} decoder layers, so "
            "adapters cannot be placed in it."
        )

    def _layer_of(self, key: str) -> int:
        prefix = f"{self.layers_key}."
        if not key.startswith(prefix):
            return -1
        return int(key[len(prefix) :].partition(".")[0])

    def _children(self, kind: str) -> list[str]:
        """Return the key of each layer's block of this kind."""
        found = []
        for layer in range(self.num_layers):
            prefix = f"{self.layers_key}.{layer}."
            for name, child in self.modules[f"{self.layers_key}.{layer}"].named_children():
                if _kind_of(name, child) == kind:
                    found.append(prefix + name)
                    break
            else:
                raise MethodError(
                    f"Layer {layer} of {type(self.model).__name__} has no {kind} block."
                )
        return found

    def _block_of(self, key: str) -> str:
        layer = self._layer_of(key)
        if layer < 0:
            return ""
        child = key[len(f"{self.layers_key}.{layer}.") :].partition(".")[0]
        if not child:
            return ""
        return _kind_of(child, self.modules[f"{self.layers_key}.{layer}.{child}"])

    def _linear_keys(self) -> list[str]:
        return [k for k, m in self.modules.items() if isinstance(m, nn.Linear | Conv1D)]

    def _linear(self, key: str) -> Site:
        module = self.modules[key]
        layer = self._layer_of(key)
        if isinstance(module, Conv1D):
            return Site(key, "linear", module, layer, module.nx, module.nf, transposed=True)
        assert isinstance(module, nn.Linear)
        return Site(key, "linear", module, layer, module.in_features, module.out_features)

    def _matching(self, name: str) -> list[str]:
        keys = [k for k in self._linear_keys() if k == name or k.endswith(f".{name}")]
        if not keys:
            raise MethodError(
                f'This model has no linear layer called "{name}".'
                f"{nearest(name, self.linear_names())}"
            )
        return keys


def _kind_of(name: str, module: nn.Module) -> str:
    label = type(module).__name__.lower()
    if hasattr(module, "layer_idx") and ("attention" in label or "attn" in name):
        return "attention"
    if name in MLP_NAMES or label.endswith(("mlp", "moe", "moeblock")):
        return "mlp"
    return ""


def dense_weight(site: Site) -> Tensor:
    """Return a linear layer's weight as float32 `(out_features, in_features)`.

    4-bit weights are dequantised and Conv1D weights transposed. Sharded weights are gathered, so
    every rank must call it.
    """
    weight = site.module.weight
    if hasattr(weight, "full_tensor"):  # a DTensor, whose class is slow to import
        weight = weight.full_tensor()
    state = getattr(weight, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, state).float()
    assert isinstance(weight, Tensor)
    return (weight.T if site.transposed else weight).float()
