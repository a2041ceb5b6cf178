"""Requests to import, mix, curate or measure a dataset: checked at once, performed by a job.

Reading many gigabytes takes minutes, so nothing of it happens inside a page's request. Each request
tells how far it is, and ends with the name of the dataset that it made or found. Needs no torch.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from studio.data.column_mapping import Mapping
from studio.fields import knob
from studio.home import Home
from studio.job_request import Request
from studio.models.download_model import followed, in_thread
from studio.spec import DataSource, ModelSource
from studio.training.training_events import Event, Finished, Loading, Working

Told = Callable[[float, str], None]
PARTS = 100


class DatasetRequest(Request):
    """A request on datasets whose work runs in a thread and reports its progress as events."""

    begins: ClassVar[str]

    def make(self, home: Home, told: Told) -> dict[str, Any]:
        """Do the work, and return the facts of the finished job."""
        raise NotImplementedError

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Run `make` beside the generator, so that what it tells comes out as events."""
        said: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()
        yield Loading(text=self.begins)
        work = in_thread(lambda: self.make(home, lambda share, text: said.put((share, text))))
        work.add_done_callback(lambda _: said.put(None))
        while (news := said.get()) is not None:
            yield Working(step=int(news[0] * PARTS), total_steps=PARTS, text=news[1])
        yield Finished(step=PARTS, facts=work.result())


class SnapshotRequest(DatasetRequest):
    """A request that makes a dataset, or finds that it is there `already`."""

    dataset: str = knob("", "Name of the new dataset; its source's when empty.", max_length=120)

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the dataset with its report; `asked` is the name that was asked for."""
        from studio.data.snapshots import open_snapshot

        meta = open_snapshot(home, str(result["dataset"])).meta
        already = bool(result.get("already"))
        report = meta.findings.model_dump(mode="json")
        return described(meta) | {"already": already, "report": report, "asked": self.dataset}


class ImportRequest(SnapshotRequest):
    """Keep a source as a snapshot."""

    kind: ClassVar[str] = "import"
    begins: ClassVar[str] = "Looking at the file"
    retries: ClassVar[int] = 4  # of a download
    data: DataSource = DataSource()
    mapping: Mapping | None = None
    uploaded: bool = knob(False, "Delete the file after the import.")
    num_rows: int = knob(0, "Take only this many rows.", ge=0)
    pick: Literal["first", "random"] = "first"
    seed: int = 0

    def checked(self, home: Home) -> Self:
        """Refuse an import whose first rows show that it cannot be read."""
        from studio.data import mapping_preview
        from studio.data.find_dataset import origin_of

        if self.mapping is None and origin_of(self.data.path, home).kind != "hub":
            mapping_preview.guess(self.data, home)
        return self

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Download what is not here, then make the snapshot."""
        from studio.data.find_dataset import origin_of

        streamed = self.num_rows and self.pick == "first"
        if not streamed and origin_of(self.data.path, home).kind == "hub":
            from studio.data.hub_datasets import to_fetch

            yield Loading(text=f"Asking the hub for {self.data.path}")
            if found := to_fetch(self.data):
                yield from followed(found, home)
        yield from super().perform(home)

    def make(self, home: Home, told: Told) -> dict[str, Any]:
        """Read everything and publish it."""
        from studio.data.import_dataset import import_dataset

        made = import_dataset(
            home, self.data, name=self.dataset, mapping=self.mapping, num_rows=self.num_rows,
            pick=self.pick, seed=self.seed, progress=told,
        )  # fmt: skip
        if self.uploaded:
            forget_upload(home, Path(self.data.path))
        return {"already": made.already, **_facts(made.snapshot.meta)}


class MixtureRequest(SnapshotRequest):
    """Mix several datasets into a new snapshot."""

    kind: ClassVar[str] = "mix_data"
    begins: ClassVar[str] = "Reading the sources"
    sources: tuple[str, ...] = ()
    num_rows: int = knob(0, "Rows in all.", ge=0)
    seed: int = 0

    def checked(self, home: Home) -> Self:
        """Refuse sources that do not exist and weights that are wrong."""
        from studio.data.find_dataset import missing, origin_of
        from studio.data.import_dataset import read_sources

        for one in read_sources(self.sources):
            if origin_of(one.name, home).kind == "missing":
                raise missing(one.name, home)
        return self

    def make(self, home: Home, told: Told) -> dict[str, Any]:
        """Read the sources, draw rows, publish the mix."""
        from studio.data.import_dataset import mix, read_sources

        made = mix(
            home, read_sources(self.sources), name=self.dataset, num_rows=self.num_rows,
            seed=self.seed,
        )  # fmt: skip
        return _facts(made.meta)


class CurateRequest(SnapshotRequest):
    """Make a new snapshot by one step."""

    kind: ClassVar[str] = "curate"
    begins: ClassVar[str] = "Reading the rows"
    data: DataSource = DataSource()
    step: dict[str, Any] = knob({}, "Fields of one step of `studio.data.curate_dataset`.")

    def make(self, home: Home, told: Told) -> dict[str, Any]:
        """Read the parent, write the child."""
        from studio.data.curate_dataset import apply_step, parse_step

        step, name = parse_step(self.step), self.data.path
        made = apply_step(home, name, step, new_name=self.dataset, progress=told)
        return {"already": made.meta.name == name, **_facts(made.meta)}

    def checked(self, home: Home) -> Self:
        """Return it with every field of its step; the dataset must be imported."""
        from studio.data.curate_dataset import parse_step
        from studio.data.snapshots import open_snapshot

        open_snapshot(home, self.data.path)
        step = parse_step(self.step).model_dump(mode="json")
        return self.model_copy(update={"step": step})


class MeasureRequest(DatasetRequest):
    """Tokenise a dataset for a model, so that its report and every later run find the tokens."""

    kind: ClassVar[str] = "measure"
    begins: ClassVar[str] = "Tokenising"
    model: ModelSource = ModelSource()
    data: DataSource = DataSource()

    def make(self, home: Home, told: Told) -> dict[str, Any]:
        """Fill the token cache."""
        from studio.data.xray import measured

        report = measured(self.model, self.data, home).report
        return {"dataset": self.data.path, "rows": report.rows.model_dump()}


def described(meta: Any) -> dict[str, Any]:
    """Return a dataset's description without its report."""
    shown = meta.model_dump(mode="json", exclude={"plain", "findings"})
    return shown | {"format": meta.mapping.format}


def uploads(home: Home) -> Path:
    """Return the folder where an uploaded file waits for its import."""
    return home.state / "incoming"


def forget_upload(home: Home, file: Path) -> None:
    """Delete an uploaded file (in a folder of its own); never one that lies elsewhere."""
    if file.parent.parent == uploads(home):
        file.unlink(missing_ok=True)
        file.parent.rmdir()


def _facts(meta: Any) -> dict[str, Any]:
    return {"dataset": meta.name, "hash": meta.hash, "rows": meta.findings.rows.model_dump()}
