"""One pass over the rows of a dataset: what is kept, dropped and why, repeated, suspicious.

Knows no tokenizer. Checking a file and importing it make the same survey.
"""

from __future__ import annotations

from array import array

from pydantic import BaseModel, ConfigDict

from studio.data.mapping import Mapping
from studio.data.origins import Origin
from studio.data.quality import Inspector, Suspicion, content_hash, near_duplicates, num_repeats
from studio.data.recognise import Guess
from studio.data.records import Conversation, Document, Problem, Row, Tally
from studio.data.report import ProblemLine, listed, why_nothing
from studio.data.rows import converter
from studio.errors import DataError

NEAR_ROWS = 20_000
NEAR_CHARS = 2000
MAX_PROBLEMS = 100_000


class RowCounts(BaseModel):
    """Rows read, kept and dropped."""

    model_config = ConfigDict(frozen=True)
    read: int = 0
    kept: int = 0
    dropped: int = 0


class Findings(BaseModel):
    """What a survey found; near duplicates are sought in the first `near_compared` rows."""

    model_config = ConfigDict(frozen=True)
    format: str = ""
    reason: str = ""
    container: str = ""
    encoding: str = ""
    mapping: Mapping = Mapping()
    rows: RowCounts = RowCounts()
    problems: list[ProblemLine] = []
    problem_counts: dict[str, int] = {}
    warnings: list[str] = []
    duplicates: int = 0
    near_duplicates: int | None = None
    near_compared: int = 0
    empty_answers: int = 0
    suspicious: list[Suspicion] = []
    scripts: dict[str, float] = {}
    languages: dict[str, float] = {}
    characters: int = 0
    answer_share: float = 0.0


class Survey:
    """Give it every row and problem in order, then ask for the findings."""

    def __init__(self, origin: Origin, guess: Guess, *, near_rows: int = NEAR_ROWS) -> None:
        self._near_rows = near_rows
        self.origin, self.guess = origin, guess
        self.tally, self.inspector = Tally(limit=MAX_PROBLEMS), Inspector()
        self.read = self.kept = 0
        self._open_ended = self._characters = self._answer_characters = 0
        self._hashes: array[int] = array("Q")
        self._texts: list[str] = []
        self._plain = origin.plain and guess.mapping.format == "text"
        self._convert = converter(guess.mapping)

    def see(self, item: Row | Problem) -> None:
        """Take one row."""
        self.read += 1
        if isinstance(item, Problem):
            self.tally.add(item)
            return
        made: Conversation | Document | Problem
        if self._plain:
            made = Document(item.values["text"], item.line)
        else:
            made = self._convert(item)
        if isinstance(made, Problem):
            self.tally.add(made)
            return
        self.kept += 1
        text = self._texts_of(made)
        self._characters += len(text)
        self.inspector.look(text, item.line)
        if self._plain:
            return
        self._hashes.append(content_hash(made))
        if self.kept <= self._near_rows:
            self._texts.append(text[:NEAR_CHARS])

    def _texts_of(self, made: Conversation | Document) -> str:
        if isinstance(made, Document):
            self._answer_characters += len(made.text)
            return made.text
        self._open_ended += made.open_ended
        texts = []
        for message in made.messages:
            texts.append(message["content"])
            if message["role"] == "assistant":
                self._answer_characters += len(message["content"])
        return "\n".join(texts)

    def findings(self) -> Findings:
        """Sum up.

        Raises:
            DataError: Not one row can be used.
        """
        tally, origin = self.tally, self.origin
        if not self.kept:
            raise DataError(why_nothing(origin.name, self.read, tally.problems, tally.counts))
        near = None if self._plain else len(near_duplicates(self._texts))
        repeats = num_repeats(self._hashes)
        return Findings(
            format=self.guess.mapping.format,
            reason=self.guess.reason,
            container=origin.container,
            encoding=origin.encoding,
            mapping=self.guess.mapping,
            rows=RowCounts(read=self.read, kept=self.kept, dropped=tally.total),
            problems=listed(tally),
            problem_counts=tally.counts,
            warnings=self._warnings(repeats, near),
            duplicates=repeats,
            near_duplicates=near,
            near_compared=len(self._texts),
            empty_answers=tally.counts.get("empty_answer", 0),
            suspicious=self.inspector.suspicions(),
            scripts=self.inspector.script_shares(),
            languages=self.inspector.language_shares(),
            characters=self._characters,
            answer_share=round(self._answer_characters / max(1, self._characters), 4),
        )

    def _warnings(self, repeats: int, near: int | None) -> list[str]:
        notes = list(self.origin.notes)
        if not self.guess.sure:
            notes.append(f"The meaning of the columns was guessed: {self.guess.reason}.")
        if self.tally.total:
            notes.append(f"{self.tally.total:,} of {self.read:,} rows would be dropped.")
        if self._open_ended:
            notes.append(f"{self._open_ended:,} rows end with a question; it is left out.")
        if repeats:
            notes.append(f"{repeats:,} rows are exact duplicates of earlier ones.")
        if near and near > repeats:
            among = f" among the first {len(self._texts):,}" * (len(self._texts) < self.kept)
            notes.append(f"{near - repeats:,} more rows{among} nearly repeat an earlier one.")
        return notes + [f"{found.text}." for found in self.inspector.suspicions()]
