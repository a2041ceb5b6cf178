"""The X-ray: rows exactly as the trainer sees them, token by token.

It goes the same way as the loop: the same reader, converter, `Template.encode_batch` and `cut.fit`.
A test proves that its ids and labels are those of `prepare`. Needs no torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from studio.data.origins import Origin, find, guess_origin
from studio.data.prepare import prepare
from studio.data.records import Conversation, Document, Problem, Row
from studio.data.rows import converter
from studio.data.template.template import Encoded, Template, choose
from studio.data.tokens import Examples, fit
from studio.errors import DataError
from studio.home import Home
from studio.spec import DataSource

State = Literal["trained", "masked", "truncated"]
Pick = Literal["first", "longest", "shortest", "random"]
MAX_TOKENS_SHOWN = 20_000


class Token(BaseModel):
    """One token: its id, its text, what the loss does with it."""

    model_config = ConfigDict(frozen=True)
    id: int
    text: str
    state: State
    special: bool = False


class XRow(BaseModel):
    """One row; `row` counts from 1, `line` is where it stands in its file."""

    model_config = ConfigDict(frozen=True)
    row: int
    line: int
    tokens: list[Token] = []
    text: str = ""
    num_tokens: int = 0
    num_trained: int = 0
    num_truncated: int = 0
    problem: str = ""


def xray(
    source: DataSource,
    tokenizer: Any,
    *,
    context_length: int,
    rows: list[int] | None = None,
    pick: Pick = "first",
    count: int = 5,
    seed: int = 0,
    home: Home | None = None,
) -> list[XRow]:
    """Show some rows as tokens: by number, or the first, longest, shortest or random ones.

    Args:
        source: As in the run.
        tokenizer: transformers' tokenizer, or a `templates.backend.Backend`.
        context_length: As in the run.
        rows: Row numbers from 1.
        pick: Which rows when none are named.
        count: How many.
        seed: Of the random choice.
        home: Where imported datasets live and tokens are cached.

    Raises:
        DataError: The dataset cannot be used, or has no such row.
    """
    origin = find(source, home)
    template = choose(tokenizer, source.chat_template)
    limit = max(2, min(source.max_length, context_length))
    guess = (origin.guess if source.format == "auto" else None) or guess_origin(origin, source)
    if origin.plain and guess.mapping.format == "text":
        return _windows(source, tokenizer, context_length, template, rows, pick, count, seed, home)
    if rows is None and pick == "first":
        rows = list(range(1, count + 1))
        missing_is_fine = True
    else:
        missing_is_fine = False
    if rows is None:
        rows = _picked(source, tokenizer, context_length, pick, count, seed, home)
    convert = converter(guess.mapping)
    found: dict[int, XRow] = {}
    for number, item in _wanted(origin, set(rows)):
        made = convert(item) if isinstance(item, Row) else item
        found[number] = _row(number, item.line, made, source, template, limit)
    absent = [number for number in rows if number not in found]
    if absent and not missing_is_fine:
        raise DataError(f"{origin.name} has no row {absent[0]:,}.")
    return [found[number] for number in rows if number in found]


def backend_for(model_folder: Path) -> Any:
    """Return the tokenizer of a model folder without loading torch."""
    from studio.data.template.backend import backend_from_folder

    return backend_from_folder(model_folder)


def _wanted(origin: Origin, numbers: set[int]) -> Iterator[tuple[int, Row | Problem]]:
    if origin.pick is not None:
        yield from origin.pick(sorted(numbers))
        return
    last = max(numbers, default=0)
    for index, item in enumerate(origin.rows()):
        if index + 1 in numbers:
            yield index + 1, item
        if index + 1 >= last:
            return


def _picked(
    source: DataSource,
    tokenizer: Any,
    context_length: int,
    pick: Pick,
    count: int,
    seed: int,
    home: Home | None,
) -> list[int]:
    whole = source.model_copy(update={"validation_fraction": 0, "validation_path": ""})
    made = prepare(whole, tokenizer, context_length=context_length, seed=seed, home=home)
    assert isinstance(made.train, Examples)
    tokens = made.train.tokens
    if pick == "random":
        chosen = random.Random(seed).sample(range(len(tokens)), min(count, len(tokens)))
        return [int(tokens.rows[at]) for at in sorted(chosen)]
    lengths = -tokens.whole if pick == "longest" else tokens.whole
    order = np.lexsort((tokens.rows, lengths))  # a document's windows share one row
    return list(dict.fromkeys(int(tokens.rows[at]) for at in order[: 50 * count]))[:count]


def _row(
    number: int,
    line: int,
    made: Conversation | Document | Problem,
    source: DataSource,
    template: Template,
    limit: int,
) -> XRow:
    if isinstance(made, Problem):
        return XRow(row=number, line=line, problem=made.text)
    encoded = template.encode_batch([made], source.train_on).row(0)
    if isinstance(encoded, Problem):
        return XRow(row=number, line=line, problem=encoded.text)
    if isinstance(made, Document):
        kept = None  # a long document becomes several windows, nothing is lost
    else:
        lead = template.num_lead_tokens(encoded.ids)
        kept = fit(encoded, limit=limit, num_lead_tokens=lead).kept
    return _shown(number, line, encoded, kept, template)


def _shown(number: int, line: int, encoded: Encoded, kept: Any, template: Template) -> XRow:
    inside = np.full(len(encoded.ids), kept is None)
    if kept is not None:
        inside[kept] = True
    ids = [int(i) for i in encoded.ids]
    states: list[State] = [
        "truncated" if not keep else "trained" if trained else "masked"
        for keep, trained in zip(inside, encoded.trained, strict=True)
    ]
    core = template.backend.core
    texts = _texts(core, ids[:MAX_TOKENS_SHOWN])
    special = {t for t in ids if template.is_special(t)}
    return XRow(
        row=number,
        line=line,
        tokens=[
            Token(id=i, text=text, state=state, special=i in special)
            for i, text, state in zip(ids, texts, states, strict=False)
        ],
        text=core.decode(ids, skip_special_tokens=False),
        num_tokens=len(ids),
        num_trained=states.count("trained"),
        num_truncated=states.count("truncated"),
    )


def _texts(core: Any, ids: list[int]) -> list[str]:
    # A token's text is what it adds to the text before it; bytes of one character come together.
    def decoded(first: int, last: int) -> str:
        return str(core.decode(ids[first : last + 1], skip_special_tokens=False))

    texts: list[str] = []
    start, before = 0, ""
    for index in range(len(ids)):
        now = decoded(start, index)
        unfinished = now.endswith("\ufffd") or not now.startswith(before)
        if unfinished and index + 1 < len(ids) and index - start < 400:
            texts.append("")
            continue
        texts.append(now[len(before) :] if now.startswith(before) else now)
        before = now
        if index - start >= 24:
            # Decoders may strip a space at the start: keep one whole token of context.
            alone = decoded(index, index)
            if "\ufffd" not in alone:
                start, before = index, alone
    return texts


def _windows(
    source: DataSource,
    tokenizer: Any,
    context_length: int,
    template: Template,
    rows: list[int] | None,
    pick: Pick,
    count: int,
    seed: int,
    home: Home | None,
) -> list[XRow]:
    """Plain text: what the loop gets are windows, so windows are shown."""
    whole = source.model_copy(update={"validation_fraction": 0, "validation_path": ""})
    made = prepare(whole, tokenizer, context_length=context_length, seed=seed, home=home)
    order = list(range(len(made.train)))
    if rows is not None:
        order = [number - 1 for number in rows]
        if any(not 0 <= at < len(made.train) for at in order):
            raise DataError(f"{source.path} has no window {max(rows):,}.")
    elif pick == "random":
        order = sorted(random.Random(seed).sample(order, min(count, len(order))))
    elif pick != "first":
        sign = -1 if pick == "longest" else 1
        order.sort(key=lambda at: sign * len(made.train[at].input_ids))
    shown = []
    for at in order[: len(rows) if rows else count]:
        example = made.train[at]
        encoded = Encoded(example.input_ids, example.labels >= 0)
        shown.append(_shown(at + 1, example.row, encoded, None, template))
    return shown
