"""The Data page's JSON routes: preview a source, page through a dataset, X-ray and download it.

Imports, steps and deletion are actions. A route reads the first rows, one page, or cached tokens;
tokenising much text is left to a job. No table is ever read whole, and torch is not imported.
"""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from jobs.actions.adapters import trashed
from jobs.actions.registry import shown_field, submit
from jobs.job_inputs import runs_on
from jobs.job_queue import JobStore
from studio import starter, trash
from studio.data import dataset_requests, mapping_preview, snapshots
from studio.data.column_mapping import PARTS, Mapping
from studio.data.find_dataset import origin_of
from studio.data.prepare_run_data import lens
from studio.data.row_converters import record_converter
from studio.data.snapshots import Meta, Snapshot, rows_as
from studio.data.xray import Pick, is_measured, measured, xray
from studio.errors import DataError
from studio.fields import parameter, validated
from studio.home import Home
from studio.spec import DataSource, ModelSource
from ui import train_page_facts
from ui.file_transfer import attachment, receive

AT_ONCE_BYTES = 16 * 1024**2  # more text than this is tokenised by a job
Name = Annotated[str, Query(max_length=120)]


class SourcePreview(BaseModel):
    """A source to preview; a mapping or a format when the user chose one.

    Of the hub, only the first rows are streamed.
    """

    path: str
    subset: str = ""
    split: str = ""
    format: str = ""
    mapping: dict[str, Any] | None = None


def data_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the Data page's routes."""
    router = APIRouter(prefix="/api/data")

    @router.get("")
    def everything() -> dict[str, Any]:
        return {
            "datasets": [short(found) for found in snapshots.snapshots(home)],
            "models": train_page_facts.model_choices(home),
            "trash": [trashed(one) for one in trash.listed(home, home.datasets)],
            "demos": list(starter.datasets()),
            "settings": [
                shown_field(parameter(name, DataSource.model_fields[name]))
                for name in ("max_length", "train_on", "chat_template", "thoughts")
            ],
            "formats": {name: {"needed": n, "optional": o} for name, (n, o) in PARTS.items()},
        }

    @router.post("/upload")
    async def upload(request: Request, name: Name) -> dict[str, str]:
        return {"path": await receive(store, request.stream(), name)}

    @router.post("/look")
    def look(wanted: SourcePreview) -> dict[str, Any]:
        return preview_source(home, wanted)

    @router.get("/{name}")
    def one(name: str) -> dict[str, Any]:
        found = snapshots.open_snapshot(home, name)
        children = [
            meta.meta.name
            for meta in snapshots.snapshots(home)
            if meta.meta.parent and meta.meta.parent.hash == found.meta.hash
        ]
        return {
            **short(found), "mapping": found.meta.mapping.model_dump(mode="json"),
            "findings": found.meta.findings.model_dump(mode="json", exclude={"mapping"}),
            "children": children,
            "runs": [{"id": job.id, "name": job.name} for job in runs_on(store, name)],
            "columns": mapping_preview.columns(DataSource(path=name), home),
        }  # fmt: skip

    _reading(router, home, store)

    return router


def _reading(router: APIRouter, home: Home, store: JobStore) -> None:
    @router.get("/{name}/rows")
    def rows(
        name: str, offset: int = Query(0, ge=0), limit: int = Query(20, ge=1, le=100)
    ) -> dict[str, Any]:
        return _page(snapshots.open_snapshot(home, name), offset, limit)

    @router.get("/{name}/tokens")
    def tokens(
        name: str, model: Name = "starter", max_length: int = 1024, train_on: str = "assistant",
        chat_template: str = "auto", thoughts: str = "template",
    ) -> dict[str, Any]:  # fmt: skip
        found, data = _source(home, name, max_length, train_on, chat_template, thoughts)
        waiting = _must_wait(home, store, found, ModelSource(path=model), data)
        if waiting:
            return waiting
        return measured(ModelSource(path=model), data, home).model_dump(mode="json")

    @router.get("/{name}/xray")
    def rays(
        name: str, model: Name = "starter", max_length: int = 1024, train_on: str = "assistant",
        chat_template: str = "auto", thoughts: str = "template", pick: Pick = "first",
        row: int | None = None, count: int = Query(1, ge=1, le=20), seed: int = 0,
    ) -> dict[str, Any]:  # fmt: skip
        found, data = _source(home, name, max_length, train_on, chat_template, thoughts)
        source = ModelSource(path=model)
        if found.meta.plain or (row is None and pick != "first"):
            waiting = _must_wait(home, store, found, source, data)
            if waiting:
                return waiting
        seen = lens(source, home)
        shown = xray(
            data, seen.backend, context_length=seen.context_length,
            rows=None if row is None else [row], pick=pick, count=count, seed=seed, home=home,
        )  # fmt: skip
        return {"rows": [one.model_dump(mode="json") for one in shown]}

    @router.get("/{name}/problems.jsonl")
    def problems(name: str) -> StreamingResponse:
        found = snapshots.open_snapshot(home, name)
        lines = (json.dumps(p, ensure_ascii=False).encode() + b"\n" for p in found.problems())
        return attachment(lines, f"{name}-problems.jsonl")

    @router.get("/{name}/export")
    def export(
        name: str, format: Literal["jsonl", "csv"] = "jsonl",
        part: Literal["", "train", "validation"] = "",
    ) -> StreamingResponse:  # fmt: skip
        found = snapshots.open_snapshot(home, name)
        suffix = f"-{part}" if part else ""
        return attachment(rows_as(found, format, part=part), f"{name}{suffix}.{format}")


