"""Conversations of Compare and votes on their answers, in the database.

A conversation has lanes, settings and turns; a turn is one prompt with one answer per lane. Beyond
its text, the page defines what an answer contains; it is stored unchanged.
"""

import json
from collections.abc import Sequence
from typing import Any

from jobs.database import Database, now
from jobs.jobs_table import escaped_like
from studio.errors import ChatError
from studio.evaluation.ranking import Match, leaderboard, wins_of

NO_CONVERSATION = 'There is no conversation "{id}": it was deleted or never saved.'
MOST_LISTED = 200
MOST_TURN_CHARACTERS = 16_000_000
TITLE_CHARACTERS = 80
Rows = list[dict[str, Any]]


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
        with self._database.reading() as db:
            rows = list(db.query(_LIST, {"wanted": wanted, "limit": limit}))
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
    ) -> None:
        """Save a conversation without its turns; an empty title keeps the old one."""
        values = {
            "id": conversation, "title": title[:TITLE_CHARACTERS], "lanes": json.dumps(lanes),
            "settings": json.dumps(settings), "parent": parent, "now": now(),
        }  # fmt: skip
        with self._database.writing(durable=False) as db:
            db.conn.execute(_SAVE, values)

    def save_turn(
        self, conversation: str, number: int, *, prompt: str, answers: Rows, last: bool = False
    ) -> None:
        """Save one turn.

        Args:
            conversation: A saved conversation.
            number: The turn's number, from 0.
            prompt: The prompt.
            answers: One per lane, in order; each has at least a text.
            last: Drop later turns.

        Raises:
            ChatError: It is too long, or the conversation was deleted.
        """
        text = json.dumps(answers, ensure_ascii=False)
        if len(text) + len(prompt) > MOST_TURN_CHARACTERS:
            raise ChatError("This turn is too long to be saved; it stays on the page only.")
        words = "\n".join([prompt, *(str(a.get("text", "")) for a in answers if a)])
        values = {
            "id": conversation, "number": number, "prompt": prompt, "answers": text, "words": words,
        }  # fmt: skip
        with self._database.writing(durable=False) as db:
            changed = db.conn.execute(_TOUCH, [now(), prompt[:TITLE_CHARACTERS], conversation])
            if not changed.rowcount:
                raise ChatError("This conversation was deleted: start a new one.")
            db.conn.execute(_SAVE_TURN, values)
            if last:
                db.conn.execute(_DROP_TURNS, [conversation, number])

    def branch(self, conversation: str, new: str, *, turns: int) -> dict[str, Any]:
        """Copy the first turns into a new conversation and return it.

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
        with self._database.writing() as db:
            gone = db.conn.execute("DELETE FROM conversations WHERE id = ?", [conversation])
        if not gone.rowcount:
            raise ChatError(NO_CONVERSATION.format(id=conversation))


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
ON CONFLICT(conversation, number) DO UPDATE SET prompt = :prompt, answers = :answers, words = :words
"""
_DROP_TURNS = "DELETE FROM turns WHERE conversation = ? AND number > ?"
_COPY_TURNS = """
INSERT INTO turns(conversation, number, prompt, answers, words)
SELECT ?, number, prompt, answers, words FROM turns WHERE conversation = ? AND number < ?
"""


MIN_LANES = 2


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
            prompt: The prompt.
            lanes: The lanes, as written in the page's address.
            winner: The best lane's place among them; None for a tie.
            bad: A tie because all answers were bad.
            blind: The names were hidden.
            conversation: The conversation of `turn`, which counts from 0.
            turn: The turn's number.
            answers: The lanes' answers.

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
        with self._database.writing() as db:
            return db.conn.execute(_TAKE_BACK, [conversation, turn]).rowcount > 0

    def list(self) -> Rows:
        """Return every vote, oldest first."""
        with self._database.reading() as db:
            rows = list(db.query("SELECT * FROM matches ORDER BY id"))
        return [
            row | {"lanes": json.loads(row["lanes"]), "answers": json.loads(row["answers"])}
            for row in rows
        ]

    def board(self, *, blind_only: bool = False) -> dict[str, Any]:
        """Return the leaderboard and its table of wins."""
        matches = [
            Match(lanes=tuple(row["lanes"]), winner=row["winner"], bad=bool(row["bad"]))
            for row in self.list() if row["blind"] or not blind_only
        ]  # fmt: skip
        lanes, wins = wins_of(matches)
        return {
            "votes": len(matches),
            "standings": [standing.as_dict() for standing in leaderboard(matches)],
            "lanes": lanes,
            "wins": wins,
        }


_CAST = """
INSERT INTO matches(prompt, lanes, winner, created, bad, blind, conversation, turn, answers)
VALUES (:prompt, :lanes, :winner, :now, :bad, :blind, :conversation, :turn, :answers)
"""
_TAKE_BACK = "DELETE FROM matches WHERE conversation = ? AND turn = ?"
