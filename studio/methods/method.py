"""What a method is: a config with PEFT's names, its maths at a site, and how it folds and is stored.

A method file holds one `Method` subclass and needs no torch to be imported: its maths are plain
tensor expressions over a dictionary of parameters, so the form, the queue and `studio methods` read
the very class that trains. Where the parameters live, which rows they act on and in which order is
not a method's business: that is `studio.methods.layer`.

Shapes: `B batch, T tokens, I in_features, O out_features, D hidden, P virtual tokens`.
"""

from __future__ import annotations

import inspect
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import ValidationError

from studio.errors import AdapterError
from studio.knobs import Record, knob

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from studio.methods.layer.sites import Backbone, Site

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


class Method(Record):
    """The contract every method fills in; see `lora.py` for the shortest whole example."""

    title: ClassVar[str]
    paper: ClassVar[str]
    phase: ClassVar[Phase]
    peft_type: ClassVar[str]
    base_learning_rate: ClassVar[float] = 5e-4
    """Learning rate for a hidden size of 2000; `"auto"` scales it to the model at hand."""

    @classmethod
    def manual(cls) -> str:
        """The class docstring: rule with shapes, paper, when to use it, what it costs."""
        return inspect.cleandoc(cls.__doc__ or "")

    def sites(self, backbone: Backbone) -> list[Site]:
        """Return the places this method edits, in the backbone's own order.

        Raises:
            MethodError: A target does not exist; names the nearest real ones.
        """
        raise NotImplementedError

    def create(self, site: Site, generator: Generator) -> Params:
        """Return this site's freshly initialised parameters (float32, on the CPU)."""
        raise NotImplementedError

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """Phase DELTA: what to add to `y`, the module's own output for the input `x`."""
        raise NotImplementedError

    def gain_in(self, p: Params, site: Site) -> Tensor | None:
        """Phase GAIN: the factor on the module's input, or None."""
        raise NotImplementedError

    def gain_out(self, p: Params, site: Site) -> Tensor | None:
        """Phase GAIN: the factor on the module's output, or None."""
        raise NotImplementedError

    def transform(self, p: Params, x: Tensor, h: Tensor, site: Site, *, training: bool) -> Tensor:
        """Phase TRANSFORM: what to add to the running output `h`; `x` is the residual stream."""
        raise NotImplementedError

    def keys_values(self, p: Params, site: Site) -> tuple[Tensor, Tensor]:
        """Phase KEYS_VALUES: `(kv_heads, P, head_dim)` twice, before the site's own."""
        raise NotImplementedError

    def prompt(self, p: Params) -> Tensor:
        """Phase PROMPT: `(P, D)` embeddings before the sequence."""
        raise NotImplementedError

    def fold(self, p: Params, site: Site, weight: float) -> Params | None:
        """Return float32 tensors to add to the module's own, by name; None if it cannot fold."""
        return None

    @property
    def num_tokens_before(self) -> int:
        """How many positions this adapter occupies before the sequence."""
        return 0

    # -- PEFT's files --------------------------------------------------------------------------

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """Return this method's part of `adapter_config.json`."""
        raise NotImplementedError

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Self:
        """Read `adapter_config.json`; fields that would change the maths and that we do not have
        are refused by name.

        Raises:
            AdapterError: A field has a value outside its bounds or one we cannot honour.
        """
        raise NotImplementedError

    @classmethod
    def parse_peft(cls, fields: dict[str, Any]) -> Self:
        """Build the method from PEFT's values, turning a bad one into one sentence."""
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise AdapterError(
                f"adapter_config.json: {where} is {first.get('input')!r}: {first['msg']}."
            ) from None

    def tensor_name(self, site: Site, name: str) -> str:
        """The parameter's key in the PEFT file."""
        return f"base_model.model.{site.key}.{name}"

    def to_file(self, name: str, tensor: Tensor, site: Site) -> Tensor:
        """Turn a parameter into the tensor PEFT stores."""
        return tensor

    def from_file(self, name: str, tensor: Tensor, site: Site) -> Tensor:
        """Turn PEFT's stored tensor into the parameter."""
        return tensor


def targets_knob(help: str) -> Any:
    """The `target_modules` field shared by the methods that edit linear layers."""
    return knob("all-linear", help, title="Target modules")
