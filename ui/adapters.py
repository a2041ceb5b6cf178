"""Serve the Adapters page: the library, passports, the trash, bake-offs.

Everything here reads small files; no tensor is opened. An adapter is named by its id (`run-3`,
`library-pirate`), which cannot be a path. What changes or queues something is an action.
"""

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Path as InPath
from pydantic import BaseModel, Field

from jobs import bakeoff
from jobs.actions import ask
from jobs.actions.adapters import best_losses, card, trashed
from jobs.store import JobStore
from studio.adapters import library as keeping
from studio.adapters.library import Adapter, adapters
from studio.adapters.picture import drawn
from studio.errors import QueueError
from studio.home import Home
from studio.methods import methods
from ui.live import job_row
from ui.sources import model_choices

Id = Annotated[str, InPath(pattern=r"^(run|library)-[a-z0-9.-]{1,80}$")]


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

    return router


def contest_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the routes on bake-offs."""
    router = APIRouter(prefix="/api/bakeoffs")

    @router.post("")
    def start(asked: Contest) -> dict[str, Any]:
        values = {
            "name": asked.name, "methods": ",".join(asked.methods), "set": asked.assignments,
            "prompt": asked.prompts,
        }  # fmt: skip
        made = ask(home, "bakeoff", values, store=store)
        return {"name": made.value["name"], "runs": [job.id for job in made.jobs]}

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
