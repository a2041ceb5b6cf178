"""Prompt suites: answer the same prompts with several lanes as a job, and score the answers.

A case is a prompt, with an expected answer, or a regular expression or a JSON schema that a good
answer matches, where there is one. Answers are written as they come, so a suite that was stopped or
killed resumes. A pattern has a time limit: catastrophic backtracking costs a second, not the job.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import model_validator

from studio import atomic
from studio.adapter_stack import MAX_LANES
from studio.chat.checkpoint_adapters import base_of_lane, same_revisions
from studio.chat.lanes import Delta, Lane, LaneSettings, Message
from studio.data.column_mapping import as_text
from studio.data.conversation_records import Conversation, Dropped, Problem, Row
from studio.data.readers import FORMATS, look, read
from studio.data.readers.compression_and_encoding import Opened, utf8_chunks
from studio.data.recognise_format import SAMPLE_ROWS, recognise
from studio.data.row_converters import prompt_converter
from studio.errors import ChatError, DataError
from studio.evaluation.scores_and_gates import (
    COMPARING,
    last_number,
    match_pattern,
    pattern_fault,
    schema_fault,
    scorers,
)
from studio.fields import Record, knob
from studio.home import Home
from studio.job_request import Control, Request
from studio.models.find_model import facts
from studio.training.training_events import Event, Finished, Loading, Working

RESULTS = "suite.jsonl"
MAX_CASES = 2000
EXPECTED = frozenset(("expected", "pattern", "json_schema", "completion"))
"""Columns beside `prompt` that say what a good answer is."""
NO_QUESTION = "It ends without a question or an answer to one."
SCORES = ("exact_match", "rouge_l", "contains", "number", "pattern", "json", "json_schema")
MEASURES = ("tokens", "tokens_per_second", "first_token_seconds", "seconds")
FIGURES = {
    "exact_match": ("Exact", "share", "Answers equal to the expected one"),
    "rouge_l": ("ROUGE-L", "share", "Words in common with the expected answer, in its order"),
    "contains": ("Contains", "share", "Answers that contain the words of the expected one"),
    "number": ("Number", "share", "Answers whose last number is that of the expected one"),
    "pattern": ("Pattern", "share", "Answers that the regular expression matches"),
    "json": ("JSON", "share", "Answers that are valid JSON"),
    "json_schema": ("Schema", "share", "Answers that fit the JSON schema"),
    "tokens": ("Tokens", "", "Mean length of an answer"),
    "tokens_per_second": ("tok/s", "", "Tokens per second of an answer"),
    "first_token_seconds": ("First token", "s", "Time until an answer begins"),
    "errors": ("Errors", "", "Answers that failed"),
}
"""Title, unit and meaning of the means that pages show."""


class Case(Record):
    """One prompt of a suite."""

    prompt: str = knob("", "The prompt.", min_length=1, max_length=100_000)
    expected: str | None = knob(None, "The expected answer.", max_length=100_000)
    pattern: str | None = knob(
        None, "A regular expression that a good answer matches.", max_length=2000
    )
    json_schema: str | None = knob(
        None, "A JSON schema that a good answer fits.", max_length=20_000
    )
    before: tuple[Message, ...] = knob((), "Turns before the prompt.")
    tools: tuple[dict[str, Any], ...] = knob((), "Tools that the model may call.")

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        if why := pattern_fault(self.pattern or "") or schema_fault(self.json_schema or "true"):
            raise ValueError(why)
        return self


class SuiteRequest(Request):
    """Answer every case with every lane."""

    kind: ClassVar[str] = "suite"
    lanes: tuple[LaneSettings, ...] = knob(
        (), "Lanes to compare.", min_length=1, max_length=MAX_LANES
    )
    cases: tuple[Case, ...] = knob((), "Prompts.", min_length=1, max_length=MAX_CASES)
    device: str = knob("auto", "auto, cpu, cuda:0 …", advanced=True)

    def checked(self, home: Home) -> Self:
        """Refuse lanes whose model or adapter does not exist."""
        check_lanes(home, self.lanes)
        return self

    def perform(
        self, home: Home, run_dir: Path, control: Control = lambda: None
    ) -> Iterator[Event]:
        """Answer case by case and append each to `suite.jsonl`."""
        from studio.chat.resident_models import ResidentModels

        yield Loading(text="Loading the models")
        residents = ResidentModels(home, device=self.device)

        def answered(number: int) -> dict[str, Any]:
            return self._row(number, residents.stream)

        run_dir.mkdir(parents=True, exist_ok=True)
        yield from resumed(run_dir / RESULTS, len(self.cases), answered, control, what="Prompt")

    def _row(
        self, number: int, stream: Callable[[Sequence[Lane]], Iterator[Delta]]
    ) -> dict[str, Any]:
        case = self.cases[number]
        lanes = [lane.with_prompt(case.prompt, case.before, case.tools) for lane in self.lanes]
        texts, thoughts, ends = [""] * len(lanes), [""] * len(lanes), dict[int, Delta]()
        for delta in stream(lanes):
            texts[delta.lane] += delta.part("text", "call")
            thoughts[delta.lane] += delta.part("thought")
            if delta.done:
                ends[delta.lane] = delta
        answers = [
            _answer(case, text.strip(), ends[place]) | {"thought": thoughts[place].strip()}
            for place, text in enumerate(texts)
        ]
        return {**case.model_dump(mode="json"), "case": number, "answers": answers}


def _answer(case: Case, text: str, end: Delta) -> dict[str, Any]:
    scores: dict[str, float | None] = dict.fromkeys(SCORES)
    error = end.error.text if end.error else None
    if error is None:
        expected = case.expected or ""
        chosen = {"json"} | ({"json_schema"} if case.json_schema else set())
        if case.expected is not None:
            chosen |= {*COMPARING} - ({"number"} if last_number(expected) is None else set())
        for name, of in scorers(sorted(chosen), schema=case.json_schema or "").items():
            scores[name] = of(text, expected)
        if case.pattern is not None:
            scores["pattern"], error = match_pattern(case.pattern, text)
    figures = {name: round(float(getattr(end.stats, name)), 4) for name in MEASURES}
    return {"text": text, "reason": end.reason, "error": error, **scores, **figures}


def check_lanes(home: Home, lanes: Sequence[LaneSettings]) -> None:
    """Check that the lanes' models and adapters are there.

    Raises:
        StudioError: One of them is not.
    """
    bases = {number: base_of_lane(home, lane) for number, lane in enumerate(lanes)}
    for base in same_revisions(bases, lanes).values():
        facts(base)


def read_results(run_dir: Path) -> list[dict[str, Any]]:
    """Return the complete rows."""
    return lines_of(run_dir / RESULTS)


def lines_of(file: Path) -> list[Any]:
    """Return the rows of a file that is written line by line, without one that is cut off."""
    try:
        lines = file.read_bytes().split(b"\n")  # a kill may cut a character in the last one
    except OSError:
        return []
    return [json.loads(line) for line in lines[:-1]]


def write_lines(file: Path, rows: Iterable[Any]) -> Path:
    """Write rows that `lines_of` reads, atomically; return the file, to append more."""
    atomic.write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def resumed(
    file: Path, total: int, row_of: Callable[[int], Any], control: Control, *, what: str,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Event]:  # fmt: skip
    """Append the rows that a file lacks, one by one, and yield how far it is.

    Each row is flushed when it is made, so that a job that was killed or stopped resumes.

    Args:
        file: Its rows so far are kept, without one that is cut off.
        what: Name of a row for the user.
        check: Called when a row is written; may raise.
    """
    rows = lines_of(file)[:total]
    with write_lines(file, rows).open("a", encoding="utf-8") as out:
        for number in range(len(rows), total):
            yield Working(step=number, total_steps=total, text=f"{what} {number + 1} of {total}")
            if control() == "stop":
                yield Finished(step=number, reason="stopped")
                return
            out.write(json.dumps(row_of(number), ensure_ascii=False) + "\n")
            out.flush()
            check()
    yield Finished(step=total)


def summarise(lanes: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of every score and measure by lane, and the wins of each lane over others.

    A lane wins a case when its pattern, schema or exact match is better, or, where these are equal,
    its ROUGE-L. Cases without an expectation count for no lane.
    """
    table = []
    for place, lane in enumerate(lanes):
        answers = [row["answers"][place] for row in rows]
        errors = sum(a["error"] is not None for a in answers)
        means: dict[str, Any] = {"lane": lane, "errors": errors}
        for name in (*SCORES, *MEASURES):
            known = [a[name] for a in answers
                     if a.get(name) is not None and a["reason"] != "error"]  # fmt: skip
            means[name] = round(mean(known), 4) if known else None
        table.append(means)
    wins = [[0.0] * len(lanes) for _ in lanes]
    for row in rows:
        qualities = [_quality(answer) for answer in row["answers"]]
        if all(row.get(name) is None for name in ("expected", "pattern", "json_schema")):
            continue
        for a, mine in enumerate(qualities):
            for b, other in enumerate(qualities):
                if a != b:
                    wins[a][b] += 1.0 if mine > other else 0.5 if mine == other else 0.0
    return {"lanes": list(lanes), "means": table, "wins": wins, "cases": len(rows)}


