"""Serve the Compare page: choices of a lane, streams of answers, saved conversations, downloads.

The chat host is its own process with its own token; the page never sees either. A closed tab ends
the stream, which stops the host's work. What an answer holds beside its text is the page's own and
is stored as it came. Votes, suites and recipes are actions.
"""

import json
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
from fastapi import APIRouter
from fastapi.concurrency import iterate_in_threadpool, run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from jobs import chat_client, suite_results
from jobs.compare_tables import Conversations, Recipes, Votes
from jobs.job_queue import JobStore
from studio import starter
from studio.adapter_stack import MAX_LANES
from studio.chat.checkpoint_adapters import stackable
from studio.chat.lanes import ChatRequest, NewWeights, Sampling
from studio.errors import StudioError
from studio.evaluation.html_and_csv_exports import MEDIA, Form, votes_as
from studio.home import Home
from ui.file_transfer import attachment
from ui.language import current, say
from ui.train_page_facts import labelled_models

logger = logging.getLogger(__name__)
ID = Field(pattern=r"^[A-Za-z0-9-]{1,64}$")


class EmptyBody(BaseModel):
    """An empty body: it must be JSON, which a foreign page cannot send unasked."""

    model_config = ConfigDict(extra="forbid")


class StopRequest(EmptyBody):
    """The request to stop."""

    id: str = ID


class SavedConversation(EmptyBody):
    """A conversation without its turns, but their number; `known` if it was saved before."""

    id: str = ID
    lanes: list[dict[str, Any]] = Field(max_length=MAX_LANES)
    settings: dict[str, Any] = Field(default_factory=dict)
    parent: str | None = None
    known: bool = False
    turns: int | None = None
    title: str = Field("", max_length=200)


class Turn(EmptyBody):
    """One turn."""

    conversation: str = ID
    number: int = Field(ge=0, le=10_000)
    prompt: str = Field(max_length=2_000_000)
    answers: list[dict[str, Any]] = Field(max_length=MAX_LANES)


class Branch(EmptyBody):
    """Copy the first turns of a conversation."""

    id: str = ID
    new: str = ID
    turns: int = Field(ge=0, le=10_000)


def compare_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the routes of the Compare page."""
    router = APIRouter(prefix="/api/chat")
    _answers(router, home, store)
    _conversations(router, Conversations(store.database))

    @router.get("/choices")
    def choices() -> dict[str, Any]:
        return {
            "models": labelled_models(home),
            "adapters": stackable(home),
            "prompts": starter.SAMPLE_PROMPTS,
            "recipes": Recipes(store.database).list(),
            "sampling": Sampling.model_json_schema()["properties"],
            "max_lanes": MAX_LANES,
        }

    @router.get("/export/votes.{form}")
    def votes(form: Form) -> StreamingResponse:
        kept = Votes(store.database)
        text = votes_as(form, kept.list(), kept.board())
        return attachment([text], f"votes.{form}", f"{MEDIA[form]}; charset=utf-8")

    @router.get("/export/suite-{number}.{form}")
    def suite(number: int, form: Form) -> StreamingResponse:
        text = suite_results.exported(store, number, form)
        return attachment([text], f"suite-{number}.{form}", f"{MEDIA[form]}; charset=utf-8")

    return router


def _answers(router: APIRouter, home: Home, store: JobStore) -> None:
    @router.post("/warm")
    def warm(_: EmptyBody) -> dict[str, bool]:
        """Start the host before the first prompt, unless a run is under way that it would slow."""
        wanted = chat_client.find_host(home) is None and not store.active_claims()
        if wanted:
            threading.Thread(target=_warm, args=(home,), daemon=True).start()
        return {"warming": wanted}

    @router.post("/generate")
    def generate(request: ChatRequest) -> StreamingResponse:
        return StreamingResponse(
            _lines(home, request.model_dump(mode="json")),
            media_type="application/x-ndjson",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    @router.post("/stop")
    def stop(request: StopRequest) -> dict[str, Any]:
        return {"stopped": chat_client.stop(home, request.id)}

    @router.post("/weigh")
    def weigh(weights: NewWeights) -> dict[str, Any]:
        return {"moved": chat_client.weigh(home, weights.model_dump())}


def _conversations(router: APIRouter, kept: Conversations) -> None:
    @router.post("/conversations")
    def save(body: SavedConversation) -> dict[str, Any]:
        kept.save(body.id, **body.model_dump(exclude={"id"}))
        return {"id": body.id}

    @router.post("/turns")
    def save_turn(body: Turn) -> dict[str, Any]:
        kept.save_turn(**body.model_dump())
        return {"number": body.number}

    @router.post("/branch")
    def branch(body: Branch) -> dict[str, Any]:
        return kept.branch(body.id, body.new, turns=body.turns)


def _warm(home: Home) -> None:
    try:
        chat_client.ensure_host(home)
    except StudioError as error:  # the first prompt tries again, and says it on the page
        logger.warning("the chat host did not start: %s", error)


async def _lines(home: Home, request: dict[str, Any]) -> AsyncIterator[bytes]:
    """Yield the host's events as JSON lines; a failure is the last line, never a broken stream."""
    whole = False
    try:
        if await run_in_threadpool(chat_client.find_host, home) is None:
            yield _line({"type": "status", "lane": None, "text": "Starting the chat engine…"})
        # What the host sent together stays together: a hop of a thread for each would age it.
        async for lines in iterate_in_threadpool(chat_client.relay(home, request)):
            yield b"".join(map(_said, lines.splitlines(keepends=True)))
        whole = True
    except StudioError as error:
        yield _line({"type": "error", "lane": None, **error.as_dict()})
        whole = True
    finally:
        if not whole:  # the tab is gone: what it asked for is not needed any more
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(chat_client.stop, home, request["id"])


def _said(line: bytes) -> bytes:
    """Return an event with the text of a status or an error in the user's language."""
    if current.get() == "en" or (b"status" not in line[:24] and b"error" not in line[:24]):
        return line
    return _line(json.loads(line))


def _line(event: dict[str, Any]) -> bytes:
    shown = event | {"text": say(event["text"])}
    return (json.dumps(shown, ensure_ascii=False) + "\n").encode()
