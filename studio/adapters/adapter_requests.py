"""Requests about adapters: merge, mix, measure changes, import, export. `perform` loads torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from studio import atomic
from studio.adapter_stack import Stack, StackItem
from studio.adapters.adapter_lineage import base_of, of_other_bases, resolve_stack
from studio.adapters.export import export_adapter, refuse_form
from studio.adapters.import_adapter import import_adapter, locate
from studio.adapters.library import describe, is_taken, name_of, refuse_place, resolve
from studio.adapters.merge import merge, read_certificate
from studio.adapters.mix_adapters import mix, publish_mix
from studio.adapters.verify_logits import EXPORT_REPORT
from studio.adapters.weight_changes import draw, drawn
from studio.errors import AdapterError, InputError
from studio.fields import knob
from studio.home import Home, slug
from studio.job_request import Request
from studio.models.find_model import facts
from studio.spec import ModelSource
from studio.training.training_events import Event, Finished, Loading

OWN_BASE = "Folder, hub id, or starter; that of the first adapter by default."
BASE: dict[str, Any] = {"title": "Base model", "of": "model"}
WAYS = {
    "concatenate": "Exact weighted sum (the ranks add up)",
    "svd": "Weighted sum, truncated to a rank (SVD)",
    "ties": "TIES: keep the largest, agree on signs",
    "dare": "DARE: drop at random, rescale",
}
STACK: dict[str, Any] = {"title": "Adapters", "flag": "--adapter", "metavar": "NAME[:WEIGHT]"}


class MergeRequest(Request):
    """Fold adapters into a new model, with a certificate."""

    kind: ClassVar[str] = "merge"
    stack: Stack = knob((), "Adapters in stack order; repeat for several.", **STACK)
    model: ModelSource = knob(
        ModelSource(path=""), OWN_BASE, inner=("path", "quantization", "dtype"), **BASE
    )
    out: str = knob("", "New folder; in the home's models by default.", advanced=True)
    name: str = knob("", "Name of the merged model.", title="Name", max_length=120)
    device: str = knob("auto", "auto, cpu, cuda:0 …", advanced=True, flag="-")

    def checked(self, home: Home) -> Self:
        """Return it with adapters found and the new folder absolute."""
        stack = _adapters(home, self.stack)
        facts(model := base_of(self.model, stack))
        out = self.folder(home)
        refuse_place(out)
        return self.model_copy(update={"stack": stack, "model": model, "out": str(out)})

    def folder(self, home: Home) -> Path:
        """Return the folder of the merged model."""
        if self.out:
            return Path(self.out).expanduser().absolute()
        names = "-".join(name_of(Path(item.name)) for item in self.stack)
        return home.models / slug(self.name or f"merged-{names}")

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Merge, with a certificate."""
        stack = [(Path(item.name), item.weight) for item in self.stack]
        return merge(self.model, stack, self.folder(home), device=self.device)

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the folder and its certificate."""
        return {"out": self.out, "certificate": read_certificate(Path(self.out))}


class MixRequest(Request):
    """Mix several LoRAs into one new adapter."""

    kind: ClassVar[str] = "mix"
    name: str = knob("", "Name of the new adapter.", title="Name", max_length=120)
    stack: Stack = knob((), "Adapters in stack order; repeat for several.", **STACK)
    model: ModelSource = knob(ModelSource(path=""), OWN_BASE, **BASE)
    how: Literal["concatenate", "svd", "ties", "dare"] = knob(
        "concatenate", "Exact weighted sum, its best rank-r approximation, TIES, or DARE.",
        title="Way", labels=WAYS,
    )  # fmt: skip
    r: int = knob(
        16, "Rank of the result (not for concatenate).", title="Rank (r)", ge=1, le=1024,
        when={"how": ("svd", "ties", "dare")},
    )  # fmt: skip
    density: float = knob(
        0.5, "Share kept by TIES and DARE.", title="Density", gt=0, le=1,
        when={"how": ("ties", "dare")},
    )  # fmt: skip
    seed: int = knob(0, "For DARE.", ge=0, le=2**31 - 1, advanced=True, when={"how": ("dare",)})

    def checked(self, home: Home) -> Self:
        """Return it with adapters found; the name must be free."""
        stack = _adapters(home, self.stack)
        facts(model := base_of(self.model, stack))
        if not self.name.strip():
            raise InputError("Give the new adapter a name.")
        if is_taken(home, self.name.strip()) or (home.adapters / slug(self.name)).exists():
            raise AdapterError(f'There is already an adapter "{self.name}"; choose another name.')
        return self.model_copy(update={"stack": stack, "model": model})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Load, mix, publish."""
        from studio.backbone import Backbone
        from studio.models.loading import load

        yield Loading(text="Loading the base")
        loaded = load(self.model, "cpu")
        backbone = Backbone(loaded.model)
        parents = [(describe(Path(item.name)), item.weight) for item in self.stack]
        stack = []
        for place, (adapter, weight) in enumerate(parents, 1):
            taken = adapter.name in backbone.adapters
            name = f"{adapter.name} ({place})" if taken else adapter.name
            backbone.load(name, adapter.path)
            stack.append((name, weight))
        yield Loading(text="Mixing")
        out = ""  # a name that no adapter has
        mixed = mix(
            backbone, stack, out, how=self.how, r=self.r, density=self.density, seed=self.seed
        )
        folder = home.adapters / slug(self.name)
        base = {"path": self.model.path, "revision": self.model.revision,
                "fingerprint": loaded.facts.fingerprint}  # fmt: skip
        publish_mix(
            backbone, out, folder, base=base, parents=parents, mixed=mixed, how=self.how,
            title=self.name.strip(),
            notes=of_other_bases([one.path for one, _ in parents], self.model.path, loaded.facts),
        )  # fmt: skip
        yield Finished(adapter=str(folder))

    def target(self, home: Home) -> Path | None:
        """Return the folder of the new adapter."""
        return home.adapters / slug(self.name)

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the new adapter's folder and how exact it is."""
        folder = result.get("adapter")  # None once it was deleted
        mixed: dict[str, Any] = {}
        if folder and Path(folder).is_dir():
            mixed = describe(Path(folder)).passport.get("mix") or {}
        return {"adapter": folder, **mixed}


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
        """Return it with its adapter found; no model means the adapter's own base."""
        folder = resolve(home, self.adapter)
        facts(model := base_of(self.model, (StackItem(name=str(folder)),)))
        return self.model_copy(update={"adapter": str(folder), "model": model})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Measure, and store the picture beside the adapter."""
        yield Loading(text="Measuring what the adapter changed")
        draw(self.model, Path(self.adapter))
        yield Finished()

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return what was measured."""
        return drawn(Path(self.adapter)) or {"changes": []}


