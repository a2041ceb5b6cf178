"""Prompt suites: answer the same prompts with several lanes as a job, and score the answers.

A case is a prompt, with an expected answer, or a regular expression or a JSON schema that a good
answer matches, where there is one. Answers are written as they come, so a suite that was stopped or
killed resumes. A pattern has a time limit: catastrophic backtracking costs a second, not the job.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar, Self

from pydantic import model_validator

from studio import atomic
from studio.adapter_stack import MAX_LANES
from studio.adapters.library import resolve
from studio.chat.checkpoint_adapters import find_if_named
from studio.chat.lanes import Delta, Lane, LaneSettings, Message
from studio.errors import ChatError
from studio.evaluation.answer_scores import (
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
from studio.spec import ModelSource
from studio.training.training_events import Event, Finished, Loading, Working

RESULTS = "suite.jsonl"
MAX_CASES = 2000
SCORES = ("exact_match", "rouge_l", "contains", "number", "pattern", "json", "json_schema")
MEASURES = ("tokens", "tokens_per_second", "first_token_seconds", "seconds")


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
        """Return the request as the queue stores it.

        Raises:
            StudioError: A model or an adapter does not exist.
        """
        for lane in self.lanes:
            check_lane(home, lane)
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
        texts, ends = [""] * len(lanes), dict[int, Delta]()
        for delta in stream(lanes):
            texts[delta.lane] += delta.text
            if delta.done:
                ends[delta.lane] = delta
        answers = [_answer(case, text, ends[place]) for place, text in enumerate(texts)]
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


def check_lane(home: Home, lane: LaneSettings) -> None:
    """Check that a lane's model and adapters are there.

    Raises:
        StudioError: One of them is not.
    """
    facts(ModelSource(path=lane.model))
    for part in lane.stack:
        if find_if_named(home, part.name) is None:
            resolve(home, part.name)


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
        total: Number of rows at the end.
        row_of: Makes the row of a number.
        control: Asked before each row.
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
    if not cases:
        raise ChatError("The suite has no prompts: write one per line.")
    if len(cases) > MAX_CASES:
        raise ChatError(f"The suite has {len(cases):,} prompts; use at most {MAX_CASES:,}.")
    return cases


def read_cases(path: Path) -> list[dict[str, Any]]:
    """Read a file of cases; see `parse_cases`.

    Raises:
        ChatError: It cannot be read as text.
    """
    try:
        return parse_cases(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ChatError(f"{path} cannot be read ({why}).") from None
    except ChatError as error:
        raise ChatError(f"{path.name}: {error.text}") from None


def _parse_case(line: str, number: int) -> dict[str, Any]:
    if not line.startswith("{"):
        prompt, matches, pattern = line.partition(" =~ ")
        if matches:
            return {"prompt": prompt.strip(), "pattern": pattern.strip()}
        prompt, arrow, answer = line.partition(" => ")
        return {"prompt": prompt.strip(), "expected": answer.strip() if arrow else None}
    try:
        values = json.loads(line)
        case = {key: values.get(key) for key in ("prompt", "expected", "pattern")}
        case["expected"] = case["expected"] or values.get("completion")
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
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise ChatError(
            f"Line {number} is not a case: write a prompt, an object with prompt and expected, or "
            "one with messages that end with a question or its answer."
        ) from None


def _turn(message: dict[str, Any]) -> Message:
    """Return a turn of a row; what only training reads, such as its weight, is left out."""
    known = {key: message[key] for key in Message.model_fields if message.get(key)}
    return Message.model_validate(known)
