"""What a person can ask to be made of adapters: frozen requests, checked before they are queued.

Each becomes a job; `perform` is the generator that the job runs. Torch loads only there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from studio.adapters.library import refuse_place
from studio.errors import AdapterError, InputError
from studio.fields import Record, knob, validated
from studio.home import Home, slug
from studio.spec import ModelSource
from studio.stack import Stack
from studio.training.events import Event, Finished, Loading


class MergeRequest(Record):
    """Fold a stack into a model of its own."""

    name: str = knob("", "What to call the merged model.", title="Name", max_length=120)
    model: ModelSource = ModelSource()
    stack: Stack = ()
    out: str = knob("", "A folder; empty puts it among the home's models.", advanced=True)
    device: str = knob("auto", "auto, cpu, cuda:0 …", advanced=True)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Validate plain values or raise one SpecError."""
        return validated(cls, values)

    def checked(self, home: Home) -> Self:
        """Return the request as the queue stores it: adapters found, folders absolute.

        Raises:
            StudioError: An adapter or the model is missing, or the result exists already.
        """
        from studio.models.sources import facts

        facts(self.model)
        out = self.folder(home)
        refuse_place(out)
        return self.model_copy(update={"stack": _found(self.stack, home), "out": str(out)})

    def folder(self, home: Home) -> Path:
        """Where the merged model goes."""
        if self.out:
            return Path(self.out).expanduser().absolute()
        from studio.adapters.library import name_of

        names = "-".join(name_of(Path(item.name)) for item in self.stack)
        return home.models / slug(self.name or f"merged-{names}")

    def perform(self, home: Home) -> Iterator[Event]:
        """Merge, with a certificate."""
        from studio.adapters.merge import merge

        stack = [(Path(item.name), item.weight) for item in self.stack]
        return merge(self.model, stack, self.folder(home), device=self.device)


class MixRequest(Record):
    """Mix several LoRAs into one new adapter of the library."""

    name: str = knob("", "What to call the new adapter.", title="Name", max_length=120)
    model: ModelSource = ModelSource()
    stack: Stack = ()
    how: Literal["concatenate", "svd", "ties", "dare"] = knob(
        "concatenate", "Exact weighted sum, its best rank-r approximation, TIES, or DARE.",
        title="Way",
    )  # fmt: skip
    r: int = knob(16, "Rank of the result (not for concatenate).", title="Rank (r)", ge=1, le=1024)
    density: float = knob(0.5, "Share kept by TIES and DARE.", title="Density", gt=0, le=1)
    seed: int = knob(0, "For DARE.", ge=0, le=2**31 - 1, advanced=True)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Validate plain values or raise one SpecError."""
        return validated(cls, values)

    def checked(self, home: Home) -> Self:
        """Return the request as the queue stores it.

        Raises:
            StudioError: An adapter or the model is missing, or the name is empty or taken.
        """
        from studio.models.sources import facts

        facts(self.model)
        if not self.name.strip():
            raise InputError("A mix needs a name for the new adapter (--name).")
        if (home.adapters / slug(self.name)).exists():
            raise AdapterError(f'There is already an adapter "{slug(self.name)}"; choose another.')
        return self.model_copy(update={"stack": _found(self.stack, home)})

    def perform(self, home: Home) -> Iterator[Event]:
        """Load, mix, publish."""
        import time

        from studio.adapters.library import describe
        from studio.adapters.mix import mix, publish_mix
        from studio.backbone import Backbone
        from studio.models.loading import load

        started = time.monotonic()
        yield Loading(text="Loading the base")
        loaded = load(self.model, "cpu")
        backbone = Backbone(loaded.model)
        stack = []
        for item in self.stack:
            name = describe(Path(item.name)).name
            backbone.load(name, Path(item.name))
            stack.append((name, item.weight))
        yield Loading(text="Mixing")
        mixed = mix(
            backbone, stack, "mix", how=self.how, r=self.r, density=self.density, seed=self.seed
        )
        folder = home.adapters / slug(self.name)
        base = {"path": self.model.path, "fingerprint": loaded.facts.fingerprint}
        publish_mix(backbone, "mix", folder, base=base, parents=stack, mixed=mixed, how=self.how)
        yield _done(str(folder), time.monotonic() - started)


class PictureRequest(Record):
    """Measure what an adapter changed, per layer and module."""

    name: str = knob("", "What to call the job.", title="Name", max_length=120)
    adapter: str = knob("", "Name or folder of the adapter.", title="Adapter")
    model: ModelSource = ModelSource(path="")

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Validate plain values or raise one SpecError."""
        return validated(cls, values)

    def checked(self, home: Home) -> Self:
        """Return the request as the queue stores it; no model means the adapter's own base.

        Raises:
            StudioError: The adapter or its base is missing.
        """
        from studio.adapters.library import describe, resolve
        from studio.models.sources import facts

        folder = resolve(home, self.adapter)
        path = self.model.path or describe(folder).base
        if not path:
            raise AdapterError(f'"{self.adapter}" does not say what its base is: choose one.')
        model = self.model.model_copy(update={"path": path})
        facts(model)
        return self.model_copy(update={"adapter": str(folder), "model": model})

    def perform(self) -> Iterator[Event]:
        """Measure and keep the picture beside the adapter."""
        import time

        from studio.adapters.picture import draw

        started = time.monotonic()
        yield Loading(text="Measuring what the adapter changed")
        draw(self.model, Path(self.adapter))
        yield _done(None, time.monotonic() - started)