def _quality(answer: dict[str, Any]) -> tuple[float, float]:
    known = (answer.get(name) for name in ("pattern", "json_schema", "exact_match"))
    return next((one for one in known if one is not None), 0.0), answer["rouge_l"] or 0.0


# -- reading ---------------------------------------------------------------------------------------


def parse_cases(text: str) -> list[dict[str, Any]]:
    """Parse cases: one prompt or one JSON object per line.

    `prompt => answer` gives the expected answer, `prompt =~ pattern` a regular expression. A JSON
    object has `prompt` with `expected`, `pattern` or `json_schema`, or `messages`: their last
    question is asked after the turns before it, and an answer to it is expected.

    Raises:
        ChatError: A line is invalid; gives its number.
    """
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    cases = [_parse_case(line, number) for number, line in lines]
    for (number, _), case in zip(lines, cases, strict=True):
        if why := pattern_fault(case.get("pattern") or ""):
            raise ChatError(f"Line {number} cannot be used: {why}.")
    return _counted(cases)


def _counted(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not cases:
        raise ChatError("The suite has no prompts: write one per line.")
    if len(cases) > MAX_CASES:
        raise ChatError(f"The suite has too many prompts; use at most {MAX_CASES:,}.")
    return cases


class Cases(NamedTuple):
    """The cases of a file, and its rows that are none, as line and reason."""

    cases: list[dict[str, Any]]
    left_out: list[dict[str, Any]]


def read_cases(path: Path) -> Cases:
    """Read a file of cases: lines as `parse_cases` takes them, or rows of any data file.

    Rows with `prompt` and what is expected of the answer are cases as they are; of others the
    columns are recognised as those of a dataset are, and the last answer is the expected one.

    Raises:
        ChatError: It cannot be read, or holds no prompts.
    """
    try:
        opened = look(path)
        first = next((row.values for row in read(opened) if isinstance(row, Row)), {})
        own = "prompt" in first and (len(first) == 1 or not EXPECTED.isdisjoint(first))
        lines = opened.format == "jsonl" and (own or "messages" in first or not first)
        if FORMATS[opened.format].plain or lines:
            text = b"".join(utf8_chunks(opened)).decode(errors="replace")
            if "\x00" in text:
                raise ChatError("It holds binary data, not text.")
            return Cases(parse_cases(text), [])
        return _read_table(opened, own=own)
    except (ChatError, DataError) as error:
        named = "" if path.name in error.text else f"{path.name}: "
        raise ChatError(f"{named}{error.text}") from None


def _read_table(opened: Opened, *, own: bool) -> Cases:
    """Return the cases of a table's rows; `own` if its columns are named like the parts of one."""
    made: Callable[[Row], Any] = _case_of_row
    if not own:
        rows = islice((one for one in read(opened) if isinstance(one, Row)), SAMPLE_ROWS)
        made = prompt_converter(recognise(list(rows)).mapping)
    cases: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for row in read(opened):
        found = row if isinstance(row, Problem) else made(row)
        if isinstance(found, Conversation):
            with suppress(TypeError, ValueError):  # it asks nothing
                found = _case({"messages": found.messages, "tools": found.tools})
        if isinstance(found, dict):
            cases.append(found)
            if len(cases) > MAX_CASES:
                break
        else:
            left_out.append({"line": row.line, "text": getattr(found, "text", NO_QUESTION)})
    return Cases(_counted(cases), left_out)


def _case_of_row(row: Row) -> dict[str, Any] | Problem:
    """Return the case of a row whose columns are named like its parts."""
    texts = {"prompt", *EXPECTED} - {"json_schema"}
    try:
        own = {key: as_text(one, key) if key in texts else one for key, one in row.values.items()}
    except Dropped as dropped:
        return Problem(row.line, dropped.kind, dropped.text)
    if not own["prompt"].strip():
        return Problem(row.line, "empty_prompt", '"prompt" is empty.')
    return _case({key: one for key, one in own.items() if one != ""})


def _parse_case(line: str, number: int) -> dict[str, Any]:
    if not line.startswith("{"):
        prompt, matches, pattern = line.partition(" =~ ")
        if matches:
            return {"prompt": prompt.strip(), "pattern": pattern.strip()}
        prompt, arrow, answer = line.partition(" => ")
        return {"prompt": prompt.strip(), "expected": answer.strip() if arrow else None}
    try:
        return _case(json.loads(line))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise ChatError(
            f"Line {number} is not a case: write a prompt, an object with prompt and expected, or "
            "one with messages that end with a question or its answer."
        ) from None


def _case(values: dict[str, Any]) -> dict[str, Any]:
    """Return the case of an object.

    Raises:
        TypeError: It has no prompt; other exceptions where its parts are of other types.
    """
    case = {key: values.get(key) for key in ("prompt", "expected", "pattern")}
    if case["expected"] in (None, ""):
        case["expected"] = values.get("completion")
    if isinstance(case["expected"], int | float):
        case["expected"] = as_text(case["expected"], "expected")
    if schema := values.get("json_schema"):
        case["json_schema"] = schema if isinstance(schema, str) else json.dumps(schema)
    if turns := [_turn(one) for one in values.get("messages") or values.get("before") or ()]:
        if "messages" in values:
            if turns[-1].role == "assistant":
                case["expected"] = turns.pop().content or None
            if turns[-1].role != "user":
                raise TypeError
            case["prompt"] = turns.pop().content
        case["before"] = [turn.turn() for turn in turns]
    if tools := values.get("tools"):
        case["tools"] = tools
    if not isinstance(case["prompt"], str):
        raise TypeError
    return {key: value for key, value in case.items() if value not in (None, [])}


def _turn(message: dict[str, Any]) -> Message:
    """Return a turn of a row; what only training reads, such as its weight, is left out."""
    known = {key: message[key] for key in Message.model_fields if message.get(key)}
    return Message.model_validate(known)
