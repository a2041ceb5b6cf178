"""Resident models: keep bases and adapters in memory, and answer lanes of any of them.

A base is loaded once for all its adapters; an adapter is loaded when a lane names it and again when
its files have changed. What cannot be loaded fails its own lane only. When memory is short, the
least recently used base is dropped.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.chat.lanes import ActiveStack, Delta, Lane
from studio.errors import AdapterError, OutOfMemory, StudioError
from studio.home import Home
from studio.models.sources import ModelFacts, facts
from studio.names import readable
from studio.spec import ModelSource

if TYPE_CHECKING:
    from studio.chat.engine import ChatEngine, Stopped, WeightChanges
    from studio.chat.prompt import PromptTemplate
    from studio.chat.run_checkpoints import Checkpoint

MAX_ADAPTERS = 64  # per base; beyond that the least recently used one is dropped
OTHER_BASE = "{adapter} was trained on another base than {model}: its answers may be poor."
NEEDS_MEMORY = (
    "{model} needs about {need}, but only {free} are free: close other programs, pause running "
    "jobs, or choose a smaller model."
)

Signature = tuple[tuple[str, int, int], ...]


@dataclass(slots=True)
class _Adapter:
    path: Path
    signature: Signature
    template: str
    fingerprint: str


@dataclass(slots=True)
class _Base:
    name: str
    facts: ModelFacts
    signature: Signature
    engine: ChatEngine = field(init=False)
    adapters: dict[str, _Adapter] = field(default_factory=dict)


class ResidentModels:
    """The bases and adapters in memory; for one thread at a time.

    Args:
        home: Where adapters are looked up by name.
        device: Where bases are loaded.
    """

    def __init__(self, home: Home, *, device: str = "auto") -> None:
        self._home = home
        self._device = device
        self._bases: dict[Path, _Base] = {}

    def stream(
        self,
        lanes: Sequence[Lane],
        *,
        stopped: Stopped | None = None,
        wanted: WeightChanges | None = None,
    ) -> Iterator[Delta]:
        """Load what is missing and answer every lane; different bases alternate token by token."""
        models: dict[str, ModelFacts] = {}
        numbers: dict[Path, list[int]] = {}
        for number, lane in enumerate(lanes):
            try:
                models[lane.model] = models.get(lane.model) or facts(ModelSource(path=lane.model))
            except StudioError as error:
                yield _failed(number, error)
                continue
            numbers.setdefault(models[lane.model].path, []).append(number)
        streams: list[Iterator[Delta]] = []
        for path, places in numbers.items():
            name = lanes[places[0]].model
            try:
                yield from self._ready(name, models[name], places[0], keep=numbers.keys())
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
                streams.append(_renumbered(base.engine, lanes, able, stopped, wanted))
        yield from _alternating(streams)

    def release(self) -> None:
        """Drop every base and adapter and free their memory."""
        import torch

        self._bases.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def describe(self) -> list[dict[str, Any]]:
        """Return the models in memory, for status pages."""
        return [
            {
                "model": base.name,
                "device": str(base.engine.loaded.device),
                "parameters": base.facts.parameters,
                "bytes": _bytes_in_memory(base.facts, str(base.engine.loaded.dtype)),
                "adapters": sorted(base.adapters),
            }
            for base in list(self._bases.values())
        ]

    # -- bases ---------------------------------------------------------------------------------

    def _ready(
        self, name: str, known: ModelFacts, number: int, *, keep: Collection[Path]
    ) -> Iterator[Delta]:
        """Load a base unless it is resident and unchanged; note it first, since it takes time."""
        signature = _signature(known.path, ("config.json", "*.safetensors", "tokenizer*.json"))
        base = self._bases.pop(known.path, None)
        if base is not None and base.signature == signature:
            self._bases[known.path] = base  # at the end: most recently used
            return
        del base
        size = readable(_bytes_in_memory(known, "float32"))
        yield Delta(lane=number, note=f"Loading {name} ({size})…")
        self._make_room(known, keep)
        self._bases[known.path] = self._loaded(name, known, signature)

    def _loaded(self, name: str, known: ModelFacts, signature: Signature) -> _Base:
        from studio.backbone import Backbone
        from studio.chat.engine import ChatEngine
        from studio.models.loading import load

        loaded = load(ModelSource(path=name), device=self._device)
        base = _Base(name, known, signature)

        def template_for(lane: Lane) -> PromptTemplate:
            from studio.data.template.template import choose

            return choose(loaded.tokenizer, _template_name(base, lane))

        base.engine = ChatEngine(loaded, Backbone(loaded.model), template_for=template_for)
        return base

    def _make_room(self, known: ModelFacts, keep: Collection[Path]) -> None:
        need = _bytes_in_memory(known, "float32")
        for path in [path for path in self._bases if path not in keep]:
            if self._free_bytes() > 1.2 * need:
                return
            del self._bases[path]
            gc.collect()
        free = self._free_bytes()
        if need > free:
            words = {"model": known.path.name, "need": readable(need), "free": readable(free)}
            raise OutOfMemory(NEEDS_MEMORY.format(**words))

    def _free_bytes(self) -> int:
        import psutil
        import torch

        if self._device != "cpu" and torch.cuda.is_available():
            return int(torch.cuda.mem_get_info()[0])
        return int(psutil.virtual_memory().available)

    # -- adapters ------------------------------------------------------------------------------

    def _with_adapters(self, base: _Base, number: int, lane: Lane) -> Iterator[Delta]:
        from studio.adapters.library import resolve
        from studio.chat import run_checkpoints

        backbone = base.engine.backbone
        for name in (part.name for part in lane.stack):
            checkpoint = run_checkpoints.find_if_named(self._home, name)
            path = checkpoint.path if checkpoint else resolve(self._home, name)
            signature = _signature(path, ("adapter_config.json", "*.safetensors"))
            known = base.adapters.pop(name, None)
            if known is None or (known.path, known.signature) != (path, signature):
                if name in backbone.adapters:
                    backbone.detach(name)
                template, fingerprint = _load_adapter(base.engine, name, checkpoint or path)
                known = _Adapter(path, signature, template, fingerprint)
            base.adapters[name] = known
            if known.fingerprint and known.fingerprint != base.facts.fingerprint:
                note = OTHER_BASE.format(adapter=name, model=lane.model)
                yield Delta(lane=number, note=note)

    def _drop_unused(self, base: _Base, lanes: Sequence[Lane]) -> None:
        in_use = {part.name for lane in lanes for part in lane.stack}
        idle = [name for name in base.adapters if name not in in_use]
        for name in idle[: max(0, len(base.adapters) - MAX_ADAPTERS)]:
            del base.adapters[name]
            base.engine.backbone.detach(name)


def _template_name(base: _Base, lane: Lane) -> str:
    """Return the lane's template, else the one its first adapter was trained with."""
    if lane.template != "auto":
        return lane.template
    trained = [base.adapters[part.name].template for part in lane.stack]
    return next((name for name in trained if name != "auto"), "auto")