def preview_source(home: Home, wanted: SourcePreview) -> dict[str, Any]:
    """Return the Data page's preview: columns, a mapping with its reason, first rows rendered.

    Raises:
        DataError: Nothing of it can be read.
    """
    path = wanted.path.strip()
    hub: dict[str, Any] | None = None
    data = DataSource(path=path)
    if origin_of(path, home).kind == "hub":
        hub, part = _hub_part(wanted)
        data = DataSource(path=path, **part)
    columns = mapping_preview.columns(data, home)
    corrected = validated(Mapping, wanted.mapping) if wanted.mapping is not None else None
    problem, sure = "", True
    try:
        if corrected is not None:
            mapping, reason = corrected.checked(), "by hand"
        else:
            asked = data.model_copy(update={"format": wanted.format or "auto"})
            mapping, reason, sure = mapping_preview.guess(asked, home)
        rows = mapping_preview.preview(data, mapping, count=5, home=home)
    except DataError as error:
        if not columns:
            raise
        # The user can still say what the columns are, looking at the rows as they stand.
        mapping = corrected or mapping_preview.blank(wanted.format)
        problem, reason, sure = getattr(error, "what", error.text), "", False
        rows = mapping_preview.preview(data, None, count=5, home=home)
    same = [
        s.meta.name
        for s in snapshots.snapshots(home)
        if not s.meta.parent and s.meta.original.name == path.rstrip("/").split("/")[-1]
    ]
    return {
        "hub": hub, "problem": problem, "reason": reason, "sure": sure, "columns": columns,
        "mapping": mapping.model_dump(mode="json"), "same_name": same[:1], "rows": rows,
    }  # fmt: skip


def _hub_part(wanted: SourcePreview) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what the hub says of a dataset, and the part to look at: its training split if none.

    A page that has chosen a part knows what the hub says already.
    """
    from studio.data.hub_datasets import look_up

    if wanted.split:
        return {}, {"subset": wanted.subset, "split": wanted.split}
    facts = look_up(wanted.path.strip())
    usual = {"subset": "", "split": "train"}
    found = sorted(facts["parts"], key=lambda part: part["split"] != "train")
    part = {key: found[0][key] for key in usual} if found else usual
    return facts | {"part": part}, part


def short(snapshot: Snapshot) -> dict[str, Any]:
    """Return a dataset as the Data page lists it."""
    meta: Meta = snapshot.meta
    size = sum(f.stat().st_size for f in snapshot.folder.iterdir() if f.is_file())
    return {
        "name": meta.name, "rows": meta.rows, "validation_rows": meta.validation_rows,
        "format": meta.mapping.format, "hash": meta.hash, "created": meta.created,
        "parent": meta.parent.name if meta.parent else "", "step": meta.step, "bytes": size,
        "original": meta.original.model_dump(mode="json"), "reason": meta.reason,
        "plain": meta.plain, "dropped": meta.findings.rows.dropped,
    }  # fmt: skip


def _source(
    home: Home, name: str, max_length: int, train_on: str, chat_template: str, thoughts: str
) -> tuple[Snapshot, DataSource]:
    values = {
        "path": name, "max_length": max_length, "train_on": train_on, "validation_fraction": 0.05,
        "chat_template": chat_template, "thoughts": thoughts, "judged": "good",
    }  # fmt: skip
    return snapshots.open_snapshot(home, name), validated(DataSource, values)


def _must_wait(
    home: Home, store: JobStore, found: Snapshot, model: ModelSource, data: DataSource
) -> dict[str, Any] | None:
    """Leave much text to a job; None when the answer is small or there already."""
    small = found.meta.findings.characters <= AT_ONCE_BYTES
    if small or is_measured(model, data, home):
        return None
    request = dataset_requests.MeasureRequest(model=model, data=data)
    values = request.model_dump(mode="json")
    for job in store.list(["queued", "starting", "running"]):
        if job.kind == "measure" and job.spec | {"name": ""} == values:
            return {"id": job.id}
    return {"id": submit(store, request).id}


def _page(found: Snapshot, offset: int, limit: int) -> dict[str, Any]:
    convert = record_converter(found.meta.mapping)
    shown = []
    for row in found.page(offset, limit):
        entry = mapping_preview.as_read(convert(row.row))
        if "problem" in entry:
            entry["row"] = row.values
        entry |= {"number": row.number, "line": row.line, "part": row.part}
        shown.append(mapping_preview.shortened(entry))
    return {"rows": shown, "total": found.meta.rows, "offset": offset}
