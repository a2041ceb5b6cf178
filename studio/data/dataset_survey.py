"""Survey every row of a dataset in one pass: kept, dropped and why, repeated, suspicious.

Knows no tokenizer. Checking a file and importing it make the same survey.
"""

from __future__ import annotations

from studio.data.column_mapping import columns_read
from studio.data.conversation_records import (
    Document,
    Problem,
    Row,
    compared_text,
    content_hash,
    messages_of,
)
from studio.data.dataset_files import Origin
from studio.data.dataset_report import Report, RowCounter
from studio.data.recognise_format import Guess
from studio.data.row_converters import record_converter
from studio.data.suspicious_texts import Inspector, near_duplicates, shares

NEAR_ROWS, NEAR_ROWS_IN_CHECK = 20_000, 500  # an import has the time to compare more
NEAR_CHARS = 2000


class Survey:
    """Sees every row and problem of a dataset in order, then reports."""

    def __init__(self, origin: Origin, guess: Guess, *, near_rows: int = NEAR_ROWS) -> None:
        self.origin, self.guess, self._near_rows = origin, guess, near_rows
        self.counter, self._inspector = RowCounter(), Inspector()
        self._characters = self._answer_characters = 0
        self._texts: list[str] = []
        self._plain = origin.plain and guess.mapping.format == "text"
        self._convert, self._columns = record_converter(guess.mapping), columns_read(guess.mapping)
        if self._plain:  # a blank line is a line, too
            self._convert = lambda row: [Document(row.values["text"], row.line)]

    def see(self, item: Row | Problem) -> None:
        """Take one row."""
        counter = self.counter
        found = counter.take(item, self._columns, self._convert)
        if not found:
            return
        made = found[0]
        counter.keep(made)
        texts = []
        for message in messages_of(made):
            texts.append(message["content"])
            if message["role"] == "assistant":
                self._answer_characters += len(message["content"])
        text = "\n".join(texts)
        self._characters += len(text)
        self._inspector.look(text, item.line)
        if self._plain:
            return
        counter.hashes.append(content_hash(made))
        if counter.kept <= self._near_rows:
            self._texts.append(compared_text(made)[:NEAR_CHARS])

    def report(self) -> Report:
        """Sum up.

        Raises:
            DataError: Not one row can be used.
        """
        fields = self.counter.fields(self.origin, self.guess)
        repeats, kept = fields["duplicates"], self.counter.kept
        near = None if self._plain else len(near_duplicates(self._texts))
        suspicious = self._inspector.suspicions()
        if repeats:
            fields["warnings"].append(f"{repeats:,} rows are exact duplicates of earlier ones.")
        if near and near > repeats:
            among = f" among the first {len(self._texts):,}" if len(self._texts) < kept else ""
            fields["warnings"].append(
                f"{near - repeats:,} more rows{among} nearly repeat an earlier one."
            )
        fields["warnings"] += [f"{found.text}." for found in suspicious]
        return Report(
            **fields,
            near_duplicates=near,
            near_compared=len(self._texts),
            suspicious=suspicious,
            scripts=shares(self._inspector.scripts),
            languages=shares(self._inspector.languages),
            characters=self._characters,
            answer_share=round(self._answer_characters / max(1, self._characters), 4),
        )
