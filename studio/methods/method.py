"""Base classes of fine-tuning methods: config with PEFT's names, maths at a site, files, folding.

A method file holds one subclass and imports no torch: its maths are tensor expressions over a
dictionary of parameters, so the form, the queue and `studio methods` read the class that trains.
`studio.backbone` decides where parameters live, which rows they act on and in which order.

Shapes: `B batch, T tokens, I in_features, O out_features, D hidden, P virtual tokens`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import ValidationError

from studio.errors import AdapterError
from studio.fields import Record, knob

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from studio.backbone.sites import Anatomy, Site

START = "base_model.model."  # of every key in PEFT's files
Params = dict[str, "Tensor"]
Targets = Literal["all-linear", "attention", "mlp"] | tuple[str, ...]


class Phase(Enum):
    """Phases of an edit; `backbone/composition.py` has the composition rule."""

    DELTA = "delta"  # adds to a module's output; deltas commute
    GAIN = "gain"  # multiplies a module's input or output; gains commute
    TRANSFORM = "transform"  # rewrites a module's output, in stack order
    KEYS_VALUES = "keys_values"  # prepends keys and values to each layer's own
    PROMPT = "prompt"  # prepends embeddings to the sequence
    WEIGHTS = "weights"  # trains the backbone itself: no adapter, no stack


@dataclass(frozen=True, slots=True)
class Init:
    """Inputs of initialisation; `shared` holds tensors that all sites of an adapter share.

    `example` is the start of the run's data as token ids; `keys_values` runs the base on token ids
    `P` and returns `(P, layers · 2 · kv_heads · head_dim)`.
    """

    generator: Generator
    sites: tuple[Site, ...] = ()
    tokenize: Callable[[str], list[int]] | None = None
    example: Sequence[int] = ()
    keys_values: Callable[[Tensor], Tensor] | None = None
    shared: Params = field(default_factory=dict)


class Method(Record):
    """Interface of a method; `bitfit.py` is a short complete example."""

    title: ClassVar[str]
    paper: ClassVar[str]
    phase: ClassVar[Phase]
    peft_type: ClassVar[str]
    peft_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of PEFT's config with the same meaning here."""
    peft_neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Further fields of PEFT's config, with the values under which the maths is the same."""
    peft_ignored: ClassVar[tuple[str, ...]] = ()
    """Fields of PEFT's config that follow from the tensors or do not matter after training."""
    peft_fixed: ClassVar[dict[str, Any]] = {}
    """Fields that are written to PEFT's config with these values."""
    peft_defaults: ClassVar[dict[str, Any]] = {}
    """PEFT's defaults of fields that have another default here."""
    needs_bias: ClassVar[bool] = False
    """True if folding needs a bias vector at every site (`backbone/dense_weights.py`)."""
    is_low_rank: ClassVar[bool] = False
    """True if the adapter is plain `A` and `B` of rank `r` beside linear layers, as in LoRA."""
    adapterhub: ClassVar[bool] = False
    """True if AdapterHub's file format can hold it."""
    quantization: ClassVar[str] = "none"
    """`model.quantization` of every run of the method."""
    base_learning_rate: ClassVar[float] = 5e-4
    """Learning rate for a hidden size of 2000, as papers advise; `"auto"` scales it."""
    width_exponent: ClassVar[float] = 0.775
    """Growth of the rate as the hidden size falls, from the best rates of `studio bench rates`."""
    largest_learning_rate: ClassVar[float] = 5e-3
    """Upper bound of that scaling: the best rate at hidden sizes of 64 to 192."""
    tensor_format: ClassVar[str] = "{}"
    """Key of a parameter in PEFT's file, after the site's key."""

    name: str = ""

    @classmethod
    def manual(cls) -> str:
        """Return the class docstring: formula with shapes, paper, when to use it, cost."""
        return inspect.cleandoc(cls.__doc__ or "")

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Return the sites that this method edits, in model order.

        Raises:
            MethodError: A target does not exist.
        """
        raise NotImplementedError

    def create(self, site: Site, init: Init) -> Params:
        """Return a site's initial parameters (float32, on the CPU).

        Names that start with `_` are not trained; with `__` they are not stored in checkpoints
        either, because they follow from the config.
        """
        raise NotImplementedError

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """Phase DELTA: return the change of `y`, the module's own output for the input `x`."""
        raise NotImplementedError

    def factors(self, p: Params, site: Site) -> tuple[Tensor, Tensor] | None:
        """Phase DELTA: return `A (r, I)` and `B (O, r)` if the delta is `B A x`, else None."""
        return None

    def low_rank(self, p: Params, site: Site) -> tuple[Tensor, ...] | None:
        """Phase DELTA: return `factors`, and `m (O,)` if `W + B A` has rows of that norm (DoRA)."""
        return self.factors(p, site)

    @property
    def trains_base(self) -> bool:
        """True if the method trains the base itself: its result is a model, not an adapter."""
        return self.phase is Phase.WEIGHTS

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the inputs of `delta` and `transform` that their gradients need."""
        return ("x",)

    @property
    def has_factors(self) -> bool:
        """True if `low_rank` returns factors."""
        return type(self).factors is not Method.factors

    @property
    def scales_rows(self) -> bool:
        """True if `low_rank` has the norms of rows."""
        return False

    @property
    def input_dropout(self) -> float:
        """Probability that an input of the edit is zeroed in training."""
        return max((float(value) for name, value in self if name.endswith("dropout")), default=0.0)

    def gain_in(self, p: Params, site: Site) -> Tensor | None:
        """Phase GAIN: return the factor on the module's input, or None."""
        raise NotImplementedError

    def gain_out(self, p: Params, site: Site) -> Tensor | None:
        """Phase GAIN: return the factor on the module's output, or None."""
        raise NotImplementedError

    def transform(self, p: Params, x: Tensor, h: Tensor, site: Site, *, training: bool) -> Tensor:
        """Phase TRANSFORM: return the change of the output `h`; `x` is the residual stream."""
        raise NotImplementedError

    def virtual_tokens(self, p: Params) -> Tensor:
        """Return `(P, layers · 2 · kv_heads · head_dim)` (KEYS_VALUES) or `(P, D)` (PROMPT)."""
        raise NotImplementedError

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """Phase DELTA: return float32 changes of the module's `weight` and `bias`, by name.

        A linear's weight is `(out_features, in_features)`, however the module stores it.
        """
        raise NotImplementedError

    @property
    def num_tokens_before(self) -> int:
        """Number of positions that the adapter occupies before the sequence."""
        return 0

    # -- PEFT's files --------------------------------------------------------------------------

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """Return this method's part of `adapter_config.json`; `target_modules` is added to it."""
        return self.model_dump(include=set(self.peft_fields)) | self.peft_fixed

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Self:
        """Return the method that `adapter_config.json` describes.

        Raises:
            AdapterError: A field is out of bounds, or selects other maths than this method's.
        """
        for key, value in config.items():
            neutral = cls.peft_neutral.get(key, (None, False, "", [], {}))
            if key not in (*cls.peft_fields, *cls.peft_ignored) and value not in neutral:
                raise AdapterError(
                    f"adapter_config.json sets {key} to {str(value)[:60]!r}, which is not "
                    f"supported for {cls.title} and would change the adapter's output."
                )
        given = {name: config[name] for name in cls.peft_fields if name in config}
        try:
            return cls(**{**cls.peft_defaults, **given})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise AdapterError(
                f"adapter_config.json: {where} is {str(first.get('input'))[:60]}: {first['msg']}."
            ) from None

    def candidates(self, anatomy: Anatomy) -> list[Site]:
        """Return every site at which a file of this method may have parameters."""
        return self.sites(anatomy)

    def tensor_name(self, site: Site, name: str) -> str:
        """Return the key of a parameter in PEFT's file."""
        return f"{START}{site.key}.{self.tensor_format.format(name)}"

    def to_tensors(self, sites: list[Site], params: dict[str, Params]) -> Params:
        """Return the tensors of `adapter_model.safetensors`."""
        return {
            self.tensor_name(site, name): self.to_file(name, tensor, site)
            for site in sites
            for name, tensor in params[site.key].items()
            if not name.startswith("_")
        }

    def from_tensors(self, tensors: Params, anatomy: Anatomy) -> tuple[list[Site], list[Params]]:
        """Return the sites and parameters of a file's tensors, which must match exactly.

        Raises:
            AdapterError: A tensor is missing, unknown, or has another shape than this model's.
        """
        left = dict(tensors)
        sites, params = [], []
        for site in self.candidates(anatomy):
            start = self.tensor_name(site, "")
            if not any(key.startswith(start) for key in left):
                continue
            own = {}
            for name, shape in self.shapes(site, left).items():
                key = self.tensor_name(site, name)
                if key not in left:
                    raise AdapterError(f"The adapter file lacks the tensor {key}.")
                own[name] = self.from_file(name, left.pop(key).float(), site)
                if own[name].shape != shape:
                    raise AdapterError(
                        f"{key} has shape {tuple(own[name].shape)}, but {site.key} of this model "
                        f"needs {shape}: the adapter was made for another base or r."
                    )
            sites.append(site)
            params.append(own)
        if left:
            raise AdapterError(
                f"The adapter file holds {len(left)} tensors that do not belong to {self.title} on "
                f"this model, for example {min(left)}; nothing was loaded."
            )
        if not sites:
            raise AdapterError("The adapter file holds no tensors.")
        return sites, params

    def shapes(self, site: Site, tensors: Params) -> dict[str, tuple[int, ...]]:
        """Return the shape of each of a site's parameters in a file of these tensors."""
        import torch

        fresh = self.create(site, Init(torch.Generator()))
        return {name: tuple(tensor.shape) for name, tensor in fresh.items() if name[0] != "_"}

    def patterns(self, sites: list[Site], params: dict[str, Params]) -> dict[str, Any]:
        """Return the fields of `adapter_config.json` that depend on the parameters."""
        return {}

    def to_file(self, name: str, tensor: Tensor, site: Site) -> Tensor:
        """Return a parameter as PEFT stores it."""
        return tensor

    def from_file(self, name: str, tensor: Tensor, site: Site) -> Tensor:
        """Return the parameter of a tensor that PEFT stored."""
        return tensor


