"""The JSON routes on suites and files: ask a suite, read its table, download votes and results."""

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from jobs import actions, suites
from jobs.conversations import Votes
from jobs.store import JobStore
from studio.evaluation.reports import MEDIA, Form, votes_as
from studio.stack import MAX_LANES

FormName = Literal["csv", "jsonl", "html"]


class Suite(BaseModel):
    """A suite as a person wrote it, over the lanes of the page."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field("", max_length=120)
    cases: str = Field(max_length=4_000_000)
    lanes: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_LANES)


class Checkpoint(BaseModel):
    """Which checkpoint: RUN@STEP."""

    model_config = ConfigDict(extra="forbid")
    checkpoint: str = Field(max_length=40)


def judging_routes(store: JobStore) -> APIRouter:
    """Return the routes on suites, promotions and exports."""
    router = APIRouter(prefix="/api/chat")

    @router.get("/suites")
    def listing() -> list[dict[str, Any]]:
        return suites.listing(store)

    @router.get("/suites/{number}")
    def table(number: int) -> dict[str, Any]:
        return suites.table(store, number)

    @router.post("/suites")
    def ask(body: Suite) -> dict[str, Any]:
        values = {"name": body.name, "lane": body.lanes, "cases": body.cases}
        job = actions.ask(store.home, "suite", values, store=store).jobs[0]
        return {"id": job.id, "name": job.name}

    @router.post("/promote")
    def promote(body: Checkpoint) -> dict[str, Any]:
        values = {"checkpoint": body.checkpoint}
        job = actions.ask(store.home, "promote", values, store=store).jobs[0]
        return {"id": job.id, "name": job.name}

    @router.get("/export/votes.{form}")
    def votes(form: FormName) -> Response:
        kept = Votes(store.database)
        return _file("votes", form, votes_as(form, kept.list(), kept.board()))

    @router.get("/export/suite-{number}.{form}")
    def suite(number: int, form: FormName) -> Response:
        return _file(f"suite-{number}", form, suites.exported(store, number, form))

    return router


def _file(name: str, form: Form, text: str) -> Response:
    # A download, never a page of ours: what is in it was written by people and models.
    headers = {
        "content-disposition": f'attachment; filename="{name}.{form}"',
        "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
        "cache-control": "no-store",
    }
    return Response(text, media_type=f"{MEDIA[form]}; charset=utf-8", headers=headers)
