"""The page's JSON routes that plan: order, schedule, sweeps, longer runs, notes, the whole queue.

Each is one function of `jobs` and its command on the command line; a mistake is its sentence.
"""

import time
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from jobs import plans, secrets, settings, supervisor, webhook
from jobs.admission import admit
from jobs.jobs_table import summary
from jobs.plans import extend, parse_moment
from jobs.store import JobStore
from jobs.supervisor import shortage
from studio.home import Home
from studio.spec import RunSpec
from ui import equivalents
from ui.cli.queue_commands import parse_values

MOST_TEXT = 10_000


class Place(BaseModel):
    """Where a waiting job goes: before another one, some places further, or to the end."""

    before: int | None = None
    by: int = 0


class When(BaseModel):
    """When a waiting job may start."""

    at: str = Field("", max_length=100)
    when: Literal["", "idle", "night"] = ""
    needs: list[int] = []
    retries: int | None = None


class Longer(BaseModel):
    """How much further a finished run goes."""

    epochs: float = 0
    steps: int = 0
    name: str = Field("", max_length=120)


class Words(BaseModel):
    """A job's note and tags."""

    notes: str = Field("", max_length=MOST_TEXT)
    tags: list[str] = []


class Sweep(BaseModel):
    """A sweep over the spec of a run, or over the form as it stands in its address (`set`)."""

    job: int | None = None
    set: list[str] = []
    name: str = Field(max_length=100)
    over: list[str]
    count: int = Field(0, ge=0)
    on_error: Literal["continue", "stop"] = "continue"


class Group(BaseModel):
    """What happens to all runs of a sweep."""

    sweep: str
    action: Literal["hold", "release", "cancel"]


class Whole(BaseModel):
    """What a person decides about the whole queue; absent is left alone."""

    held: bool | None = None
    on_error: Literal["continue", "stop"] | None = None
    webhook: str | None = Field(None, max_length=2000)


def queue_state(home: Home, store: JobStore) -> dict[str, Any]:
    """Return what holds the whole queue, and what errors do to it."""
    return {
        "held": settings.read(store, "held"),
        "on_error": settings.read(store, "on_error"),
        "short": shortage(home.path),
    }


def plan_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the routes that plan."""
    router = APIRouter()

    @router.post("/jobs/{job_id}/move")
    def move(job_id: int, place: Place) -> dict[str, Any]:
        if place.by:
            return summary(plans.shift(store, job_id, place.by))
        return summary(store.move(job_id, before=place.before))

    @router.post("/jobs/{job_id}/schedule")
    def schedule(job_id: int, when: When) -> dict[str, Any]:
        moment = parse_moment(when.at, now=time.time()) if when.at.strip() else None
        start = plans.Start(moment, when.when)
        return summary(plans.schedule(store, job_id, start, needs=when.needs, retries=when.retries))

    @router.post("/jobs/{job_id}/extend")
    def longer(job_id: int, more: Longer) -> dict[str, Any]:
        job = extend(store, job_id, epochs=more.epochs, steps=more.steps, name=more.name)
        supervisor.ensure_running(home)
        return summary(job)

    @router.post("/jobs/{job_id}/note")
    def note(job_id: int, words: Words) -> dict[str, Any]:
        return summary(plans.annotate(store, job_id, notes=words.notes, tags=words.tags))

    @router.post("/sweeps")
    def sweep(wanted: Sweep) -> dict[str, Any]:
        if wanted.job is None:
            spec = equivalents.from_query(wanted.set).with_values({"name": ""})
        else:
            spec = RunSpec.parse({**store.get(wanted.job).spec, "name": ""})
        jobs = plans.submit_sweep(
            store, admit(spec, home), dict(map(parse_values, wanted.over)), name=wanted.name,
            mode="random" if wanted.count else "grid", count=wanted.count,
            on_error=wanted.on_error,
        )  # fmt: skip
        supervisor.ensure_running(home)
        return {"sweep": wanted.name, "jobs": [job.id for job in jobs]}

    @router.post("/sweep-runs")
    def group(wanted: Group) -> dict[str, Any]:
        return {"changed": plans.for_sweep(store, wanted.sweep, wanted.action)}

    @router.get("/queue")
    def state() -> dict[str, Any]:
        return queue_state(home, store) | {"webhook": webhook.shown(home)}

    @router.post("/queue")
    def change(whole: Whole) -> dict[str, Any]:
        if whole.held is not None:
            (settings.hold_queue if whole.held else settings.release_queue)(store)
        if whole.on_error is not None:
            settings.on_error(store, whole.on_error)
        if whole.webhook:
            webhook.choose(store, whole.webhook)
        elif whole.webhook is not None:
            secrets.forget(home, "webhook")
        supervisor.ensure_running(home)
        return state()

    return router
