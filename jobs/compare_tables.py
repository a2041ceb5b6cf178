"""What the Compare page keeps in the database: conversations, votes and recipes.

A conversation has lanes, settings and turns; a turn is one prompt with one answer per lane. Beyond
its text, the page defines what an answer contains; it is stored unchanged. A recipe is a named mix
of adapters.
"""

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from pydantic import ValidationError

from jobs.database import Database, escaped_like, now
from jobs.database_schema import Tables
from studio.adapter_stack import StackItem, read_lane
from studio.chat.lanes import LaneSettings, lane_notes
from studio.chat.thought_and_tool_parser import message_of
from studio.errors import AdapterError, ChatError, nearest
from studio.evaluation.ranking_and_intervals import Match, leaderboard, met, wins_of
from studio.fields import validated

NO_CONVERSATION = 'There is no conversation "{id}": it was deleted or never saved.'
MOST_LISTED = 200
MOST_TURN_CHARACTERS = 16_000_000
TITLE_CHARACTERS = 80
MIN_LANES = 2
NAME_LENGTH = 120
Rows = list[dict[str, Any]]


def gone_on() -> ChatError:
    """Return the error of a Compare page that knows less of a conversation than is stored."""
    return ChatError(
        "This conversation went on in another tab. Reload this page; a branch keeps what is only "
        "here."
    )


class Conversations:
    """The conversations of one home."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, *, search: str = "", limit: int = MOST_LISTED) -> Rows:
        """Return conversations without their turns, newest first.

        Args:
            search: A part of the title, a prompt, an answer, or a lane's name.
        """
        wanted = f"%{escaped_like(search.strip())}%"
        rows = self._database.rows(_LIST, {"wanted": wanted, "limit": limit})
        return [row | {"lanes": json.loads(row["lanes"])} for row in rows]

    def get(self, conversation: str) -> dict[str, Any]:
        """Return one conversation with its turns.

        Raises:
            ChatError: There is no conversation with this id.
        """
        with self._database.reading() as db:
            row = next(iter(db.query(_ONE, [conversation])), None)
            turns = list(db.query(_ITS_TURNS, [conversation]))
        if row is None:
            raise ChatError(NO_CONVERSATION.format(id=conversation))
        return row | {
            "lanes": json.loads(row["lanes"]),
            "settings": json.loads(row["settings"]),
            "turns": [
                {"prompt": turn["prompt"], "answers": json.loads(turn["answers"])} for turn in turns
            ],
        }

    def save(
        self,
        conversation: str,
        *,
        lanes: Rows,
        settings: dict[str, Any],
        title: str = "",
        parent: str | None = None,
        known: bool = False,
        turns: int | None = None,
    ) -> None:
        """Save a conversation without its turns; an empty title keeps the old one.

        Raises:
            ChatError: It is `known` to have been saved before, and was deleted since, or it has
                more `turns` than its page.
        """
        values = {
            "id": conversation, "title": title[:TITLE_CHARACTERS], "lanes": json.dumps(lanes),
            "settings": json.dumps(settings), "parent": parent, "now": now(),
        }  # fmt: skip
        with self._database.writing(durable=False) as db:
            if known:
                _refuse_deleted(db, conversation)
            if turns is not None and next(iter(db.query(_COUNT, [conversation])))["turns"] > turns:
                raise gone_on()
            db.conn.execute(_SAVE, values)

    def save_turn(self, conversation: str, number: int, *, prompt: str, answers: Rows) -> None:
        """Save one turn, whose prompt stays the same.

        Args:
            number: The turn's number, from 0.
            answers: One per lane, in order; each has at least a text.

        Raises:
            ChatError: It is too long, the conversation was deleted, or has another turn there.
        """
        text = json.dumps(answers, ensure_ascii=False)
        if len(text) + len(prompt) > MOST_TURN_CHARACTERS:
            raise ChatError("This turn is too long to be saved; it stays on the page only.")
        words = "\n".join([prompt, *(str(a.get("text", "")) for a in answers if a)])
        values = {
            "id": conversation, "number": number, "prompt": prompt, "answers": text, "words": words,
        }  # fmt: skip
        with self._database.writing(durable=False) as db:
            _refuse_deleted(db, conversation)
            db.conn.execute(_TOUCH, [now(), prompt[:TITLE_CHARACTERS], conversation])
            if not db.conn.execute(_SAVE_TURN, values).rowcount:
                raise gone_on()

    def branch(self, conversation: str, new: str, *, turns: int) -> dict[str, Any]:
        """Copy the first turns into a new conversation and return it.

        Votes and corrections count once: the copy's answers have neither.

        Raises:
            ChatError: There is no such conversation, or the new id exists.
        """
        old = self.get(conversation)
        with self._database.writing() as db:
            if next(iter(db.query(_ONE, [new])), None):
                raise ChatError(f'There is already a conversation "{new}".')
            values = {
                "id": new, "title": old["title"], "lanes": json.dumps(old["lanes"]),
                "settings": json.dumps(old["settings"]), "parent": conversation, "now": now(),
            }  # fmt: skip
            db.conn.execute(_SAVE, values)
            db.conn.execute(_COPY_TURNS, [new, conversation, turns])
        return self.get(new)

    def delete(self, conversation: str) -> None:
        """Delete a conversation; its votes stay.

        Raises:
            ChatError: There is no conversation with this id.
        """
        if not self._database.change("DELETE FROM conversations WHERE id = ?", [conversation]):
            raise ChatError(NO_CONVERSATION.format(id=conversation))


def as_message(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer of Compare as a message: its text, thoughts and tool calls apart."""
    return message_of(answer.get("parts") or [("text", str(answer.get("text", "")))])


