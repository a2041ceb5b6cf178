"""Resident models: keep bases and adapters in memory, and answer lanes of any of them.

A base is loaded once for all its adapters; an adapter is loaded when a lane names it and again when
its files have changed. What cannot be loaded fails its own lane only. When memory is short, the
least recently used base is dropped. On a GPU a base is loaded in 4 bits if all adapters of its
lanes were trained so and bitsandbytes is there: what fits for training fits for chat.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from studio import hardware
from studio.adapters import adapter_lineage
from studio.adapters.library import StoredAdapter, describe, resolve
from studio.chat import checkpoint_adapters
from studio.chat.checkpoint_adapters import Checkpoint
from studio.chat.lanes import ActiveStack, Delta, Lane
from studio.errors import AdapterError, ChatError, OutOfMemory, StudioError
from studio.home import Home
from studio.models.find_model import ModelFacts, facts
from studio.models.quantization import QUANTISED_BYTES, can_quantise
from studio.names import readable
from studio.spec import ModelSource

if TYPE_CHECKING:
    from studio.chat.chat_engine import ChatEngine, Stopped, WeightChanges

MAX_ADAPTERS = 64  # per base; beyond that the least recently used one is dropped
Signature = tuple[tuple[str, int, int], ...]


@dataclass(slots=True)
class _Adapter:
    path: Path
    signature: Signature
    template: str
    template_settings: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Device, dtype and quantization of a base, and the memory that these take."""

    device: str
    dtype: str
    quantization: str
    num_bytes: int


@dataclass(slots=True)
class _Base:
    source: ModelSource
    facts: ModelFacts
    signature: Signature
    place: _Place
    engine: ChatEngine = field(init=False)
    adapters: dict[str, _Adapter] = field(default_factory=dict)


