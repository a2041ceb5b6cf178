"""The report: what was read, kept and dropped, and what the tokens look like. JSON-able."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from studio.data.records import Problem, Tally

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOW_SHARE = 0.05
MAX_LISTED = 1000


class ProblemLine(BaseModel):
    """One dropped row."""

    model_config = ConfigDict(frozen=True)
    line: int
    kind: str
    text: str
    file: str = ""


class Histogram(BaseModel):
    """Rows by token length: `counts[i]` rows lie in `edges[i] <= length < edges[i + 1]`."""

    model_config = ConfigDict(frozen=True)
    edges: list[int] = [0, 1]
    counts: list[int] = [0]


class Report(BaseModel):
    """Everything worth knowing about a dataset on a model, before anything trains."""

    model_config = ConfigDict(frozen=True)
    name: str = ""
    read: int = 0
    kept: int = 0
    dropped: int = 0
    problems: list[ProblemLine] = []
    problem_counts: dict[str, int] = {}
    warnings: list[str] = []
    format: str = ""
    reason: str = ""
    mapping: dict[str, str] = {}
    template: str = ""
    template_reason: str = ""
    examples: int = 0
    train_examples: int = 0
    validation_examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    trained_token_share: float = 0.0
    truncated: int = 0
    truncated_start: int = 0
    truncated_tokens: int = 0
    limit: int = 0
    context_length: int = 0
    longest: int = 0
    length_histogram: Histogram = Histogram()
    duplicates: int = 0
    empty_answers: int = 0
    open_ended: int = 0
    overlap: int = 0  # held-out rows that are among the training rows, token for token


def listed(tally: Tally, files: Sequence[str] = ()) -> list[ProblemLine]:
    """Return the first problems as the report shows them."""
    return [
        ProblemLine(line=p.line, kind=p.kind, text=p.text, file=files[i] if i < len(files) else "")
        for i, p in enumerate(tally.problems[:MAX_LISTED])
    ]


def histogram(lengths: NDArray[np.int64], *, num_bins: int = 24) -> Histogram:
    """Count rows by length in equal steps from 0 to the longest."""
    if len(lengths) == 0:
        return Histogram()
    step = max(1, -(-(int(lengths.max()) + 1) // num_bins))
    counts = np.bincount(lengths // step, minlength=1)
    return Histogram(edges=[i * step for i in range(len(counts) + 1)], counts=counts.tolist())


def why_nothing(name: str, read: int, problems: Sequence[Problem], counts: dict[str, int]) -> str:
    """Return the sentence for a dataset without one usable row."""
    if read == 0:
        return f"{name} holds no rows."
    first = problems[0]
    most = Counter(counts).most_common(1)[0]
    example = next((p for p in problems if p.kind == most[0]), first)
    share = "every one" if most[1] == read else f"{most[1]:,} of them"
    return (
        f"None of the {read:,} rows of {name} can be used; {share} for this reason: "
        f"{example.text.rstrip('.')} (first at line {example.line:,})."
    )