class ImportAdapterRequest(Request):
    """Copy a PEFT or AdapterHub adapter into the library."""

    kind: ClassVar[str] = "import_adapter"
    adapter: str = knob(
        "", "Its name in the library; its folder's name when empty.", max_length=120
    )
    source: str = knob("", "Folder, or a hub id such as org/name.", max_length=4000)
    model: ModelSource | None = knob(None, "The base to check it against.")

    def checked(self, home: Home) -> Self:
        """Return it with its folder found, which the job reads."""
        source, _ = locate(home, self.source.strip(), self.adapter)
        if self.model is not None:
            facts(self.model)
        return self.model_copy(update={"source": source})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Check it, try it on its base, copy it."""
        yield Loading(text="Reading the adapter")
        found = import_adapter(home, self.source, name=self.adapter, model=self.model)
        yield Finished(adapter=str(found.path))

    def target(self, home: Home) -> Path | None:
        """Return the folder in the library, if the name was given."""
        return home.adapters / slug(self.adapter) if self.adapter else None

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the adapter that was imported."""
        if not result.get("adapter"):
            return {"name": self.adapter, "path": None, "method": ""}  # it was deleted
        found = describe(Path(result["adapter"]))
        return {"name": found.name, "path": str(found.path), "method": found.method}


class ExportRequest(Request):
    """Write an adapter to a new folder."""

    kind: ClassVar[str] = "export_adapter"
    adapter: str = knob("", "Name or folder of the adapter.", title="Adapter")
    out: str = knob("", "New folder; in the home's exports by default.", max_length=4000)
    form: Literal["peft", "vllm", "adapterhub", "gguf-adapter", "card"] = knob(
        "peft", "Format of the files, or the model card alone.", title="Format"
    )
    model: str = knob("", "Its base, if the passport does not name it.", advanced=True)

    def checked(self, home: Home) -> Self:
        """Return it with its adapter found and the new folder absolute."""
        folder = resolve(home, self.adapter)
        refuse_form(describe(folder), self.form)
        usual = home.path / "exports" / slug(f"{describe(folder).name} {self.form}")
        out = Path(self.out).expanduser().absolute() if self.out.strip() else usual
        refuse_place(out)
        return self.model_copy(update={"adapter": str(folder), "out": str(out)})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Write it, and compare it with the original."""
        yield Loading(text="Writing the adapter")
        out = export_adapter(home, self.adapter, Path(self.out), form=self.form, model=self.model)
        yield Finished(adapter=str(out))

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the folder and the comparison with the original."""
        check = atomic.read_object(Path(self.out) / EXPORT_REPORT) or None
        return {"out": self.out, "check": check}


def _adapters(home: Home, stack: Stack) -> Stack:
    if not stack:
        raise InputError("Name at least one adapter (--adapter NAME[:WEIGHT]).")
    return resolve_stack(home, stack)
