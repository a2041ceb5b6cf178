"""Votes on the answers of Compare in the database: cast, take back, list, rank."""

import json
from collections.abc import Sequence
from typing import Any

from jobs.database import Database, now
from studio.errors import ChatError
from studio.evaluation.vote_ranking import Match, leaderboard, met, wins_of

Rows = list[dict[str, Any]]
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


_CAST = """
INSERT INTO matches(prompt, lanes, winner, created, bad, blind, conversation, turn, answers)
VALUES (:prompt, :lanes, :winner, :now, :bad, :blind, :conversation, :turn, :answers)
"""
_TAKE_BACK = "DELETE FROM matches WHERE conversation = ? AND turn = ?"
