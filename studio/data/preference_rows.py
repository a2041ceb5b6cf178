"""Yield a dataset's pairs or judged answers for preference training, or say why there are none.

Not for `train.loss=sft`: plain training reads rows through `rows.converter`.
"""

from __future__ import annotations

from collections.abc import Iterator

from studio.data.column_mapping import columns_read, getter
from studio.data.conversation_records import Judged, Pair
from studio.data.dataset_files import Origin
from studio.data.dataset_report import RowCounter
from studio.data.recognise_format import guess_origin
from studio.data.row_converters import record_converter
from studio.data.template.template import TrainOn
from studio.errors import DataError
from studio.spec import DataSource
from studio.train_args import Rows


def preferences(
    origin: Origin, source: DataSource, counter: RowCounter, *, verdicts: bool = False
) -> Iterator[tuple[int, Pair | Judged]]:
    """Yield each record with the number of its row, from 1; rows of scored answers may give many.

    Both sides of a pair, and judged answers, carry loss on their own answers only: answers in the
    prompt are muted. Rows that share a `records.prompt_hash` belong on one side of a split.

    Args:
        origin: The dataset.
        source: How it is read: `format`, and `pairs` and `margin` of scored answers.
        counter: Counts rows read and dropped here; the caller calls `counter.keep(record, number)`
            or `counter.drop` for what it makes of each record.
        verdicts: Judged answers are wanted (KTO); each pair gives a good and a bad one.

    Raises:
        DataError: The dataset holds no such records, or only good or only bad answers.
    """
    guess = guess_origin(origin, source)
    wanted = "pairs of chosen and rejected answers"
    if verdicts:
        wanted = "judged answers (with a column label that is true or false) or pairs"
    kinds = ("preference", "scored", *(["judged"] if verdicts else []))
    if guess.mapping.format not in kinds:
        raise DataError(
            f"{origin.name} holds rows of the format {guess.mapping.format}, and this loss needs "
            f"{wanted}: choose another dataset, or train.loss=sft."
        )
    if guess.mapping.format == "preference" and getter(guess.mapping, "rejected") is None:
        raise DataError(
            f"No column of {origin.name} is the rejected answer: map the part rejected."
        )
    convert = record_converter(guess.mapping, pairs=source.pairs, margin=source.margin)
    columns, seen = columns_read(guess.mapping), set[bool]()
    for item in origin.rows():
        for record in counter.take(item, columns, convert) or ():
            assert isinstance(record, Pair | Judged)
            records: list[Pair | Judged] = [record]
            if verdicts and isinstance(record, Pair):
                records = [Judged(record.chosen, True), Judged(record.rejected, False)]
            seen.update(one.good for one in records if isinstance(one, Judged))
            yield from ((counter.read, one) for one in records)
    if len(seen) == 1 and counter.read != origin.at_most:
        raise DataError(
            f"Every answer of {origin.name} is judged as {'good' if True in seen else 'bad'}: "
            "this loss needs good and bad ones. Add the others, or choose another loss."
        )


def trained_on(source: DataSource, rows: Rows) -> TrainOn:
    """Return the tokens that carry loss: `data.train_on`, but never prompts of compared answers."""
    if rows in ("pairs", "judged") and source.train_on == "all":
        return "assistant"
    return source.train_on
