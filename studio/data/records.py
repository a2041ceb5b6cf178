"""The small records that travel through the data room: rows, conversations, documents, problems."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

Message = dict[str, Any]


class Row(NamedTuple):
    """One record of a file, before anybody knows what it means; `line` is where it starts."""

    line: int
    values: dict[str, Any]


class Problem(NamedTuple):
    """Why a row was dropped, and where it stands."""

    line: int
    kind: str
    text: str


class Conversation(NamedTuple):
    """Messages of `role` and `content` (and `tool_calls`), with the tools they may call."""

    messages: list[Message]
    tools: list[Any] | None = None
    line: int = 0
    open_ended: bool = False  # a question at the end had no answer and was left out
    muted: tuple[int, ...] = ()  # which answers, counted from 0, carry no loss


class Document(NamedTuple):
    """Plain text: no template, everything trained, the end marked."""

    text: str
    line: int = 0


class Dropped(Exception):
    """Raised while a row is read: it cannot be used, and this is why."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind, self.text = kind, text


@dataclass(slots=True)
class Tally:
    """Counts what was dropped, and keeps the first cases in full."""

    limit: int = 1000
    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, problem: Problem) -> None:
        """Count one dropped row."""
        self.counts[problem.kind] = self.counts.get(problem.kind, 0) + 1
        if len(self.problems) < self.limit:
            self.problems.append(problem)

    @property
    def total(self) -> int:
        """Rows dropped so far."""
        return sum(self.counts.values())
