"""Show a dataset on a model before it trains: rows token by token (the X-ray), lengths and steps.

The X-ray calls the same functions as the loop: reader, converter, `Template.encode_batch` and
`token_arrays.fit`. A test proves that its ids and labels are those of `prepare`. Tokens that were
counted are cached, so a run that follows starts with them. Needs no torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from studio.data.column_mapping import Mapping
from studio.data.conversation_records import (
    Conversation,
    Document,
    Judged,
    Pair,
    Problem,
    Row,
    num_equal,
)
from studio.data.dataset_files import Origin
from studio.data.dataset_report import Frozen, TokenReport
from studio.data.find_dataset import find
from studio.data.model_tokenizer import Detokenizer
from studio.data.prepare_run_data import absent, is_prepared, lens, prepare, row_limit
from studio.data.recognise_format import SAMPLE_ROWS, guess_origin
from studio.data.row_converters import converter, prompt_converter, record_converter
from studio.data.template.choose_template import choose_for
from studio.data.template.template import Encoded, Template, View
from studio.data.token_arrays import Example, Examples, fit, fit_alike
from studio.data.tokenise_rows import trained_on
from studio.errors import DataError
from studio.home import Home
from studio.spec import DataSource, ModelSource, RunSpec

State = Literal["trained", "masked", "truncated"]
Pick = Literal["first", "longest", "shortest", "random"]
Side = Literal["", "chosen", "rejected", "good", "bad"]
MAX_TOKENS_SHOWN = 20_000


class Token(Frozen):
    """One token: its id, its text, what the loss does with it."""

    id: int
    text: str
    state: State
    special: bool = False


class LostPart(Frozen):
    """A part of message `message` (from 1; 0 for the tools) that the template leaves out.

    It is missing before token `before` of the row.
    """

    message: int
    kind: str
    text: str
    before: int


class Weighed(Frozen):
    """Tokens from `start` to before `stop` whose loss counts `weight` times."""

    start: int
    stop: int
    weight: float


class XRow(Frozen):
    """One row; `row` counts from 1, `line` is where it stands in its file.

    A row that is trained turn by turn is shown once per turn: `part` of `num_parts`. A pair is
    shown by its sides, whose first `shared` tokens are equal.
    """

    row: int
    line: int
    tokens: tuple[Token, ...] = ()
    text: str = ""
    num_tokens: int = 0
    num_trained: int = 0
    num_truncated: int = 0
    problem: str = ""
    lost: tuple[LostPart, ...] = ()
    weights: tuple[Weighed, ...] = ()
    part: int = 1
    num_parts: int = 1
    side: Side = ""
    shared: int = 0


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
    plain: bool = False,
    prompts: bool = False,
    mapping: Mapping | None = None,
) -> list[XRow]:
    """Show some rows as tokens: by number, or the first, longest, shortest or random ones.

    Args:
        tokenizer: transformers' tokenizer, or a `Backend`.
        rows: Row numbers from 1.
        pick: Which `count` rows when none are named.
        prompts: Show rows that end with a question too, as GRPO reads them.
        plain: Show preferences as `train.loss=sft` reads them, not as pairs and judged answers.
        mapping: How rows are read; guessed when absent.

    Raises:
        DataError: The dataset cannot be used, or has no such row.
    """
    first = max([*(rows or ()), count, SAMPLE_ROWS]) if rows or pick == "first" else 0
    origin, template = find(source, home, first=first), choose_for(tokenizer, source)
    guess = guess_origin(origin, source, mapping)
    is_text = origin.plain and guess.mapping.format == "text"
    examples = None
    if is_text or (rows is None and pick != "first"):
        whole = source.model_copy(update={"judged": "good"})
        made = prepare(
            whole, tokenizer, context_length=context_length, seed=seed, home=home, split=False
        )
        assert isinstance(made.train, Examples)
        examples = made.train
    if is_text:
        assert examples is not None
        if rows and any(not 1 <= number <= len(examples) for number in rows):
            raise DataError(f"{source.path} has no window {max(rows):,}.")
        places = _picked(examples, pick, count, seed) if rows is None else [n - 1 for n in rows]
        return [_window(at + 1, examples[at], template) for at in places]
    if rows is not None:
        wanted = rows
    elif examples is None:
        wanted = [*range(1, count + 1)]
    else:
        places = _picked(examples, pick, 50 * count if pick != "random" else count, seed)
        numbers = (int(examples.tokens.rows[at]) for at in places)
        wanted = list(dict.fromkeys(numbers))[:count]  # a document's windows share one row
    limit = row_limit(source, context_length)
    convert: Callable[[Row], Any]
    if prompts or plain:
        convert = (prompt_converter if prompts else converter)(guess.mapping)
    else:
        convert = record_converter(guess.mapping, pairs=source.pairs, margin=source.margin)
    found: dict[int, list[XRow]] = {}
    for number, item in _read_rows(origin, set(wanted)):
        row = convert(item) if isinstance(item, Row) else item
        found[number] = [*_sides(number, item.line, row, source, template, limit)]
    absent = [number for number in wanted if number not in found]
    if absent and (rows is not None or examples is not None):
        raise DataError(f"{origin.name} has no row {absent[0]:,}.")
    return [row for number in wanted for row in found.get(number, ())]


def first_xrays(spec: RunSpec, home: Home | None, count: int) -> list[XRow]:
    """Return the first rows of a run as its trainer sees them, of pairs both sides; see `xray`.

    Raises:
        StudioError: The model or dataset is not on this machine, or cannot be used.
    """
    if why := absent(spec, home):
        raise DataError(why)
    seen = lens(spec.model, home)
    limit = max(1, seen.context_length - spec.method.num_tokens_before)
    count += count % 2 if spec.train.rows == "pairs" else 0
    return xray(
        spec.data, seen.backend, context_length=limit, count=count, home=home,
        plain=spec.train.rows not in ("pairs", "judged"), prompts=spec.train.loss == "grpo",
    )[:count]  # fmt: skip


class Measured(Frozen):
    """A dataset on a model, and a run with the usual settings on it.

    `padding_share` is what padding would add to the tokens of a batch; packing adds nothing.
    `seconds` is an estimate for that run on this machine's device, 0 if there is none.
    """

    report: TokenReport
    steps: int = 0
    epochs: float = 0
    rows_per_step: int = 0
    padding_share: float = 0.0
    seconds: float = 0.0


def is_measured(model: ModelSource, data: DataSource, home: Home) -> bool:
    """Return True if `measured` would answer from the cache."""
    backend, context_length = lens(model, home)
    return is_prepared(data, backend, context_length=context_length, home=home)


def measured(model: ModelSource, data: DataSource, home: Home) -> Measured:
    """Tokenise a dataset for a model, or read the tokens from the cache.

    Raises:
        StudioError: The model or the data cannot be used, or no token would be trained.
    """
    from studio.training.estimate_memory_and_time import estimate
    from studio.training.steps_and_learning_rate import plan_run

    spec = RunSpec(model=model, data=data)
    backend, context_length = lens(model, home)
    made = prepare(data, backend, context_length=context_length, seed=spec.seed, home=home)
    if not isinstance(made.train, Examples) or not len(made.train):
        raise DataError(f"{data.path} leaves no row to train on.")
    plan = plan_run(spec, num_rows=len(made.train), hidden_size=1)
    lengths = made.train.tokens.lengths()[made.train.order]
    return Measured(
        report=made.report,
        steps=plan.total_steps,
        epochs=spec.train.num_train_epochs,
        rows_per_step=plan.rows_per_step,
        padding_share=padding_share(lengths, plan.micro_batch, seed=spec.seed),
        seconds=estimate(spec, home).seconds,
    )


def padding_share(lengths: NDArray[np.int64], rows: int, *, seed: int) -> float:
    """Return for the X-ray's statistics the share of padding in shuffled batches of `rows`."""
    shuffled = np.random.default_rng(seed).permutation(lengths)
    full = len(shuffled) // rows * rows
    rest = shuffled[full:]
    padded = int(shuffled[:full].reshape(-1, rows).max(axis=1, initial=0).sum()) * rows
    padded += int(rest.max(initial=0)) * len(rest)
    return 1 - int(lengths.sum()) / max(1, padded)