def import_everything() -> None:
    """Import what the first answer needs: it takes seconds, while the user still types."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache  # noqa: F401

    from studio.backbone import Backbone  # noqa: F401
    from studio.chat.engine import ChatEngine  # noqa: F401
    from studio.data.template.template import choose  # noqa: F401
    from studio.models.loading import load  # noqa: F401


def _load_adapter(engine: ChatEngine, name: str, source: Path | Checkpoint) -> tuple[str, str]:
    """Load an adapter or a checkpoint; return its chat template and its base's fingerprint."""
    from studio.adapters.library import describe
    from studio.chat import run_checkpoints

    if isinstance(source, Path):
        engine.backbone.load(name, source)
        adapter = describe(source)
        template = str(adapter.section("data").get("template") or "auto")
        fingerprint = adapter.base_fingerprint
    else:
        tokenizer = engine.loaded.tokenizer
        run_checkpoints.attach(
            engine.backbone, source, name=name,
            tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        )  # fmt: skip
        template, fingerprint = source.spec.data.chat_template, ""
    return "auto" if template == "model" else template, fingerprint  # auto takes the model's own


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
    engine: ChatEngine, lanes: Sequence[Lane], numbers: Sequence[int], stopped: Stopped | None,
    wanted: WeightChanges | None,
) -> Iterator[Delta]:  # fmt: skip
    def own() -> dict[int, ActiveStack]:
        asked = wanted() if wanted is not None else {}
        return {place: asked[number] for place, number in enumerate(numbers) if number in asked}

    for delta in engine.stream([lanes[n] for n in numbers], stopped=stopped, wanted=own):
        yield replace(delta, lane=numbers[delta.lane])


def _alternating(streams: list[Iterator[Delta]]) -> Iterator[Delta]:
    while streams:
        for stream in list(streams):
            delta = next(stream, None)
            if delta is None:
                streams.remove(stream)
            else:
                yield delta


def _bytes_in_memory(known: ModelFacts, dtype: str) -> int:
    return known.parameters * (4 if "float32" in dtype else 2)
