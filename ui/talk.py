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

from jobs.recipes import Recipes
from jobs.store import JobStore
from studio import starter
from studio.chat.lanes import ChatRequest, NewWeights, Sampling
from studio.chat.run_checkpoints import stackable
from studio.errors import StudioError
from studio.home import Home
from ui.sources import model_choices

logger = logging.getLogger(__name__)


class Nothing(BaseModel):
    """An empty body: it must be JSON, which a foreign page cannot send unasked."""

    model_config = ConfigDict(extra="forbid")


class Stop(BaseModel):
    """Which request to stop."""

    id: str = Field(pattern=r"^[A-Za-z0-9-]{1,64}$")


def chat_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the routes between Compare and the chat host."""
    router = APIRouter(prefix="/api/chat")

    @router.get("/choices")
    def choices() -> dict[str, Any]:
        return {
            "models": [{"label": label, "path": path} for label, path in model_choices(home)],
            "adapters": stackable(home),
            "prompts": starter.SAMPLE_PROMPTS,
            "recipes": Recipes(store.database).list(),
            "sampling": Sampling.model_json_schema()["properties"],
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
    def generate(request: ChatRequest) -> StreamingResponse:
        return StreamingResponse(
            _lines(home, request.model_dump(mode="json")),
            media_type="application/x-ndjson",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    @router.post("/stop")
    def stop(request: Stop) -> dict[str, Any]:
        from jobs import chat_client

        chat_client.stop(home, request.id)
        return {"stopped": request.id}

    @router.post("/weigh")
    def weigh(weights: NewWeights) -> dict[str, Any]:
        from jobs import chat_client

        return {"moved": chat_client.weigh(home, weights.model_dump())}

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
