"""Conversations of the Compare page in the database: list, save, branch, delete.

A conversation has lanes, settings and turns; a turn is one prompt with one answer per lane. Beyond
its text, the page defines what an answer contains; it is stored unchanged.
"""

import json
from itertools import zip_longest
from typing import Any

from pydantic import ValidationError

from jobs.database import Database, now
from jobs.database_schema import Tables
from jobs.job_table import escaped_like
from studio.adapter_stack import read_lane
from studio.chat.lanes import LaneSettings, lane_notes
from studio.chat.thought_and_tool_parser import message_of
from studio.errors import AdapterError, ChatError

NO_CONVERSATION = 'There is no conversation "{id}": it was deleted or never saved.'
MOST_LISTED = 200
MOST_TURN_CHARACTERS = 16_000_000
TITLE_CHARACTERS = 80
Rows = list[dict[str, Any]]


def gone_on() -> ChatError:
    """Return the error of a page that knows less of a conversation than is stored."""
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
            limit: Maximum number.
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
            conversation: A saved conversation.
            number: The turn's number, from 0.
            prompt: The prompt.
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
    """Return an answer as a message: its text, thoughts and tool calls apart."""
    return message_of(answer.get("parts") or [("text", str(answer.get("text", "")))])


def settings_of(
    talk: dict[str, Any], lane: dict[str, Any], answer: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the system prompt and the sampling of an answer as it was asked for, else of a lane.

    A lane's settings are its own, else those that all share.
    """
    asked = answer if answer and "sampling" in answer else None
    return dict(asked or lane.get("own") or talk["settings"].get("shared") or {})


def answered_lanes(talk: dict[str, Any], answers: Rows) -> list[str]:
    """Return the lanes that answered a turn; settings follow where lanes differ in them."""
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
