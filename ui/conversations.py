"""What Compare keeps: its JSON routes on conversations, recipes and votes.

Each body is small and typed; what an answer holds beside its text is the page's own and stays as it
came. Nothing here talks to the chat host.
"""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from jobs.actions import ask
from jobs.conversations import Conversations, Votes
from jobs.recipes import Recipes
from jobs.store import JobStore
from studio.stack import MAX_ADAPTERS, MAX_LANES

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


class Named(_Body):
    """Which conversation."""

    id: str = ID


class Recipe(_Body):
    """A mix, and what to make of it."""

    kind: Literal["recipe", "mix", "merge"]
    name: str = Field(max_length=120)
    model: str = Field(max_length=1000)
    stack: list[dict[str, Any]] = Field(max_length=MAX_ADAPTERS)


class RecipeName(_Body):
    """Which recipe."""

    name: str = Field(max_length=120)


class Vote(_Body):
    """A vote on a turn; no winner is a tie."""

    conversation: str = ID
    turn: int = Field(ge=0, le=10_000)
    prompt: str = Field(max_length=2_000_000)
    lanes: list[str] = Field(max_length=MAX_LANES)
    answers: list[str] = Field(max_length=MAX_LANES)
    winner: int | None = None
    bad: bool = False
    blind: bool = False


class VotedTurn(_Body):
    """Which turn's vote."""

    conversation: str = ID
    turn: int


def conversation_routes(store: JobStore) -> APIRouter:
    """Return the routes on what Compare keeps in the home's database."""
    router = APIRouter(prefix="/api/chat")
    talks, kept, votes = (
        Conversations(store.database), Recipes(store.database), Votes(store.database)
    )  # fmt: skip

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

    @router.post("/conversations/delete")
    def delete(body: Named) -> dict[str, Any]:
        talks.delete(body.id)
        return {"deleted": body.id}

    @router.post("/recipes")
    def keep(body: Recipe) -> dict[str, Any]:
        if body.kind == "recipe":
            kept.save(body.name, body.model, body.stack)
            return {"name": body.name}
        values = {"name": body.name.strip(), "model": body.model, "stack": body.stack}
        job = ask(store.home, body.kind, values, store=store).jobs[0]
        return {"name": job.name, "id": job.id}

    @router.post("/recipes/delete")
    def forget(body: RecipeName) -> dict[str, Any]:
        kept.delete(body.name)
        return {"deleted": body.name}

    @router.post("/vote")
    def vote(body: Vote) -> dict[str, Any]:
        number = votes.cast(
            body.prompt, body.lanes, winner=body.winner, bad=body.bad, blind=body.blind,
            conversation=body.conversation, turn=body.turn, answers=body.answers,
        )  # fmt: skip
        return {"id": number}

    @router.post("/vote/back")
    def take_back(body: VotedTurn) -> dict[str, Any]:
        return {"taken_back": votes.take_back(body.conversation, body.turn)}

    @router.get("/leaderboard")
    def leaderboard(blind: bool = False) -> dict[str, Any]:
        return votes.board(blind_only=blind)

    return router