def _read_rows(origin: Origin, numbers: set[int]) -> Iterator[tuple[int, Row | Problem]]:
    if origin.pick is not None:
        yield from origin.pick(sorted(numbers))
        return
    last = max(numbers, default=0)
    for number, item in enumerate(origin.rows(), 1):
        if number in numbers:
            yield number, item
        if number >= last:
            return


def _picked(examples: Examples, pick: Pick, count: int, seed: int) -> list[int]:
    """Return the places of examples in the order in which they are shown."""
    tokens = examples.tokens
    if pick == "first":
        return list(range(min(count, len(tokens))))
    if pick == "random":
        sampled = random.Random(seed).sample(range(len(tokens)), min(count, len(tokens)))
        return sorted(sampled)
    lengths = -tokens.whole if pick == "longest" else tokens.whole
    return [int(at) for at in np.lexsort((tokens.rows, lengths))[:count]]


def _window(number: int, example: Example, template: Template) -> XRow:
    """Show a window of plain text that the loop gets."""
    encoded = Encoded(example.input_ids, example.labels >= 0)
    return _shown(number, example.row, encoded, None, template)


def _sides(
    number: int, line: int, made: Any, source: DataSource, template: Template, limit: int
) -> Iterator[XRow]:
    """Yield the views of all that a row became, a pair's sides with the tokens that they share."""
    for record in made if isinstance(made, list) else [made]:
        if not isinstance(record, Pair | Judged):
            yield from _encoded_rows(number, line, record, source, template, limit)
            continue
        answers: dict[Side, Conversation] = {"good" if record[1] else "bad": record[0]}
        if isinstance(record, Pair):
            answers = {"chosen": record.chosen, "rejected": record.rejected}
        batch = template.encode_batch([*answers.values()], trained_on(source, "pairs"))
        last = {view.source: at for at, view in enumerate(batch.views)}  # with the last answer
        whole = [batch.row(last[at]) for at in range(len(answers))]
        encoded = [one for one in whole if isinstance(one, Encoded)]
        if problem := next((one for one in whole if isinstance(one, Problem)), None):
            yield XRow(row=number, line=line, problem=problem.text)
            continue
        lead = template.num_lead_tokens(encoded[0].ids)
        cuts = fit_alike(encoded, limit=limit, num_lead_tokens=lead)
        shared = num_equal(*(one.ids.tolist() for one in encoded)) if len(answers) > 1 else 0
        for at, (side, one, cut) in enumerate(zip(answers, encoded, cuts, strict=True)):
            row = _shown(number, line, one, cut.places, template)
            lost = _lost_of(batch.views[last[at]], one)
            yield row.model_copy(update={"side": side, "shared": shared, "lost": lost})


