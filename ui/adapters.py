"""The Adapters page's JSON routes: the library, passports, the trash, and requests to the queue.

Everything here reads small files or leaves a job; no tensor is opened. An adapter is named by its
id (`run-3`, `library-pirate`), which cannot be a path.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi import Path as InPath
from pydantic import BaseModel, Field

from jobs import bakeoff, supervisor
from jobs.actions.adapters import best_losses, card, trashed
from jobs.actions.registry import ask, submit
from jobs.admission import admit
from jobs.job import Job
from jobs.kinds import request_of
from jobs.store import JobStore
from studio.adapters import library as keeping
from studio.adapters.library import Adapter, adapters
from studio.adapters.picture import drawn
from studio.errors import QueueError, StudioError
from studio.home import Home
from studio.methods import methods
from ui import equivalents
from ui.live import Nothing, job_row
from ui.sources import model_choices

Id = Annotated[str, InPath(pattern=r"^(run|library)-[a-z0-9.-]{1,80}$")]


class Named(BaseModel):
    """A new name."""

    name: str = Field(max_length=1000)


class Tagged(BaseModel):
    """All the tags it should have."""

    tags: list[str] = Field(max_length=100)


class Undone(BaseModel):
    """What to restore; empty takes what was deleted last."""

    token: str = Field("", max_length=200)


class Contest(BaseModel):
    """A bake-off: one form of the Train page over several methods."""

    name: str = Field(max_length=120)
    methods: list[str] = Field(default_factory=list, max_length=40)
    assignments: list[str] = Field(default_factory=list, max_length=200)
    prompts: list[str] = Field(default_factory=list, max_length=20)


def adapter_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the routes on the library of `home`."""
    router = APIRouter(prefix="/api/adapters")

    @router.get("")
    def everything() -> dict[str, Any]:
        best = best_losses(store)
        return {
            "adapters": [card(adapter, best) for adapter in adapters(home)],
            "trash": [trashed(one) for one in keeping.trash(home)],
            "models": [{"label": label, "path": path} for label, path in model_choices(home)],
            "methods": [{"name": n, "title": m.title} for n, m in methods().items()],
        }

    @router.get("/{adapter_id}")
    def one(adapter_id: Id) -> dict[str, Any]:
        return passport(keeping.find(home, adapter_id), store)

    @router.post("/{adapter_id}/rename")
    def rename(adapter_id: Id, asked: Named) -> dict[str, Any]:
        return ask(
            home, "adapters.rename", {"adapter": adapter_id, "name": asked.name}, store=store
        ).value

    @router.post("/{adapter_id}/tag")
    def tag(adapter_id: Id, asked: Tagged) -> dict[str, Any]:
        return card(keeping.set_tags(home, adapter_id, asked.tags), best_losses(store))

    @router.post("/{adapter_id}/delete")
    def delete(adapter_id: Id, _: Nothing) -> dict[str, Any]:
        return ask(home, "adapters.delete", {"adapter": adapter_id}, store=store).value

    @router.post("/undo")
    def undo(asked: Undone) -> dict[str, Any]:
        return card(keeping.restore(home, asked.token), best_losses(store))

    @router.post("/ask/{kind}")
    def queue(
        kind: Literal[
            "merge", "mix", "picture", "import_adapter", "export_adapter", "gguf", "push"
        ],
        values: dict[str, Any],
    ) -> dict[str, Any]:
        request = request_of(kind)
        assert request is not None
        return job_row(submit(store, request.parse(values)))

    @router.get("/jobs/{job_id}")
    def outcome(job_id: int) -> dict[str, Any]:
        return _outcome(store.get(job_id))

    return router


def contest_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the routes on bake-offs."""
    router = APIRouter(prefix="/api/bakeoffs")

    @router.post("")
    def start(asked: Contest) -> dict[str, Any]:
        spec = equivalents.from_query(asked.assignments).with_values({"name": ""})
        prompts = [text for text in asked.prompts if text.strip()] or bakeoff.PROMPTS
        runs = bakeoff.submit(
            store, admit(spec, home), asked.methods, name=asked.name, prompts=prompts
        )
        supervisor.ensure_running(home)
        return {"name": asked.name.strip(), "runs": [job.id for job in runs]}

    @router.get("")
    def listed() -> list[dict[str, Any]]:
        names = {job.sweep: job for job in store.list() if job.kind == "bakeoff" and job.sweep}
        return [{"name": name, "state": job.state} for name, job in names.items()]

    @router.get("/table")
    def table(name: str) -> dict[str, Any]:
        return {"name": name, "rows": bakeoff.table(store, name)}

    return router


def passport(adapter: Adapter, store: JobStore) -> dict[str, Any]:
    """Return everything that is known of an adapter: card, passport, curve's run, picture."""
    found = card(adapter, best_losses(store))
    own = adapter.passport
    try:
        job = job_row(store.get(found["run"])) if found["run"] else None
    except QueueError:
        job = None  # the run's row is gone, its adapter is not
    return {
        **found,
        "spec": adapter.section("spec"),
        "fingerprint": adapter.base_fingerprint,
        "data_hash": adapter.section("data").get("hash", ""),
        "template": adapter.section("data").get("template", ""),
        "versions": adapter.section("versions"),
        "seed": own.get("seed"),
        "mix": adapter.section("mix"),
        "imported_from": own.get("imported_from", ""),
        "job": job,
        "picture": drawn(adapter.path),
    }


def _outcome(job: Job) -> dict[str, Any]:
    """Return what a finished job about adapters made, with its certificate or error."""
    row = job_row(job)
    folder = Path(str(row["adapter"] or ""))
    if job.kind == "merge" and job.state == "succeeded":
        from studio.adapters.merge import read_certificate

        row["certificate"] = read_certificate(folder)
    if job.kind in ("gguf", "export_adapter") and job.state == "succeeded":
        from studio.adapters.verify import EXPORT_REPORT, GGUF_REPORT, read_report

        name = GGUF_REPORT if job.kind == "gguf" else EXPORT_REPORT
        row["check"] = read_report(folder, name) or None
    if job.kind == "push":
        row["address"] = job.result.get("address")
    if job.kind == "mix" and job.state == "succeeded":
        from studio.adapters.library import describe

        try:
            row["mix"] = describe(folder).passport.get("mix")
        except StudioError:
            row["mix"] = None  # it was deleted or renamed since
    return row