def settings_of(
    talk: dict[str, Any], lane: dict[str, Any], answer: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the system prompt and sampling of a stored answer, else those of its lane.

    A lane's settings are its own, else those that all share.
    """
    asked = answer if answer and "sampling" in answer else None
    return dict(asked or lane.get("own") or talk["settings"].get("shared") or {})


def answered_lanes(talk: dict[str, Any], answers: Rows) -> list[str]:
    """Return the lanes that answered a stored turn, with settings in which they differ."""
    names = [str(answer.get("lane", "")) for answer in answers]
    lanes = []
    for name, lane, answer in zip(names, talk["lanes"], answers, strict=False):
        own = settings_of(talk, lane, answer)
        values = {key: own[key] for key in ("system", "sampling") if own.get(key)}
        try:
            lanes.append(LaneSettings.model_validate(read_lane(name) | values))
        except (AdapterError, ValidationError):
            return names
    notes = lane_notes(lanes) if lanes else []
    return [name + note for name, note in zip_longest(names, notes[: len(names)], fillvalue="")]


class Votes:
    """The votes of one home."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def cast(
        self, prompt: str, lanes: Sequence[str], *, winner: int | None, bad: bool = False,
        blind: bool = False, conversation: str | None = None, turn: int | None = None,
        answers: Sequence[str] = (),
    ) -> int:  # fmt: skip
        """Save a vote and return its number; it replaces an earlier one of the same turn.

        Args:
            lanes: The lanes, as written in the page's address.
            winner: The best lane's place among them; None for a tie.
            bad: A tie because all answers were bad.
            blind: The names were hidden.
            conversation: The conversation of `turn`, which counts from 0.

        Raises:
            ChatError: There are too few lanes.
        """
        if len(lanes) < MIN_LANES:
            raise ChatError("A vote needs at least two answers: add a lane.")
        values = {
            "prompt": prompt, "lanes": json.dumps(list(lanes)), "winner": winner, "bad": int(bad),
            "blind": int(blind), "conversation": conversation, "turn": turn,
            "answers": json.dumps(list(answers), ensure_ascii=False), "now": now(),
        }  # fmt: skip
        with self._database.writing() as db:
            if conversation is not None:
                db.conn.execute(_TAKE_BACK, [conversation, turn])
            return int(db.conn.execute(_CAST, values).lastrowid or 0)

    def take_back(self, conversation: str, turn: int) -> bool:
        """Delete the vote on a turn; False if there was none."""
        return self._database.change(_TAKE_BACK, [conversation, turn]) > 0

    def list(self) -> Rows:
        """Return every vote, oldest first."""
        return [
            row | {"lanes": json.loads(row["lanes"]), "answers": json.loads(row["answers"])}
            for row in self._database.rows("SELECT * FROM matches ORDER BY id")
        ]

    def matches(self, *, blind_only: bool = False) -> Sequence[Match]:
        """Return the votes as ranking reads them."""
        return [
            Match(lanes=tuple(row["lanes"]), winner=row["winner"], bad=bool(row["bad"]))
            for row in self.list() if row["blind"] or not blind_only
        ]  # fmt: skip

    def board(self, *, blind_only: bool = False) -> dict[str, Any]:
        """Return the leaderboard and its table of wins."""
        matches = met(self.matches(blind_only=blind_only))
        lanes, wins = wins_of(matches)
        return {
            "votes": len(matches),
            "standings": [standing.as_dict() for standing in leaderboard(matches)],
            "lanes": lanes,
            "wins": wins,
        }


