"""Find the sites of a model where adapters can act: linear layers, norms, attention, MLPs.

A site's key is the dotted path of its module, which is also its name in PEFT's files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from studio.errors import MethodError, nearest

if TYPE_CHECKING:
    from studio.backbone.forward_recording import Block, Keys, Recording


Kind = Literal["linear", "experts", "norm", "attention", "mlp", "embedding", "model"]
# Small matrices of hybrids and mixtures that steer a layer; group targets leave them out.
HELPERS = frozenset({
    "in_proj_a", "in_proj_b", "in_proj_ba", "in_proj_ab", "a_proj", "b_proj", "conv1d", "gate",
    "router", "shared_expert_gate", "dt_proj", "weights_proj",
})  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A module that an adapter can edit, with its key and sizes.

    `transposed` marks GPT-2's Conv1D, whose weight is `(in_features, out_features)`. A site of
    experts is one 3-D parameter of its module: `num_experts` matrices of these sizes.
    """

    key: str
    kind: Kind
    module: nn.Module
    layer: int
    in_features: int
    out_features: int
    transposed: bool = False
    num_experts: int = 0

    @property
    def parameter(self) -> Any:
        """The weight, in the form that the module stores."""
        return getattr(self.module, self.key.rpartition(".")[2] if self.num_experts else "weight")

    @property
    def tail(self) -> str:
        """End of the key that PEFT's lists and patterns name: `q_proj`, `experts.down_proj`."""
        return ".".join(self.key.split(".")[-2 if self.num_experts else -1 :])

    @property
    def parameter_key(self) -> str:
        """Path of the weight in the model's state dict."""
        return self.key if self.num_experts else f"{self.key}.weight"