class LinearMethod(Method):
    """Base class of methods that edit the linear layers in their field `target_modules`."""

    if TYPE_CHECKING:
        target_modules: Targets

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Return every targeted linear layer."""
        return anatomy.linears(self.target_modules)

    def candidates(self, anatomy: Anatomy) -> list[Site]:
        """Return every linear layer of the model, the output head included."""
        return anatomy.all_linears()

    def num_trained(self, inputs: int, outputs: int) -> int:
        """Return how many numbers are trained beside a layer of I inputs and O outputs."""
        return int(getattr(self, "r", 1)) * (inputs + outputs)


def targets_field() -> Any:
    """Declare the field `target_modules`."""
    return knob(
        "all-linear", "Linear layers to adapt: a group, or module names.", title="Target modules"
    )


def kaiming_uniform(rows: int, columns: int, generator: Generator, gain: float = 1.0) -> Tensor:
    """Return `(rows, columns)` drawn as torch's own linear layers are, by default."""
    import torch

    bound = gain * columns**-0.5
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)


class VirtualTokenMethod(Method):
    """Base class of methods whose adapter is one table of virtual tokens before every row."""

    peft_fields: ClassVar[tuple[str, ...]] = ("num_virtual_tokens",)
    peft_ignored: ClassVar[tuple[str, ...]] = (
        "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
        "encoder_hidden_size",
    )  # fmt: skip

    num_virtual_tokens: int = knob(
        16, "P: positions before every sequence.", title="Virtual tokens", ge=1, le=4096
    )

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Return the whole model."""
        return [anatomy.whole()]

    def start(self, text: str, vocabulary: int, init: Init) -> Tensor:
        """Return the P token ids to start from, repeated or cut.

        They are those of `text`, else of the run's data, else random ones.
        """
        import torch

        count = self.num_virtual_tokens
        ids = init.tokenize(text) if init.tokenize and text.strip() else list(init.example)
        if not ids:
            return torch.randint(vocabulary, (count,), generator=init.generator)
        return torch.tensor(ids).repeat(-(-count // len(ids)))[:count]

    @property
    def num_tokens_before(self) -> int:
        """P."""
        return self.num_virtual_tokens

    def token_width(self, anatomy: Anatomy) -> int:
        """Return the size of one virtual token."""
        return anatomy.hidden_size

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """Return the fields that PEFT's prompt-learning configs share."""
        from studio.backbone.sites import anatomy_of

        anatomy = anatomy_of(sites[0].module)
        return {
            "num_virtual_tokens": self.num_virtual_tokens, "token_dim": anatomy.hidden_size,
            "num_attention_heads": anatomy.num_heads, "num_layers": anatomy.num_layers,
            "num_transformer_submodules": 1, "target_modules": None,
        }  # fmt: skip

    def to_tensors(self, sites: list[Site], params: dict[str, Params]) -> Params:
        """Return the one table that PEFT stores."""
        return {"prompt_embeddings": self.virtual_tokens(params[sites[0].key])}

    def from_tensors(self, tensors: Params, anatomy: Anatomy) -> tuple[list[Site], list[Params]]:
        """Return the whole model and the one table.

        Raises:
            AdapterError: There are other tensors, or the table is for another model.
        """
        if tensors.keys() != {"prompt_embeddings"}:
            other = min(tensors.keys() - {"prompt_embeddings"}, default="nothing")
            raise AdapterError(
                f"The file must hold only the tensor prompt_embeddings, but it holds {other}."
            )
        table = tensors["prompt_embeddings"].float()
        shape = (self.num_virtual_tokens, self.token_width(anatomy))
        if table.shape != shape:
            raise AdapterError(
                f"prompt_embeddings has shape {tuple(table.shape)}, but this model needs {shape}: "
                "the adapter was made for another base."
            )
        return [anatomy.whole()], [{"embedding": table}]