class ImportRequest(Record):
    """Bring an adapter into the library."""

    name: str = knob("", "What to call the job.", title="Name", max_length=120)
    adapter: str = knob("", "What to call it; its folder's name when empty.", max_length=120)
    source: str = knob("", "A folder, or a hub id such as org/name.", max_length=4000)
    model: ModelSource | None = knob(None, "The base to check it against.")

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Validate plain values or raise one SpecError."""
        return validated(cls, values)

    def checked(self, home: Home) -> Self:
        """Return the request as the queue stores it; what is in the folder is read by the job.

        Raises:
            StudioError: No such folder, the name is taken, or the model is missing.
        """
        from studio.adapters.imports import locate
        from studio.models.sources import facts

        source, _ = locate(home, self.source.strip(), self.adapter)
        if self.model is not None:
            facts(self.model)
        return self.model_copy(update={"source": source})

    def perform(self, home: Home) -> Iterator[Event]:
        """Read it as strictly as a load would, try it on its base, copy it."""
        import time

        from studio.adapters.imports import import_adapter

        started = time.monotonic()
        yield Loading(text="Reading the adapter")
        found = import_adapter(home, self.source, name=self.adapter, model=self.model)
        yield _done(str(found.path), time.monotonic() - started)


class ExportRequest(Record):
    """Write an adapter to a folder of its own."""

    name: str = knob("", "What to call the job.", title="Name", max_length=120)
    adapter: str = knob("", "Name or folder of the adapter.", title="Adapter")
    out: str = knob("", "The new folder; empty puts it into the home's exports.", max_length=4000)
    form: Literal["peft", "vllm", "adapterhub", "card"] = knob(
        "peft", "Whose files, or the model card alone.", title="Format"
    )
    model: str = knob("", "Its base, where the passport does not say.", advanced=True)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Validate plain values or raise one SpecError."""
        return validated(cls, values)

    def checked(self, home: Home) -> Self:
        """Return the request as the queue stores it.

        Raises:
            StudioError: The adapter is missing, or the folder exists.
        """
        from studio.adapters.export import refuse_form
        from studio.adapters.library import describe, resolve

        folder = resolve(home, self.adapter)
        refuse_form(describe(folder), self.form)
        usual = home.path / "exports" / slug(f"{describe(folder).name} {self.form}")
        out = Path(self.out).expanduser().absolute() if self.out.strip() else usual
        refuse_place(out)
        return self.model_copy(update={"adapter": str(folder), "out": str(out)})

    def perform(self, home: Home) -> Iterator[Event]:
        """Write it, and let it answer beside the original."""
        import time

        from studio.adapters.export import export_adapter

        started = time.monotonic()
        yield Loading(text="Writing the adapter")
        out = export_adapter(
            home, self.adapter, Path(self.out), form=self.form, model=self.model
        )  # fmt: skip
        yield _done(str(out), time.monotonic() - started)


def _done(result: str | None, seconds: float) -> Finished:
    return Finished(
        reason="completed", adapter=result, first_loss=None, last_loss=None, eval_loss=None,
        seconds=seconds,
    )  # fmt: skip


def _found(stack: Stack, home: Home) -> Stack:
    from studio.adapters.library import resolve

    if not stack:
        raise InputError("Name at least one adapter (--adapter NAME[:WEIGHT]).")
    return tuple(item.model_copy(update={"name": str(resolve(home, item.name))}) for item in stack)
