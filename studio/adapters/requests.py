"""Requests about adapters: merge, mix, measure changes, import, export. `perform` loads torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from studio.adapters.library import describe, name_of, refuse_place, resolve
from studio.adapters.verify import CERTIFICATE, EXPORT_REPORT, read_report
from studio.errors import AdapterError, InputError
from studio.fields import knob
from studio.home import Home, slug
from studio.request import Request
from studio.spec import ModelSource
from studio.stack import Stack
from studio.training.events import Event, Finished, Loading

BASE: dict[str, Any] = {"title": "Base model", "of": "model"}
STACK: dict[str, Any] = {"title": "Adapters", "flag": "--adapter", "metavar": "NAME[:WEIGHT]"}


class MergeRequest(Request):
    """Fold adapters into a new model, with a certificate."""

    kind: ClassVar[str] = "merge"
    stack: Stack = knob((), "Adapters in stack order; repeat for several.", **STACK)
    model: ModelSource = knob(
        ModelSource(), "Folder, hub id, or starter.", inner=("path", "quantization", "dtype"),
        **BASE,
    )  # fmt: skip
    out: str = knob("", "New folder; in the home's models by default.", advanced=True)
    name: str = knob("", "Name of the merged model.", title="Name", max_length=120)
    device: str = knob("auto", "auto, cpu, cuda:0 …", advanced=True, flag="-")

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
        names = "-".join(name_of(Path(item.name)) for item in self.stack)
        return home.models / slug(self.name or f"merged-{names}")

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Merge, with a certificate."""
        from studio.adapters.merge import merge

        stack = [(Path(item.name), item.weight) for item in self.stack]
        return merge(self.model, stack, self.folder(home), device=self.device)

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the folder and its certificate."""
        return {"out": self.out, "certificate": read_report(Path(self.out), CERTIFICATE)}


class MixRequest(Request):
    """Mix several LoRAs into one new adapter."""

    kind: ClassVar[str] = "mix"
    name: str = knob("", "Name of the new adapter.", title="Name", max_length=120)
    stack: Stack = knob((), "Adapters in stack order; repeat for several.", **STACK)
    model: ModelSource = knob(ModelSource(), "Folder, hub id, or starter.", **BASE)
    how: Literal["concatenate", "svd", "ties", "dare"] = knob(
        "concatenate", "Exact weighted sum, its best rank-r approximation, TIES, or DARE.",
        title="Way",
    )  # fmt: skip
    r: int = knob(16, "Rank of the result (not for concatenate).", title="Rank (r)", ge=1, le=1024)
    density: float = knob(0.5, "Share kept by TIES and DARE.", title="Density", gt=0, le=1)
    seed: int = knob(0, "For DARE.", ge=0, le=2**31 - 1, advanced=True)

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

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Load, mix, publish."""
        import time

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

    def target(self, home: Home) -> Path | None:
        """Return the folder of the new adapter."""
        return home.adapters / slug(self.name)

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the new adapter's folder and how exact it is."""
        folder = Path(result["adapter"])
        mixed = describe(folder).passport.get("mix") or {} if folder.is_dir() else {}
        return {"adapter": str(folder), **mixed}


class PictureRequest(Request):
    """Measure what an adapter changed: relative norm and effective rank per layer and module."""

    kind: ClassVar[str] = "picture"
    adapter: str = knob(
        "", "Name, run number or id of the adapter.", title="Adapter", positional=True,
        metavar="ADAPTER", of="adapter",
    )  # fmt: skip
    model: ModelSource = knob(
        ModelSource(path=""), "Base model; the one of the passport by default.", **BASE
    )
    name: str = knob("", "Name of the job.", title="Name", max_length=120, flag="-")

    def checked(self, home: Home) -> Self:
        """Return the request as the queue stores it; no model means the adapter's own base.

        Raises:
            StudioError: The adapter or its base is missing.
        """
        from studio.models.sources import facts

        folder = resolve(home, self.adapter)
        path = self.model.path or describe(folder).base
        if not path:
            raise AdapterError(f'"{self.adapter}" does not say what its base is: choose one.')
        model = self.model.model_copy(update={"path": path})
        facts(model)
        return self.model_copy(update={"adapter": str(folder), "model": model})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Measure and keep the picture beside the adapter."""
        import time

        from studio.adapters.picture import draw

        started = time.monotonic()
        yield Loading(text="Measuring what the adapter changed")
        draw(self.model, Path(self.adapter))
        yield _done(None, time.monotonic() - started)

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return what was measured."""
        from studio.adapters.picture import drawn

        return drawn(Path(self.adapter)) or {"changes": []}


