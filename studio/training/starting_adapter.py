"""Attach what a run trains: a fresh adapter, one of the library trained further, or one on top.

`train.init_adapter` names the adapter to start from, `train.init_mode` what becomes of it. Trained
further, the run's adapter begins with its weights and replaces it. Stacked on, it stays frozen
below a fresh one, and both are needed to answer; so what is below the adapter to start from is
loaded as well. For losses with a reference, the adapter as it was is the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.adapters import library
from studio.adapters.adapter_lineage import base_fingerprint, below_run, frozen_below, lineage
from studio.device_setting import CLUSTER
from studio.errors import AdapterError, MethodError, SpecError
from studio.methods import Method, named
from studio.methods.method_of_config import method_in
from studio.models.find_model import ModelFacts

if TYPE_CHECKING:
    from studio.backbone import Adapter, Backbone
    from studio.home import Home
    from studio.models.loading import Loaded
    from studio.spec import RunSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class StartingPoint:
    """Adapters below the trained one and in its reference, and the one that the run began with."""

    frozen: tuple[tuple[str, float], ...] = ()
    reference: tuple[tuple[str, float], ...] = ()
    parent: library.StoredAdapter | None = None
    stacked: bool = False

    def passport(self, folder: Path) -> dict[str, Any]:
        """Return the line of descent as the passport of an adapter published in a folder has it."""
        if self.parent is None:
            return {"parents": []}
        line = lineage(self.parent, stacked=self.stacked, folder=folder)
        return {"parents": [self.parent.name], "lineage": line}


def resolved(spec: RunSpec, home: Home, known: ModelFacts) -> RunSpec:
    """Return the spec with the folder of the adapter to start from, and its method if it goes on.

    Raises:
        AdapterError: There is no such adapter, or it was made for another base.
        MethodError: The run trains another method.
    """
    if not spec.train.init_adapter:
        return spec
    if spec.train.device == CLUSTER:
        raise SpecError(
            "train.init_adapter is on this machine, and the run on the cluster: train it here, or "
            "merge that adapter into a base first (studio merge).", field="train.init_adapter",
        )  # fmt: skip
    if _is_to_come(Path(spec.train.init_adapter), home):
        return spec
    parent = library.describe(library.resolve(home, spec.train.init_adapter))
    spec = spec.with_parts(train={"init_adapter": str(parent.path)})
    _check(spec, parent, known)
    if spec.train.init_mode == "stack":
        return spec
    return spec.model_copy(update={"method": method_of(parent)})


def _is_to_come(folder: Path, home: Home) -> bool:
    """Return True for the adapter of a run that has not ended; it is checked when this one runs."""
    return folder.name == "adapter" and folder.parent.parent == home.runs and not folder.exists()


def method_of(adapter: library.StoredAdapter) -> Method:
    """Return an adapter's method with its settings.

    Raises:
        AdapterError: It cannot be read.
    """
    settings = adapter.section("spec").get("method")
    if isinstance(settings, dict):
        found: Method = named(str(settings.get("name"))).parse(settings)
        return found
    return method_in(adapter.path)


def num_tokens_before(spec: RunSpec) -> int:
    """Return the virtual tokens before each row, those of frozen adapters below included."""
    below = (method_of(one).num_tokens_before for one in below_run(spec))
    return spec.method.num_tokens_before + sum(below)


def attach(
    spec: RunSpec, backbone: Backbone, loaded: Loaded, name: str, example: list[int]
) -> tuple[Adapter, StartingPoint]:
    """Attach what the run trains to a base; `example` is the first row's tokens.

    Raises:
        AdapterError: The adapter to start from is missing, damaged or of another base.
        MethodError: The method does not fit this model.
    """
    args = spec.train
    start, below = StartingPoint(), f"{name}-start"
    if args.init_adapter:
        parent = library.describe(Path(args.init_adapter))
        _check(spec, parent, loaded.facts)
        keeps = args.init_mode == "stack"
        older = {f"{below}-{i}": one.path for i, one in enumerate(frozen_below(parent))}
        wanted = older | ({below: parent.path} if keeps or args.loss != "sft" else {})
        for one, folder in wanted.items():
            backbone.load(one, folder)
        start = StartingPoint(
            frozen=tuple((one, 1.0) for one in (wanted if keeps else older)),
            reference=tuple((one, 1.0) for one in wanted), parent=parent, stacked=keeps,
        )  # fmt: skip
        if not keeps:
            return backbone.load(name, parent.path), start
    tokenizer = loaded.tokenizer
    adapter = backbone.attach(
        name, spec.method, seed=spec.seed,
        tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        example=example,
    )  # fmt: skip
    return adapter, start


def _check(spec: RunSpec, parent: library.StoredAdapter, known: ModelFacts) -> None:
    if parent.is_model:
        raise AdapterError(
            f'"{parent.name}" is a whole model, from full fine-tuning: choose {parent.path} as '
            "model.path instead of train.init_adapter."
        )
    if spec.method.trains_base:
        raise MethodError(
            "Full fine-tuning trains the base and cannot start from an adapter: merge "
            f'"{parent.name}" into the base first (studio merge), or use an adapter method.'
        )
    if base_fingerprint(parent) not in ("", known.fingerprint):
        raise AdapterError(
            f'"{parent.name}" was made for {parent.base or "another base"}, not for '
            f"{spec.model.path}: choose that base, or another train.init_adapter."
        )
    frozen_below(parent)  # raises where one is missing
    if spec.train.init_mode == "continue" and (own := method_of(parent)).name != spec.method.name:
        raise MethodError(
            f'"{parent.name}" is {own.title}, which train.init_mode=continue trains further: set '
            f"method.name={own.name}, or train.init_mode=stack for a fresh adapter on top."
        )
