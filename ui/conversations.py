"""Serve the conversations of the Compare page.

Each body is small and typed; what an answer holds beside its text is the page's own and stays as it
came. Nothing here talks to the chat host.
"""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from jobs.conversations import Conversations
from jobs.store import JobStore
from studio.stack import MAX_LANES

ID = Field(pattern=r"^[A-Za-z0-9-]{1,64}$")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Kept(_Body):
    """A conversation without its turns."""

    id: str = ID
    lanes: list[dict[str, Any]] = Field(max_length=MAX_LANES)
    settings: dict[str, Any] = Field(default_factory=dict)
    parent: str | None = None
    title: str = Field("", max_length=200)


class Turn(_Body):
    """One turn; `last` drops what came after it."""

    conversation: str = ID
    number: int = Field(ge=0, le=10_000)
    prompt: str = Field(max_length=2_000_000)
    answers: list[dict[str, Any]] = Field(max_length=MAX_LANES)
    last: bool = False


class Branch(_Body):
    """Copy the first turns of a conversation."""

    id: str = ID
    new: str = ID
    turns: int = Field(ge=0, le=10_000)


def conversation_routes(store: JobStore) -> APIRouter:
    """Return the routes on what Compare keeps in the home's database."""
    router = APIRouter(prefix="/api/chat")
    talks = Conversations(store.database)

    @router.get("/conversations")
    def conversations(search: str = "") -> list[dict[str, Any]]:
        return [row for row in talks.list(search=search) if row["turns"]]

    @router.get("/conversations/{conversation}")
    def conversation(conversation: str) -> dict[str, Any]:
        return talks.get(conversation)

    @router.post("/conversations")
    def save(body: Kept) -> dict[str, Any]:
        talks.save(
            body.id, lanes=body.lanes, settings=body.settings, title=body.title, parent=body.parent
        )
        return {"id": body.id}

    @router.post("/turns")
    def save_turn(body: Turn) -> dict[str, Any]:
        talks.save_turn(
            body.conversation, body.number, prompt=body.prompt, answers=body.answers,
            last=body.last,
        )  # fmt: skip
        return {"number": body.number}

    @router.post("/branch")
    def branch(body: Branch) -> dict[str, Any]:
        return talks.branch(body.id, body.new, turns=body.turns)

    return router
