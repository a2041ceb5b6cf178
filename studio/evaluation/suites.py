"""Prompt suites: the same prompts to several lanes as a job, with a table of scores at the end.

A case is a prompt and, where there is one, the expected answer or a regular expression that a good
answer matches. Answers are written as they come, so a suite that was stopped or killed goes on
where it was. A pattern has a time limit: one that backtracks forever costs a second, not the job.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator

from studio.chat.lanes import Lane, Message, Sampling
from studio.errors import ChatError, StudioError
from studio.evaluation.metrics import exact_match, rouge_l, valid_json
from studio.fields import Record, knob, validated
from studio.home import Home
from studio.stack import MAX_LANES, Stack, write_lane
from studio.training.events import Event, Finished, Loading, Working

if TYPE_CHECKING:
    from studio.chat.lanes import Delta

RESULTS = "suite.jsonl"
MOST_CASES = 2000
PATTERN_SECONDS = 1.0
SCORES = ("exact_match", "rouge_l", "pattern", "json")
MEASURES = ("tokens", "tokens_per_second", "first_token_seconds", "seconds")


class Case(Record):
    """One prompt of a suite."""

    prompt: str = knob("", "What is asked.", min_length=1, max_length=100_000)
    expected: str | None = knob(None, "The answer that is wanted.", max_length=100_000)
    pattern: str | None = knob(
        None, "A regular expression found in a good answer.", max_length=2000
    )

    @model_validator(mode="after")
    def _pattern_is_one(self) -> Self:
        import regex

        try:
            regex.compile(self.pattern or "")
        except regex.error as error:
            raise ValueError(f'"{self.pattern}" is no regular expression: {error}') from None
        return self


class SuiteLane(Record):
    """Who answers: as a lane of Compare, without a conversation."""

    model: str = knob("starter", "A folder, a hub id, or the embedded starter.", min_length=1)
    stack: Stack = knob((), "Adapters in order.")
    system: str = knob("", "What the model is told first.", max_length=100_000)
    sampling: Sampling = Sampling()

    @property
    def name(self) -> str:
        """How the lane is written in a page's address."""
        return write_lane(self.model, self.stack)

    def asked(self, prompt: str) -> Lane:
        """Return the lane with a question."""
        return Lane(
            model=self.model, stack=self.stack, system=self.system, sampling=self.sampling,
            messages=(Message(role="user", content=prompt),),
        )  # fmt: skip


class SuiteRequest(Record):
    """Ask every case of every lane."""

    name: str = knob("", "What to call the suite.", title="Name", max_length=120)
    lanes: tuple[SuiteLane, ...] = knob((), "Who answers.", min_length=1, max_length=MAX_LANES)
    cases: tuple[Case, ...] = knob((), "What is asked.", min_length=1, max_length=MOST_CASES)
    device: str = knob("auto", "auto, cpu, cuda:0 …", advanced=True)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Validate plain values or raise one SpecError."""
        return validated(cls, values)

    def checked(self, home: Home) -> Self:
        """Return the request as the queue stores it.

        Raises:
            StudioError: A model or an adapter does not exist.
        """
        from studio.adapters.library import resolve
        from studio.chat.run_checkpoints import is_checkpoint
        from studio.models.sources import facts
        from studio.spec import ModelSource

        for lane in self.lanes:
            facts(ModelSource(path=lane.model))
            for part in lane.stack:
                if not is_checkpoint(home, part.name):
                    resolve(home, part.name)
        return self

    def perform(
        self, home: Home, run_dir: Path, control: Callable[[], str | None] = lambda: None
    ) -> Iterator[Event]:
        """Answer case by case and keep each in `suite.jsonl`."""
        from studio.chat.residents import Residents

        started, total = time.monotonic(), len(self.cases)
        yield Loading(text="Loading the models")
        residents = Residents(home, device=self.device)
        run_dir.mkdir(parents=True, exist_ok=True)
        rows = read_results(run_dir)
        with (run_dir / RESULTS).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            for number in range(len(rows), total):
                text = f"Prompt {number + 1} of {total}"
                yield Working(step=number, total_steps=total, text=text)
                if control() == "stop":
                    seconds = time.monotonic() - started
                    yield Finished(step=number, reason="stopped", seconds=seconds)
                    return
                row = self._row(number, residents.stream)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
        yield Finished(step=total, seconds=time.monotonic() - started)

    def _row(
        self, number: int, stream: Callable[[Sequence[Lane]], Iterator[Delta]]
    ) -> dict[str, Any]:
        case = self.cases[number]
        lanes = [lane.asked(case.prompt) for lane in self.lanes]
        texts, ends = [""] * len(lanes), [None] * len(lanes)
        for delta in stream(lanes):
            texts[delta.lane] += delta.text
            if delta.done:
                ends[delta.lane] = delta  # type: ignore[call-overload]
        answers = [_answer(case, text, end) for text, end in zip(texts, ends, strict=True)]
        return {**case.model_dump(), "case": number, "answers": answers}


def _answer(case: Case, text: str, end: Any) -> dict[str, Any]:
    scores: dict[str, float | None] = dict.fromkeys(SCORES)
    error = end.error.text if end.error else None
    if error is None:
        scores["json"] = valid_json(text, "")
        if case.expected is not None:
            scores["exact_match"] = exact_match(text, case.expected)
            scores["rouge_l"] = rouge_l(text, case.expected)
        if case.pattern is not None:
            scores["pattern"], error = match(case.pattern, text)
    figures = {name: round(float(getattr(end.stats, name)), 4) for name in MEASURES}
    return {"text": text, "reason": end.reason, "error": error, **scores, **figures}


def match(
    pattern: str, text: str, *, seconds: float = PATTERN_SECONDS
) -> tuple[float | None, str | None]:
    """Return whether the pattern is in the text, or why that is not known."""
    import regex

    try:
        return float(regex.search(pattern, text, timeout=seconds) is not None), None
    except TimeoutError:
        return None, f"The pattern took longer than {seconds:g} s on this answer."


def read_results(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows that are there, whole ones only."""
    rows = []
    try:
        lines = (run_dir / RESULTS).read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return []
    for line in lines:
        if not line.endswith("\n"):
            break
        rows.append(json.loads(line))
    return rows


