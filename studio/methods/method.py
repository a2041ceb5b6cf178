"""What a method is: a config with PEFT's names, its maths at a site, how it folds and is stored.

A method file holds one `Method` subclass and needs no torch to be imported: its maths are plain
tensor expressions over a dictionary of parameters, so the form, the queue and `studio methods` read
the very class that trains. Where the parameters live, which rows they act on and in which order is
not a method's business: that is `studio.backbone`.

Shapes: `B batch, T tokens, I in_features, O out_features, D hidden, P virtual tokens`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import ValidationError

from studio.errors import AdapterError
from studio.fields import Record, knob

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from studio.backbone.sites import Anatomy, Site

Params = dict[str, "Tensor"]
TargetGroup = Literal["all-linear", "attention", "mlp"]


class Phase(Enum):
    """When an edit acts; the composition rule itself is written in `layer/stack.py`."""

    DELTA = "delta"  # adds to a module's output; deltas commute
    GAIN = "gain"  # multiplies a module's input or output; gains commute
    TRANSFORM = "transform"  # rewrites a module's output, in stack order
    KEYS_VALUES = "keys_values"  # puts keys and values before each layer's own
    PROMPT = "prompt"  # puts embeddings before the sequence
    WEIGHTS = "weights"  # trains the backbone itself: no adapter, no stack


@dataclass(frozen=True, slots=True)
class Init:
    """What a method may draw on for its first values; `shared` is what its sites have in common."""

    generator: Generator
    sites: tuple[Site, ...] = ()
    tokenize: Callable[[str], list[int]] | None = None
    shared: Params = field(default_factory=dict)


class Method(Record):
    """The contract every method fills in; see `lora.py` for the shortest whole example."""

    title: ClassVar[str]
    paper: ClassVar[str]
    phase: ClassVar[Phase]
    peft_type: ClassVar[str]
    peft_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of PEFT's config that mean here exactly what they mean there."""
    peft_neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Further fields of PEFT's config, with the values under which the maths is ours."""
    needs_bias: ClassVar[bool] = False
    """Whether folding needs a bias vector at every site; see `layer/merge.py`."""
    is_low_rank: ClassVar[bool] = False
    """True if the adapter is plain `A` and `B` of rank `r` beside linear layers, as in LoRA."""
    base_learning_rate: ClassVar[float] = 5e-4
    """Learning rate for a hidden size of 2000; `"auto"` scales it to the model at hand."""
    largest_learning_rate: ClassVar[float] = 5e-3
    """Where that scaling stops. Vectors bear larger steps than matrices."""

    name: str = ""

    @classmethod
    def manual(cls) -> str:
        """The class docstring: rule with shapes, paper, when to use it, what it costs."""
        return inspect.cleandoc(cls.__doc__ or "")

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Return the places this method edits, in the model's own order.

        Raises:
            MethodError: A target does not exist; names the nearest real ones.
        """
        raise NotImplementedError

    def create(self, site: Site, init: Init) -> Params:
        """Return this site's freshly initialised parameters (float32, on the CPU).

        Names that start with `_` are kept with the adapter but not trained; with `__` they are
        neither trained nor kept in checkpoints, because they follow from the config.
        """
        raise NotImplementedError

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """Phase DELTA: what to add to `y`, the module's own output for the input `x`."""
        raise NotImplementedError

    def factors(self, p: Params, site: Site) -> tuple[Tensor, Tensor] | None:
        """Phase DELTA: `A (r, I)` and `B (O, r)` when the whole delta is `B A x`, else None."""
        return None

    @property
    def trains_base(self) -> bool:
        """True if the method trains the base itself: its result is a model, not an adapter."""
        return self.phase is Phase.WEIGHTS

    @property
    def drops_inputs(self) -> bool:
        """Whether dropout acts on what the delta reads while it trains."""
        return any(value for name, value in self if name.endswith("dropout"))

    def gain_in(self, p: Params, site: Site) -> Tensor | None:
        """Phase GAIN: the factor on the module's input, or None."""
        raise NotImplementedError

    def gain_out(self, p: Params, site: Site) -> Tensor | None:
        """Phase GAIN: the factor on the module's output, or None."""
        raise NotImplementedError

    def transform(self, p: Params, x: Tensor, h: Tensor, site: Site, *, training: bool) -> Tensor:
        """Phase TRANSFORM: what to add to the running output `h`; `x` is the residual stream."""
        raise NotImplementedError

    def virtual_tokens(self, p: Params) -> Tensor:
        """Phase KEYS_VALUES: `(P, layers · 2 · kv_heads · head_dim)`; phase PROMPT: `(P, D)`."""
        raise NotImplementedError

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """Phase DELTA: float32 tensors to add to the module's own `weight` and `bias`, by name.

        A linear's weight is `(out_features, in_features)` here, whatever the module stores.
        """
        raise NotImplementedError

    @property
    def num_tokens_before(self) -> int:
        """How many positions this adapter occupies before the sequence."""
        return 0

    # -- PEFT's files --------------------------------------------------------------------------

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """Return this method's part of `adapter_config.json`; `target_modules` is added to it."""
        raise NotImplementedError

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Self:
        """Read the method's own fields of `adapter_config.json`.

        Raises:
            AdapterError: A field is out of bounds, or set to something with other maths than ours.
        """
        for key, value in config.items():
            neutral = cls.peft_neutral.get(key, (None, False, "", [], {}))
            if key not in cls.peft_fields and value not in neutral:
                raise AdapterError(
                    f"adapter_config.json sets {key} to {str(value)[:60]!r}, which this studio "
                    f"does not know for {cls.title}; loading it would give other answers."
                )
        try:
            return cls(**{name: config[name] for name in cls.peft_fields if name in config})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise AdapterError(
                f"adapter_config.json: {where} is {str(first.get('input'))[:60]}: {first['msg']}."
            ) from None

    def candidates(self, anatomy: Anatomy) -> list[Site]:
        """Every place where a file of this method may have parameters."""
        return self.sites(anatomy)

    def tensor_name(self, site: Site, name: str) -> str:
        """The parameter's key in the PEFT file."""
        return f"base_model.model.{site.key}.{name}"

    def to_tensors(self, sites: list[Site], params: dict[str, Params]) -> Params:
        """Return the tensors of `adapter_model.safetensors`."""
        return {
            self.tensor_name(site, name): self.to_file(name, tensor, site)
            for site in sites
            for name, tensor in params[site.key].items()
            if not name.startswith("_")
        }

    def from_tensors(self, tensors: Params, anatomy: Anatomy) -> tuple[list[Site], list[Params]]:
        """Match a file's tensors with sites of this model, exactly.

        Raises:
            AdapterError: A tensor is missing, unknown, or has another shape than this model's.
        """
        import torch

        left = dict(tensors)
        sites, params = [], []
        for site in self.candidates(anatomy):
            start = self.tensor_name(site, "")
            if not any(key.startswith(start) for key in left):
                continue
            own = {}
            for name, fresh in self.create(site, Init(torch.Generator())).items():
                if name.startswith("_"):
                    continue
                key = self.tensor_name(site, name)
                if key not in left:
                    raise AdapterError(f"The adapter file lacks the tensor {key}.")
                own[name] = self.from_file(name, left.pop(key).float(), site)
                if own[name].shape != fresh.shape:
                    raise AdapterError(
                        f"{key} has shape {tuple(own[name].shape)}, but {site.key} of this model "
                        f"needs {tuple(fresh.shape)}: the adapter was made for another base or r."
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

    def to_file(self, name: str, tensor: Tensor, site: Site) -> Tensor:
        """Turn a parameter into the tensor PEFT stores."""
        return tensor

    def from_file(self, name: str, tensor: Tensor, site: Site) -> Tensor:
        """Turn PEFT's stored tensor into the parameter."""
        return tensor


def targets_knob(help: str) -> Any:
    """The `target_modules` field shared by the methods that edit linear layers."""
    return knob("all-linear", help, title="Target modules")
