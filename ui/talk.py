"""The page's way to the chat host: what lanes can hold, and one stream of answers.

The host is its own process with its own token; the page never sees either. A closed tab ends the
stream, which tells the host to stop. It holds no model and keeps no conversation.
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

from jobs.chat_lanes import adapters_and_checkpoints
from jobs.recipes import Recipes
from jobs.store import JobStore
from studio import starter
from studio.errors import StudioError
from studio.home import Home
from studio.stack import MAX_LANES, Stack
from ui.sources import model_choices

logger = logging.getLogger(__name__)


class Lane(BaseModel):
    """One lane as the page sends it; the host judges what is in it."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=1000)
    stack: Stack = ()
    system: str = Field("", max_length=100_000)
    messages: list[dict[str, str]] = Field(max_length=1000)
    sampling: dict[str, float | int | None] = Field(default_factory=dict)


class Ask(BaseModel):
    """One prompt to several lanes."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(pattern=r"^[A-Za-z0-9-]{1,64}$")
    lanes: list[Lane] = Field(min_length=1, max_length=MAX_LANES)


class Nothing(BaseModel):
    """An empty body: it must be JSON, which a foreign page cannot send unasked."""

    model_config = ConfigDict(extra="forbid")


class Stop(BaseModel):
    """Which request to stop."""

    id: str = Field(pattern=r"^[A-Za-z0-9-]{1,64}$")


class Moved(BaseModel):
    """The weights of a lane that is answering, as its sliders stand now."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(pattern=r"^[A-Za-z0-9-]{1,64}$")
    lane: int = Field(ge=0, lt=MAX_LANES)
    stack: Stack


def chat_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the routes between Compare and the chat host."""
    router = APIRouter(prefix="/api/chat")

    @router.get("/choices")
    def choices() -> dict[str, Any]:
        return {
            "models": [{"label": label, "path": path} for label, path in model_choices(home)],
            "adapters": adapters_and_checkpoints(home),
            "prompts": starter.SAMPLE_PROMPTS,
            "recipes": Recipes(store.database).list(),
        }

    @router.post("/warm")
    def warm(_: Nothing) -> dict[str, bool]:
        """Start the host before the first prompt, unless a run is under way that it would slow."""
        from jobs import chat_client

        wanted = chat_client.find_host(home) is None and not store.active_claims()
        if wanted:
            threading.Thread(target=_warm, args=(home,), daemon=True).start()
        return {"warming": wanted}

    @router.post("/generate")
    def generate(ask: Ask) -> StreamingResponse:
        return StreamingResponse(
            _lines(home, ask.model_dump()),
            media_type="application/x-ndjson",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    @router.post("/stop")
    def stop(request: Stop) -> dict[str, Any]:
        from jobs import chat_client

        chat_client.stop(home, request.id)
        return {"stopped": request.id}

    @router.post("/weigh")
    def weigh(moved: Moved) -> dict[str, Any]:
        from jobs import chat_client

        stack = [part.model_dump() for part in moved.stack]
        return {"moved": chat_client.weigh(home, moved.id, moved.lane, stack)}

    return router


def _warm(home: Home) -> None:
    from jobs import chat_client

    try:
        chat_client.ensure_host(home)
    except StudioError as error:  # the first prompt tries again, and says it on the page
        logger.warning("the chat host did not start: %s", error)


async def _lines(home: Home, request: dict[str, Any]) -> AsyncIterator[bytes]:
    """Yield the host's events as JSON lines; a failure is the last line, never a broken stream."""
    from jobs import chat_client

    whole = False
    try:
        if await run_in_threadpool(chat_client.find_host, home) is None:
            yield _line({"type": "status", "lane": None, "text": "Starting the chat engine…"})
        # What the host sent together stays together: a hop of a thread for each would age it.
        async for lines in iterate_in_threadpool(chat_client.relay(home, request)):
            yield lines
        whole = True
    except StudioError as error:
        yield _line({"type": "error", "lane": None, **error.as_dict()})
        whole = True
    finally:
        if not whole:  # the tab is gone: what it asked for is not needed any more
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(chat_client.stop, home, request["id"])


def _line(event: dict[str, Any]) -> bytes:
    return (json.dumps(event, ensure_ascii=False) + "\n").encode()