class Recipes:
    """The recipes of one home."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self) -> Rows:
        """Return the recipes, by name."""
        rows = self._database.rows("SELECT * FROM recipes ORDER BY name")
        return [row | {"stack": json.loads(row["stack"])} for row in rows]

    def get(self, name: str) -> dict[str, Any]:
        """Return one recipe.

        Raises:
            ChatError: There is none of this name.
        """
        known = {row["name"]: row for row in self.list()}
        if name not in known:
            raise ChatError(f'There is no recipe "{name}".{nearest(name, known)}')
        return known[name]

    def save(self, name: str, model: str, stack: Sequence[dict[str, Any]]) -> None:
        """Keep a mix under a name; the same name is written anew.

        Raises:
            ChatError: No name, or no adapter.
            SpecError: A weight is out of bounds.
        """
        name = name.strip()
        if not 0 < len(name) <= NAME_LENGTH:
            raise ChatError(f"A recipe needs a name of at most {NAME_LENGTH} characters.")
        if not stack:
            raise ChatError("A recipe needs at least one adapter.")
        items = [validated(StackItem, dict(item)).model_dump() for item in stack]
        values = {"name": name, "model": model, "stack": json.dumps(items), "now": now()}
        self._database.change(_SAVE_RECIPE, values)

    def delete(self, name: str) -> None:
        """Forget a recipe.

        Raises:
            ChatError: There is none of this name.
        """
        self.get(name)
        self._database.change("DELETE FROM recipes WHERE name = ?", [name])


def _refuse_deleted(db: Tables, conversation: str) -> None:
    if not next(iter(db.query(_ONE, [conversation])), None):
        raise ChatError("This conversation was deleted: start a new one.")


_LIST = r"""
SELECT c.id, c.title, c.lanes, c.parent, c.created, c.updated,
       (SELECT count(*) FROM turns WHERE conversation = c.id) AS turns
FROM conversations AS c
WHERE c.title LIKE :wanted ESCAPE '\' OR c.lanes LIKE :wanted ESCAPE '\'
   OR EXISTS (SELECT 1 FROM turns WHERE conversation = c.id AND words LIKE :wanted ESCAPE '\')
ORDER BY c.updated DESC, c.id LIMIT :limit
"""
_ONE = "SELECT * FROM conversations WHERE id = ?"
_ITS_TURNS = "SELECT prompt, answers FROM turns WHERE conversation = ? ORDER BY number"
_SAVE = """
INSERT INTO conversations(id, title, lanes, settings, parent, created, updated)
VALUES (:id, :title, :lanes, :settings, :parent, :now, :now)
ON CONFLICT(id) DO UPDATE SET lanes = :lanes, settings = :settings, updated = :now,
  title = CASE WHEN :title <> '' THEN :title ELSE title END
"""
_TOUCH = """
UPDATE conversations SET updated = ?, title = CASE WHEN title = '' THEN ? ELSE title END
WHERE id = ?
"""
_SAVE_TURN = """
INSERT INTO turns(conversation, number, prompt, answers, words)
VALUES (:id, :number, :prompt, :answers, :words)
ON CONFLICT(conversation, number) DO UPDATE SET answers = :answers, words = :words
WHERE prompt = :prompt
"""
_COUNT = "SELECT coalesce(max(number) + 1, 0) AS turns FROM turns WHERE conversation = ?"
_COPY_TURNS = """
INSERT INTO turns(conversation, number, prompt, answers, words)
SELECT ?, number, prompt, (
    SELECT json_group_array(json_remove(value, '$.original', '$.verdict',
      CASE WHEN value ->> 'verdict' IS NULL THEN '$.original' ELSE '$.place' END))
    FROM json_each(answers)
  ), words FROM turns WHERE conversation = ? AND number < ?
"""

_CAST = """
INSERT INTO matches(prompt, lanes, winner, created, bad, blind, conversation, turn, answers)
VALUES (:prompt, :lanes, :winner, :now, :bad, :blind, :conversation, :turn, :answers)
"""
_TAKE_BACK = "DELETE FROM matches WHERE conversation = ? AND turn = ?"

_SAVE_RECIPE = """
INSERT INTO recipes(name, model, stack, created) VALUES (:name, :model, :stack, :now)
ON CONFLICT(name) DO UPDATE SET model = :model, stack = :stack, created = :now
"""
