"""Serve suites and their tables, and votes and results as downloads."""

from typing import Any, Literal

from fastapi import APIRouter, Response

from jobs import suites
from jobs.conversations import Votes
from jobs.store import JobStore
from studio.evaluation.reports import MEDIA, Form, votes_as

FormName = Literal["csv", "jsonl", "html"]


def judging_routes(store: JobStore) -> APIRouter:
    """Return the routes on suites and exports."""
    router = APIRouter(prefix="/api/chat")

    @router.get("/suites")
    def listing() -> list[dict[str, Any]]:
        return suites.listing(store)

    @router.get("/suites/{number}")
    def table(number: int) -> dict[str, Any]:
        return suites.table(store, number)

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