class ResidentModels:
    """The bases and adapters in memory; for one thread at a time.

    Args:
        home: Where adapters are looked up by name.
        device: Where bases are loaded; a function is asked at each question, since a job may have
            taken or left a device.
        hold: Called before a base is loaded, with `describe()` of what will be in memory.
    """

    def __init__(
        self, home: Home, *, device: str | Callable[[], str] = "auto",
        hold: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> None:  # fmt: skip
        self._home = home
        self._device = device if callable(device) else lambda: device
        self._hold = hold
        self._bases: dict[Path, _Base] = {}

    def stream(
        self,
        lanes: Sequence[Lane],
        *,
        stopped: Stopped | None = None,
        wanted: WeightChanges | None = None,
    ) -> Iterator[Delta]:
        """Load what is missing and answer every lane; different bases alternate token by token."""
        sources: dict[int, ModelSource] = {}
        models: dict[ModelSource, ModelFacts] = {}
        numbers: dict[Path, list[int]] = {}
        asked, lanes = lanes, list(lanes)
        for number, lane in enumerate(asked):
            try:
                lanes[number] = self._completed(lane)
                sources[number] = checkpoint_adapters.base_of_lane(self._home, lanes[number])
            except StudioError as error:
                yield _failed(number, error)
        sources = checkpoint_adapters.same_revisions(sources, lanes)
        for number, source in sources.items():
            try:
                models[source] = models.get(source) or facts(source)
            except StudioError as error:
                yield _failed(number, error)
                continue
            numbers.setdefault(models[source].path, []).append(number)
        streams: list[Iterator[Delta]] = []
        for path, places in numbers.items():
            source = sources[places[0]]
            if stopped is not None and stopped():
                yield from (Delta(lane=at, done=True, reason="stopped") for at in places)
                continue
            try:
                known = models[source]
                place = self._place(known, [lanes[number] for number in places])
                yield from self._ready(source, known, place, places[0], keep=numbers.keys())
            except StudioError as error:
                yield from (_failed(number, error) for number in places)
                continue
            base = self._bases[path]
            able: list[int] = []
            for number in places:
                try:
                    yield from self._with_adapters(base, number, lanes[number])
                    able.append(number)
                except StudioError as error:
                    yield _failed(number, error)
            self._drop_unused(base, lanes)
            if able:
                streams.append(_renumbered(base, lanes, asked, able, stopped, wanted))
        yield from _alternating(streams)

    def release(self) -> None:
        """Drop every base and adapter and free their memory."""
        self._bases.clear()
        _return_memory()

    def describe(self) -> list[dict[str, Any]]:
        """Return the models in memory, for status pages."""
        return [_description(base) for base in list(self._bases.values())]

    # -- bases ---------------------------------------------------------------------------------

    def _place(self, known: ModelFacts, lanes: Sequence[Lane]) -> _Place:
        from studio.models.loading import dtype_for, torch_device

        device = torch_device(self._device())
        dtype = str(dtype_for("auto", device)).removeprefix("torch.")
        trained = {
            checkpoint_adapters.base_of_adapter(self._home, part.name).quantization
            for lane in lanes for part in lane.stack
        }  # fmt: skip
        alike = device.type != "cpu" and len(trained) == 1 and can_quantise()
        quantization = str(trained.pop()) if alike else "none"
        width = 4 if dtype == "float32" else 2
        per_parameter = QUANTISED_BYTES.get(quantization, width)
        return _Place(str(device), dtype, quantization, int(known.parameters * per_parameter))

    def _ready(
        self, source: ModelSource, known: ModelFacts, place: _Place, number: int, *,
        keep: Collection[Path],
    ) -> Iterator[Delta]:  # fmt: skip
        """Load a base unless it is resident and unchanged; note it first, since it takes time."""
        signature = _signature(
            known.path, ("config.json", "*.safetensors", "tokenizer*.json", "*.jinja")
        )
        base = self._bases.pop(known.path, None)
        if base is not None and (base.signature, base.place) == (signature, place):
            self._bases[known.path] = base  # at the end: most recently used
            return
        if base is not None:
            del base
            _return_memory()
        how = "" if place.quantization == "none" else f", {place.quantization}"
        yield Delta(lane=number, note=f"Loading {source.path} ({readable(place.num_bytes)}{how})…")
        self._make_room(known, place, keep)
        base = _Base(source, known, signature, place)
        if self._hold is not None:
            self._hold([*self.describe(), _description(base)])
        if problem := self._load(base):
            yield Delta(lane=number, note=problem)
        self._bases[known.path] = base

    def _load(self, base: _Base) -> str:
        """Load a base; return what its self-test found wrong."""
        from studio.backbone import Backbone
        from studio.chat import captured_decoding
        from studio.chat.chat_engine import ChatEngine
        from studio.models.loading import load
        from studio.training.base_check import check_base

        source = base.source.model_copy(update={"quantization": base.place.quantization})
        loaded = load(source, device=base.place.device)
        backbone = Backbone(loaded.model)
        base.engine = ChatEngine(loaded, backbone)
        try:
            check_base(backbone, loaded, self._home, quantization=base.place.quantization)
        except StudioError as error:
            return error.text
        captured_decoding.allow(backbone, device=loaded.device, dtype=loaded.dtype, home=self._home)
        return ""

    def _make_room(self, known: ModelFacts, place: _Place, keep: Collection[Path]) -> None:
        need = place.num_bytes
        _return_memory()  # torch keeps that of earlier answers
        for path in [path for path in self._bases if path not in keep]:
            if _free_bytes(place.device) > 1.2 * need:
                return
            del self._bases[path]
            _return_memory()
        free = _free_bytes(place.device)
        if need > free:
            raise OutOfMemory(
                f"{known.path.name} needs about {readable(need)}, but only {readable(free)} are "
                "free: close other programs, pause running jobs, or choose a smaller model."
            )

    # -- adapters ------------------------------------------------------------------------------

    def _completed(self, lane: Lane) -> Lane:
        """Return a lane with what its adapters were trained on top of.

        One adapter that is a whole model (full fine-tuning) becomes the lane's model.
        """

        @cache
        def stored(name: str) -> Checkpoint | StoredAdapter:
            checkpoint = checkpoint_adapters.find_if_named(self._home, name)
            return checkpoint or describe(resolve(self._home, name))

        def needs(name: str) -> adapter_lineage.Needs:
            if isinstance(found := stored(name), Checkpoint):
                return adapter_lineage.Needs(found.path, adapter_lineage.below_run(found.spec))
            return adapter_lineage.Needs(found.path, adapter_lineage.frozen_below(found))

        def name(one: StoredAdapter) -> str:
            is_own = resolve(self._home, one.name) == one.path
            return one.name if is_own else str(one.path)

        for item in lane.stack if len(lane.stack) == 1 else ():
            if isinstance(found := stored(item.name), StoredAdapter) and found.is_model:
                if item.weight != 1:
                    raise ChatError(f'"{item.name}" is a whole model: its weight must be 1.')
                return lane.model_copy(update={"model": str(found.path), "stack": ()})
        stack = adapter_lineage.completed(lane.stack, needs, name)
        return lane.model_copy(update={"stack": stack})

    def _with_adapters(self, base: _Base, number: int, lane: Lane) -> Iterator[Delta]:
        backbone = base.engine.backbone
        for name in (part.name for part in lane.stack):
            checkpoint = checkpoint_adapters.find_if_named(self._home, name)
            path = checkpoint.path if checkpoint else resolve(self._home, name)
            signature = _signature(path, ("adapter_config.json", "*.safetensors"))
            known = base.adapters.pop(name, None)
            if known is None or (known.path, known.signature) != (path, signature):
                if name in backbone.adapters:
                    backbone.detach(name)
                known = _Adapter(
                    path, signature, *_load_adapter(base.engine, name, checkpoint or path)
                )
            base.adapters[name] = known
            if known.fingerprint and known.fingerprint != base.facts.fingerprint:
                note = adapter_lineage.OTHER_BASE.format(adapter=name, model=lane.model)
                yield Delta(lane=number, note=note)

    def _drop_unused(self, base: _Base, lanes: Sequence[Lane]) -> None:
        in_use = {part.name for lane in lanes for part in lane.stack}
        idle = [name for name in base.adapters if name not in in_use]
        for name in idle[: max(0, len(base.adapters) - MAX_ADAPTERS)]:
            del base.adapters[name]
            base.engine.backbone.detach(name)


def _as_trained(base: _Base, lane: Lane) -> Lane:
    """Return a lane with its own template, else the one its first adapter was trained with."""
    trained = [base.adapters[part.name] for part in lane.stack]
    names = [lane.template, *(one.template for one in trained)]
    settings = [lane.sampling.chat_template_kwargs, *(one.template_settings for one in trained)]
    own = {"chat_template_kwargs": next(filter(None, settings), "")}
    name = next((name for name in names if name != "auto"), "auto")
    sampling = lane.sampling.model_copy(update=own)
    return lane.model_copy(update={"template": name, "sampling": sampling})


def import_everything() -> None:
    """Import what the first answer needs: it takes seconds, while the user still types."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache  # noqa: F401

    from studio.backbone import Backbone  # noqa: F401
    from studio.chat.chat_engine import ChatEngine  # noqa: F401
    from studio.data.template.choose_template import choose  # noqa: F401
    from studio.models.loading import load  # noqa: F401


def _load_adapter(engine: ChatEngine, name: str, source: Path | Checkpoint) -> tuple[str, str, str]:
    """Load an adapter or a checkpoint.

    Returns:
        Its chat template, the settings of the template, and its base's fingerprint.
    """
    if isinstance(source, Path):
        engine.backbone.load(name, source)
        adapter = describe(source)
        return adapter.chat_template, adapter.chat_template_kwargs, adapter.base_fingerprint
    tokenizer = engine.loaded.tokenizer
    checkpoint_adapters.attach(
        engine.backbone, source, name=name,
        tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
    )  # fmt: skip
    return source.spec.data.chat_template, source.spec.data.chat_template_kwargs, ""


def _signature(folder: Path, patterns: Sequence[str]) -> Signature:
    try:
        return tuple(
            (file.name, file.stat().st_mtime_ns, file.stat().st_size)
            for pattern in patterns
            for file in sorted(folder.glob(pattern))
        )
    except OSError as error:
        raise AdapterError(f"{folder} cannot be read ({error.strerror}).") from None


def _failed(number: int, error: StudioError) -> Delta:
    return Delta(lane=number, done=True, reason="error", error=error)


def _renumbered(
    base: _Base, lanes: Sequence[Lane], asked: Sequence[Lane], numbers: Sequence[int],
    stopped: Stopped | None, wanted: WeightChanges | None,
) -> Iterator[Delta]:  # fmt: skip
    def own() -> dict[int, ActiveStack]:
        moved = wanted() if wanted is not None else {}
        return {
            place: _completed_again(lanes[number], asked[number], moved[number])
            for place, number in enumerate(numbers) if number in moved
        }  # fmt: skip

    own_lanes = [_as_trained(base, lanes[number]) for number in numbers]
    for delta in base.engine.stream(own_lanes, stopped=stopped, wanted=own):
        yield replace(delta, lane=numbers[delta.lane])


def _completed_again(lane: Lane, asked: Lane, moved: ActiveStack) -> ActiveStack:
    """Return new weights of a lane's own adapters with what was added to its stack below them."""
    added = {part.name for part in lane.stack} - {part.name for part in asked.stack}
    if len(moved) != len(asked.stack):
        return moved  # other adapters: the engine refuses it
    own = iter(moved)
    return tuple((p.name, p.weight) if p.name in added else next(own) for p in lane.stack)


def _alternating(streams: list[Iterator[Delta]]) -> Iterator[Delta]:
    while streams:
        for stream in list(streams):
            delta = next(stream, None)
            if delta is None:
                streams.remove(stream)
            else:
                yield delta


def _description(base: _Base) -> dict[str, Any]:
    return {
        "model": base.source.path,
        "device": base.place.device,
        "parameters": base.facts.parameters,
        "bytes": base.place.num_bytes,
        "adapters": sorted(base.adapters),
    }


def _free_bytes(device: str) -> int:
    if of := hardware.torch_module(device):
        return int(of.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _return_memory() -> None:
    """Free what was dropped; torch keeps a GPU's memory to itself until it is asked."""
    gc.collect()
    hardware.return_cached_memory()