class ImportRequest(Request):
    """Copy a PEFT or AdapterHub adapter into the library."""

    kind: ClassVar[str] = "import_adapter"
    name: str = knob("", "What to call the job.", title="Name", max_length=120)
    adapter: str = knob("", "What to call it; its folder's name when empty.", max_length=120)
    source: str = knob("", "A folder, or a hub id such as org/name.", max_length=4000)
    model: ModelSource | None = knob(None, "The base to check it against.")

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

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Read it as strictly as a load would, try it on its base, copy it."""
        import time

        from studio.adapters.imports import import_adapter

        started = time.monotonic()
        yield Loading(text="Reading the adapter")
        found = import_adapter(home, self.source, name=self.adapter, model=self.model)
        yield _done(str(found.path), time.monotonic() - started)

    def target(self, home: Home) -> Path | None:
        """Return the folder in the library, if the name was given."""
        return home.adapters / slug(self.adapter) if self.adapter else None

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the adapter that was imported."""
        found = describe(Path(result["adapter"]))
        return {"name": found.name, "path": str(found.path), "method": found.method}


class ExportRequest(Request):
    """Write an adapter to a new folder."""

    kind: ClassVar[str] = "export_adapter"
    name: str = knob("", "What to call the job.", title="Name", max_length=120)
    adapter: str = knob("", "Name or folder of the adapter.", title="Adapter")
    out: str = knob("", "The new folder; empty puts it into the home's exports.", max_length=4000)
    form: Literal["peft", "vllm", "adapterhub", "card"] = knob(
        "peft", "Whose files, or the model card alone.", title="Format"
    )
    model: str = knob("", "Its base, where the passport does not say.", advanced=True)

    def checked(self, home: Home) -> Self:
        """Return the request as the queue stores it.

        Raises:
            StudioError: The adapter is missing, or the folder exists.
        """
        from studio.adapters.export import refuse_form

        folder = resolve(home, self.adapter)
        refuse_form(describe(folder), self.form)
        usual = home.path / "exports" / slug(f"{describe(folder).name} {self.form}")
        out = Path(self.out).expanduser().absolute() if self.out.strip() else usual
        refuse_place(out)
        return self.model_copy(update={"adapter": str(folder), "out": str(out)})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Write it, and let it answer beside the original."""
        import time

        from studio.adapters.export import export_adapter

        started = time.monotonic()
        yield Loading(text="Writing the adapter")
        out = export_adapter(
            home, self.adapter, Path(self.out), form=self.form, model=self.model
        )  # fmt: skip
        yield _done(str(out), time.monotonic() - started)

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the folder and the comparison with the original."""
        return {"out": self.out, "check": read_report(Path(self.out), EXPORT_REPORT) or None}


def _done(result: str | None, seconds: float) -> Finished:
    return Finished(
        reason="completed", adapter=result, first_loss=None, last_loss=None, eval_loss=None,
        seconds=seconds,
    )  # fmt: skip


def _found(stack: Stack, home: Home) -> Stack:
    if not stack:
        raise InputError("Name at least one adapter (--adapter NAME[:WEIGHT]).")
    return tuple(item.model_copy(update={"name": str(resolve(home, item.name))}) for item in stack)