def _encoded_rows(
    number: int,
    line: int,
    made: Conversation | Document | Problem,
    source: DataSource,
    template: Template,
    limit: int,
) -> list[XRow]:
    if isinstance(made, Problem):
        return [XRow(row=number, line=line, problem=made.text)]
    batch = template.encode_batch([made], source.train_on)
    shown: list[XRow] = []
    for at, view in enumerate(batch.views):
        encoded = batch.row(at)
        if isinstance(encoded, Problem):
            lost = tuple(_lost(view, [], 0))
            shown.append(XRow(row=number, line=line, problem=encoded.text, lost=lost))
            continue
        kept = None  # a long document becomes several windows, nothing is lost
        if isinstance(made, Conversation) or not encoded.trained.all():
            lead = template.num_lead_tokens(encoded.ids)
            kept = fit(encoded, limit=limit, num_lead_tokens=lead).places
        row = _shown(number, line, encoded, kept, template)
        lost = _lost_of(view, encoded)
        shown.append(
            row.model_copy(
                update={"lost": lost, "part": view.part + 1, "num_parts": view.num_parts}
            )
        )
    return shown


def _lost_of(view: View, encoded: Encoded) -> tuple[LostPart, ...]:
    stops = np.flatnonzero(np.diff(encoded.trained, prepend=False).astype(int) > 0)
    return tuple(_lost(view, stops.tolist(), len(encoded.ids)))


def _lost(view: View, answers: list[int], num_tokens: int) -> Iterator[LostPart]:
    """Yield what a view lost, each part before the answer that it is missing from or precedes."""
    messages = view.row.messages if isinstance(view.row, Conversation) else []
    for part in view.lost:
        before = [i for i, m in enumerate(messages[: part.message]) if m["role"] == "assistant"]
        at = answers[len(before)] if len(before) < len(answers) else num_tokens
        at = 0 if part.message <= 0 else at
        yield LostPart(message=part.message + 1, kind=part.kind, text=part.text, before=at)


def _shown(
    number: int, line: int, encoded: Encoded, kept: NDArray[np.int64] | None, template: Template
) -> XRow:
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
    return XRow(
        row=number,
        line=line,
        tokens=tuple(
            Token(id=i, text=text, state=state, special=template.is_special(i))
            for i, text, state in zip(ids, texts, states, strict=False)
        ),
        text=core.decode(ids, skip_special_tokens=False),
        num_tokens=len(ids),
        num_trained=states.count("trained"),
        num_truncated=states.count("truncated"),
        weights=tuple(_weighed(encoded)),
    )


def _weighed(encoded: Encoded) -> Iterator[Weighed]:
    if encoded.weights is None:
        return
    edges = np.flatnonzero(np.diff(encoded.weights, prepend=1, append=1))
    for start, stop in pairwise(edges.tolist()):
        if (weight := float(encoded.weights[start])) != 1:
            yield Weighed(start=start, stop=stop, weight=round(weight, 6))


def _texts(core: Any, ids: list[int]) -> list[str]:
    """Return what each token adds to the text before it; bytes of one character come together."""
    growing = Detokenizer(
        SimpleNamespace(decode=lambda some, **_: core.decode(some, skip_special_tokens=False))
    )
    texts = [growing.add(token) for token in ids]
    return [*texts[:-1], texts[-1] + growing.flush()] if texts else []