def summarise(lanes: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of every score and measure by lane, and who beat whom how often.

    A lane beats another on a case when its pattern or exact match is better, or, where these are
    equal, its ROUGE-L. Cases without an expectation beat nobody.
    """
    table: list[dict[str, Any]] = []
    for place, lane in enumerate(lanes):
        answers = [row["answers"][place] for row in rows]
        means: dict[str, Any] = {
            "lane": lane,
            "errors": sum(a["error"] is not None for a in answers),
        }
        for name in (*SCORES, *MEASURES):
            known = [a[name] for a in answers if a[name] is not None and a["reason"] != "error"]
            means[name] = round(mean(known), 4) if known else None
        table.append(means)
    wins = [[0.0] * len(lanes) for _ in lanes]
    for row in rows:
        qualities = [_quality(answer) for answer in row["answers"]]
        if row["expected"] is None and row["pattern"] is None:
            continue
        for a, ours in enumerate(qualities):
            for b, theirs in enumerate(qualities):
                if a != b:
                    wins[a][b] += 1.0 if ours > theirs else 0.5 if ours == theirs else 0.0
    return {"lanes": list(lanes), "means": table, "wins": wins, "cases": len(rows)}


def _quality(answer: dict[str, Any]) -> tuple[float, float]:
    first = answer["pattern"] if answer["pattern"] is not None else answer["exact_match"]
    return (first or 0.0, answer["rouge_l"] or 0.0)


# -- reading ---------------------------------------------------------------------------------------


def parse_cases(text: str) -> list[dict[str, Any]]:
    """Read cases a person wrote: one prompt a line, or one JSON object a line.

    `prompt => answer` gives the expected answer, `prompt =~ pattern` a regular expression. A JSON
    object has `prompt` with `expected` or `pattern`, or `messages` whose last turn is expected.

    Raises:
        ChatError: A line cannot be read; names it.
    """
    cases: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line:
            continue
        if line.startswith("{"):
            cases.append(_case_of(line, number))
        elif " =~ " in line:
            prompt, _, pattern = line.partition(" =~ ")
            cases.append({"prompt": prompt.strip(), "pattern": pattern.strip()})
        else:
            prompt, arrow, expected = line.partition(" => ")
            cases.append(
                {"prompt": prompt.strip(), "expected": expected.strip() if arrow else None}
            )
    if not cases:
        raise ChatError("The suite has no prompts: write one a line.")
    if len(cases) > MOST_CASES:
        raise ChatError(f"The suite has {len(cases):,} prompts; at most {MOST_CASES:,} are asked.")
    return cases


def read_cases(path: Path) -> list[dict[str, Any]]:
    """Read a file of cases; see `parse_cases`.

    Raises:
        ChatError: It cannot be read as text.
    """
    try:
        return parse_cases(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ChatError(f"{path} cannot be read ({why}).") from None
    except ChatError as error:
        raise ChatError(f"{path.name}: {error.text}") from None


def _case_of(line: str, number: int) -> dict[str, Any]:
    try:
        values = json.loads(line)
        if "messages" in values:
            turns = [turn for turn in values["messages"] if turn["role"] in ("user", "assistant")]
            expected = turns[-1]["content"] if turns[-1]["role"] == "assistant" else None
            prompt = next(turn["content"] for turn in reversed(turns) if turn["role"] == "user")
            return {"prompt": prompt, "expected": expected}
        known = {key: values.get(key) for key in ("prompt", "expected", "pattern")}
        known["expected"] = known["expected"] or values.get("completion")
        if not isinstance(known["prompt"], str):
            raise KeyError
        return known
    except (ValueError, KeyError, TypeError, IndexError, StopIteration, StudioError):
        raise ChatError(
            f"Line {number} is no case: write a prompt, or an object with prompt and expected."
        ) from None
