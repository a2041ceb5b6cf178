"""Votes of the arena: one a turn, taken back when the turn is answered again."""

import json
from collections.abc import Sequence
from typing import Any

from jobs.database import Database, now
from studio.chat.ranking import Match, leaderboard, wins_of
from studio.errors import ChatError

FEWEST_LANES = 2
Rows = list[dict[str, Any]]


class Votes:
    """The votes of one home."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def cast(
        self, prompt: str, lanes: Sequence[str], *, winner: int | None, bad: bool = False,
        blind: bool = False, conversation: str | None = None, turn: int | None = None,
        answers: Sequence[str] = (),
    ) -> int:  # fmt: skip
        """Keep a vote and return its number; an earlier one of the same turn is replaced.

        Args:
            prompt: What was asked.
            lanes: Who answered, as lanes are written in the address.
            winner: The better one's place among them; None is a tie.
            bad: A tie because all were bad.
            blind: Whether the names were hidden.
            conversation: Where it was, with `turn`.
            turn: The turn's number there.
            answers: What each said.

        Raises:
            ChatError: Too few lanes, or the winner is none of them.
        """
        if len(lanes) < FEWEST_LANES:
            raise ChatError("A vote needs at least two answers: add a lane.")
        if winner is not None and not 0 <= winner < len(lanes):
            raise ChatError(f"There is no answer {winner + 1} to vote for.")
        if winner is not None and bad:
            raise ChatError("Either one answer is better, or all are bad.")
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
        """Forget the vote on a turn; False when there was none."""
        with self._database.writing() as db:
            return db.conn.execute(_TAKE_BACK, [conversation, turn]).rowcount > 0

    def list(self) -> Rows:
        """Return every vote, the oldest first."""
        with self._database.reading() as db:
            rows = list(db.query("SELECT * FROM matches ORDER BY id"))
        return [
            row | {"lanes": json.loads(row["lanes"]), "answers": json.loads(row["answers"])}
            for row in rows
        ]

    def board(self, *, blind_only: bool = False) -> dict[str, Any]:
        """Return the leaderboard and the table of wins it was made from."""
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