class Anatomy:
    """Finds the parts of a decoder of text, in its module tree and in one recorded forward pass.

    The text tower is the smallest module that holds the input embeddings and a list of layers, so
    the vision and audio towers of a wrapper are never part of it.

    Args:
        model: The model.
        record: Returns the recording, on first use; by default of the model as it is.
        reach: Returns the modules that `forward_probes.reached` finds, on first use.
    """

    def __init__(
        self, model: PreTrainedModel, record: Callable[[], Recording] | None = None,
        reach: Callable[[], set[str]] | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.tower_key, self.layer_keys = self._find_tower()
        self.tower: nn.Module = self.modules[self.tower_key.rstrip(".")]
        embeddings = model.get_input_embeddings().weight
        config = model.config.get_text_config(decoder=True)
        self.vocab_size, width = embeddings.shape
        self.hidden_size: int = getattr(config, "hidden_size", None) or width
        self.num_layers = len(self.layer_keys)
        self._layers = {key: number for number, key in enumerate(self.layer_keys)}
        self._is_wrapper = config is not model.config
        self._record = record
        self._reach = reach
        if record is not None:
            KNOWN[id(model)] = self

    @cached_property
    def recording(self) -> Recording:
        """Findings of one short forward pass (`forward_recording.py`)."""
        if self._record is not None:
            return self._record()
        from studio.backbone.forward_recording import record

        return record(self)

    @cached_property
    def _reached(self) -> set[str]:
        from studio.backbone.forward_probes import reached

        return self._reach() if self._reach is not None else reached(self)

    # -- parts ---------------------------------------------------------------------------------

    def linears(self, targets: str | tuple[str, ...]) -> list[Site]:
        """Return linear layers by group ("all-linear", "attention", "mlp") or by name.

        A name matches a whole dotted path or its end, as in PEFT. A group leaves out helper
        matrices and layers that never run or get no gradient.

        Raises:
            MethodError: A name or group matches nothing.
        """
        if not isinstance(targets, str):
            chosen = {key for name in targets for key in self._matching(name)}
            return [site for site in self.all_linears() if site.key in chosen]
        found = self.group(targets)
        if not found:
            raise MethodError(
                f'{type(self.model).__name__} has no linear layers of the group "{targets}": name '
                "others in method.target_modules."
            )
        return found

    def group(self, name: str, *, narrowest: int = 1) -> list[Site]:
        """Return the linear layers of a group, or none."""
        return [
            site
            for site in self.inner_linears()
            if min(site.in_features, site.out_features) >= narrowest
            and site.key.rpartition(".")[2] not in HELPERS
            and _is_plain(site.module)
            and self.trains(site)
            and (name == "all-linear" or self._group(site.key) == name)
        ]

    def left_out(self, narrowest: int) -> list[str]:
        """Return the names of linear layers that run, but that groups leave out at this width."""
        used = {site.key for site in self.group("all-linear", narrowest=narrowest)}
        rest = [site for site in self.inner_linears() if site.key not in used]
        return list(dict.fromkeys(s.key.rpartition(".")[2] for s in rest if self._runs(s.key)))

    def experts(self) -> list[Site]:
        """Return the projections of every layer's routed experts."""
        return [
            site
            for key, module in self.modules.items()
            if (layout := expert_layout(module)) and self._is_text(key)
            for site in _expert_sites(key, module, layout, self.layer_of(key))
        ]

    def experts_named(self, name: str) -> list[Site]:
        """Return the experts' projections that a name selects, as `linears` does for layers.

        The name is that of the experts' module or of a projection, or the end of its path. A bare
        `down_proj` is the linear layer where the model has one.
        """
        if "." not in name and any(_ends(key, name) for key in self._linear_keys()):
            return []
        return [site for site in self.experts()
                if _ends(site.key, name) or _ends(site.key.rpartition(".")[0], name)]  # fmt: skip

    def layers(self) -> list[nn.Module]:
        """Return the decoder layers."""
        return [self.modules[key] for key in self.layer_keys]

    def all_linears(self) -> list[Site]:
        """Return every linear layer of the text, those outside the decoder layers included."""
        return [self._linear(key) for key in self._linear_keys()]

    def inner_linears(self) -> list[Site]:
        """Return every linear layer inside the decoder layers."""
        return [site for site in self.all_linears() if site.layer >= 0]

    def attentions(self) -> list[Site]:
        """Return the blocks that mix tokens: attention and other mixers."""
        return [self._block(b) for b in self.recording.blocks if b.kind != "mlp"]

    def mlps(self) -> list[Site]:
        """Return the feed-forward blocks (a mixture of experts counts as one)."""
        return [self._block(b) for b in self.recording.blocks if b.kind == "mlp"]

    def residual_norm(self, site: Site) -> nn.Module | None:
        """Return the norm whose input is the residual stream entering this block.

        None if the block reads the stream itself, as with norms after each block.
        """
        norms = {block.key: block.norm for block in self.recording.blocks}
        return self.modules[norms[site.key]] if norms.get(site.key) else None

    def biased(self) -> list[Site]:
        """Return every linear layer and norm that owns a bias vector."""
        sites = [*self.all_linears(), *self.norms()]
        return [site for site in sites if getattr(site.module, "bias", None) is not None]

    def norms(self) -> list[Site]:
        """Return every LayerNorm and RMSNorm of one input, the final one included."""
        found = []
        for key, module in self.modules.items():
            weight = getattr(module, "weight", None)
            is_norm = "norm" in type(module).__name__.lower()
            if not is_norm or not isinstance(weight, nn.Parameter):
                continue
            if not self._is_text(key) or len(signature(type(module).forward).parameters) > 2:
                continue  # a gated norm multiplies its result by a second input
            if hasattr(module, "num_heads"):
                continue  # norms each head, and weights all
            if weight.dim() == 1 and not list(module.children()):
                size = weight.shape[0]
                found.append(Site(key, "norm", module, self.layer_of(key), size, size))
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
        return list(dict.fromkeys(s.key.rpartition(".")[2] for s in self.inner_linears()))

    def trains(self, site: Site) -> bool:
        """Return True if a module runs and its output can get a gradient.

        Indexers choose the tokens that attention reads: their scores have none.
        """
        inside = site.key in self.recording.runs and site.layer >= 0
        return self._runs(site.key) and (not inside or site.key in self._reached)

    def shorten_experts(self, sites: list[Site]) -> list[str]:
        """Return the experts' keys as PEFT's `target_parameters`: tails where these suffice."""
        keys, tails = {site.key for site in sites}, {site.tail for site in sites}
        matched = {site.key for site in self.experts() if site.tail in tails}
        return sorted(tails) if matched == keys else sorted(keys)

    def shorten(self, sites: list[Site]) -> list[str]:
        """Return the sites' keys as PEFT's `target_modules`: last names where these suffice."""
        keys = {site.key for site in sites}
        names = list(dict.fromkeys(key.rpartition(".")[2] for key in keys))
        matched = {k for k in self.modules if k.rpartition(".")[2] in names}
        return sorted(names) if matched == keys else sorted(keys)

    def layer_of(self, key: str) -> int:
        """Return the number of the decoder layer that holds a module; -1 outside of them."""
        while key:
            if key in self._layers:
                return self._layers[key]
            key = key.rpartition(".")[0]
        return -1

    # -- keys and values -----------------------------------------------------------------------

    @property
    def num_heads(self) -> int:
        """Number of query heads, as configured; layers may differ."""
        config = self.model.config.get_text_config(decoder=True)
        return int(getattr(config, "num_attention_heads", 1))

    @property
    def key_width(self) -> int:
        """Numbers of one virtual token in all layers: keys and values, layer after layer."""
        return sum(keys.heads * (keys.key_size + keys.value_size) for keys in self.key_shapes)

    @property
    def head_sizes(self) -> set[int]:
        """Sizes of the keys and values of a head."""
        return {size for keys in self.recording.keys for size in (keys.key_size, keys.value_size)}

    @property
    def carries_state(self) -> bool:
        """True if keys and values are not all that a layer keeps of earlier tokens."""
        calls = self.recording.keys
        looped = len({keys.module for keys in calls}) < len(calls)
        mixers = any(block.kind == "mixer" for block in self.recording.blocks)
        return mixers or looped or not calls or self._attends_in_chunks

    @cached_property
    def key_shapes(self) -> list[Keys]:
        """Return the calls of the attention function that compute keys of their own.

        Raises:
            MethodError: There are none, or attention is not the only way tokens reach each other.
        """
        own = [keys for number, keys in enumerate(self.recording.keys) if keys.source == number]
        if not own:
            raise MethodError(
                f"{type(self.model).__name__} has no attention that can read trained keys and "
                "values: use prompt tuning or LoRA."
            )
        if len({keys.module for keys in self.recording.keys}) < len(self.recording.keys):
            raise MethodError(
                f"{type(self.model).__name__} runs its layers several times in one pass, where "
                "trained keys and values have no place: use prompt tuning or LoRA."
            )
        if self._attends_in_chunks:
            raise MethodError(
                f"{type(self.model).__name__} attends in chunks, of which only the first would "
                "read trained keys and values: use prompt tuning or LoRA."
            )
        return own

    @property
    def _attends_in_chunks(self) -> bool:
        config = self.model.config.get_text_config(decoder=True)
        return "chunked_attention" in (getattr(config, "layer_types", None) or ())

    # -- finding them --------------------------------------------------------------------------

    def _find_tower(self) -> tuple[str, list[str]]:
        """Return the key of the text tower, with a dot, and the keys of its layers."""
        embeddings = self.model.get_input_embeddings()
        key = next((key for key, module in self.modules.items() if module is embeddings), "")
        while key:
            key = key.rpartition(".")[0]
            prefix = f"{key}." if key else ""
            if layers := self._layers_under(prefix):
                return prefix, layers
        raise MethodError(
            f"{type(self.model).__name__} has no list of decoder layers beside its input "
            "embeddings, so adapters cannot be placed in it."
        )

    def _layers_under(self, prefix: str) -> list[str]:
        """Return the elements of the outermost module lists that hold blocks with linears."""
        lists: list[str] = []
        for key, module in self.modules.items():
            if not key.startswith(prefix) or not isinstance(module, nn.ModuleList):
                continue
            if any(key.startswith(f"{outer}.") for outer in lists) or not len(module):
                continue
            if all(_has_linear(element) for element in module):
                lists.append(key)
        return [key for outer in lists for key in self._elements(outer)]

    def _elements(self, key: str) -> list[str]:
        # Shared modules appear once in the model's modules, under their first key.
        names = (f"{key}.{name}" for name, _ in self.modules[key].named_children())
        return [name for name in names if name in self.modules]

    def _is_text(self, key: str) -> bool:
        if not self._is_wrapper or key.startswith(self.tower_key):
            return True
        return self.modules[key] is self.model.get_output_embeddings()

    def _group(self, key: str) -> str:
        """Return the group of a linear layer: "attention" for any mixer, else "mlp"."""
        kinds = {block.key: block.kind for block in self.recording.blocks}
        while key:
            if key in kinds:
                return "mlp" if kinds[key] == "mlp" else "attention"
            key = key.rpartition(".")[0]
        return "mlp"

    def _runs(self, key: str) -> bool:
        """Return False for a linear layer that its own block does not call.

        Layers with shared keys own projections that nothing reads, and a decoder of an
        encoder-decoder has cross-attention. An expert that no token chose does run: of a list of
        experts, several did.
        """
        runs = self.recording.runs
        if key in runs or not runs:
            return True
        while key := key.rpartition(".")[0]:
            if key in runs or key in self._layers:
                return False
            if isinstance(self.modules[key], nn.ModuleList):
                return sum(f"{key}.{n}" in runs for n in range(len(self.modules[key]))) > 1
        return True

    def _linear_keys(self) -> list[str]:
        return [
            key for key, module in self.modules.items()
            if isinstance(module, nn.Linear | Conv1D) and self._is_text(key)
        ]  # fmt: skip

    def _linear(self, key: str) -> Site:
        module = self.modules[key]
        layer = self.layer_of(key)
        if isinstance(module, Conv1D):
            return Site(key, "linear", module, layer, module.nx, module.nf, transposed=True)
        assert isinstance(module, nn.Linear)
        return Site(key, "linear", module, layer, module.in_features, module.out_features)

    def _block(self, block: Block) -> Site:
        kind: Kind = "mlp" if block.kind == "mlp" else "attention"
        module = self.modules[block.key]
        size = self.hidden_size
        return Site(block.key, kind, module, self.layer_of(block.key), size, size)

    def _matching(self, name: str) -> list[str]:
        keys = [key for key in self._linear_keys() if _ends(key, name)]
        if not keys:
            raise MethodError(
                f'This model has no linear layer called "{name}".'
                f"{nearest(name, self.linear_names())}"
            )
        return keys


KNOWN: WeakValueDictionary[int, Anatomy] = WeakValueDictionary()


def anatomy_of(model: nn.Module) -> Anatomy:
    """Return the anatomy of a model's backbone, or a new one of a model without."""
    found = KNOWN.get(id(model))
    if found is None:
        assert isinstance(model, PreTrainedModel)
        return Anatomy(model)
    return found


class ExpertLayout(NamedTuple):
    """Names of the two parameters of routed experts, and how they are stored and called.

    `scaled`: the forward takes each expert's own copy of every token, `(E T, D)`, multiplied by the
    router's weight, which is zero where the token does not go (Llama 4).
    """

    first: str
    transposed: bool
    has_bias: bool = False
    scaled: bool = False
    last: str = "down_proj"


def expert_layout(module: Any) -> ExpertLayout | None:
    """Return the layout of a module of routed experts whose parameters are 3-D; None of others."""
    if hasattr(module, "_apply_gate") and hasattr(module, "is_transposed"):
        first = "gate_up_proj" if module.has_gate else "up_proj"
        return ExpertLayout(first, module.is_transposed, module.has_bias)
    names = ("num_experts", "gate_up_proj", "down_proj", "act_fn")
    if not all(hasattr(module, name) for name in names) or hasattr(module, "gate_up_proj_bias"):
        return None
    takes_one = len(signature(type(module).forward).parameters) == 2  # itself and the tokens
    return ExpertLayout("gate_up_proj", True, scaled=True) if takes_one else None


def _expert_sites(key: str, module: Any, layout: ExpertLayout, layer: int) -> list[Site]:
    sites = []
    for name in (layout.first, layout.last):
        weight = getattr(module, name)
        state = getattr(weight, "quant_state", None)  # 4-bit weights are flat
        experts, *sizes = weight.shape if state is None else state.shape
        out_features, in_features = reversed(sizes) if layout.transposed else sizes
        sites.append(
            Site(f"{key}.{name}", "experts", module, layer, in_features, out_features,
                 layout.transposed, experts)
        )  # fmt: skip
    return sites


def _has_linear(module: nn.Module) -> bool:
    """Return True if a module holds linear layers and is none itself."""
    parts = (part for part in module.modules() if part is not module)
    return any(isinstance(part, nn.Linear | Conv1D) for part in parts)


def _is_plain(module: Any) -> bool:
    """Return False for a linear layer with a forward of its own that computes something else."""
    cls = type(module)
    if not cls.__module__.startswith("transformers.models.") or "forward" not in vars(cls):
        return True
    with torch.no_grad():
        x = torch.linspace(-1, 1, module.in_features).to(module.weight)[None, None]
        try:
            own = cls.forward(module, x)
        except Exception:  # a router with arguments of its own
            return False
        plain = torch.nn.functional.linear(x, module.weight, module.bias)
    return isinstance(own, Tensor) and own.shape == plain.shape and torch.allclose(own, plain)


def _ends(key: str, name: str) -> bool:
    """Return True if a name is a whole dotted path or its end, as in PEFT."""
    return key == name or key.endswith(f".{name}")
