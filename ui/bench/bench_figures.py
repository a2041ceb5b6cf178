"""Figures of a bench: one record, two ways to print them, and progress while they are measured."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ui.cli.terminal_tables import fitted

Figure = dict[str, Any]


def figure(name: str, value: float, unit: str, bar: float = 0, **more: Any) -> Figure:
    """Return one figure of a bench as JSON has it; a bar of 0 means that there is none."""
    return {"name": name, "value": round(value, 5), "unit": unit, "bar": bar, **more}


def figures_text(figures: Iterable[Mapping[str, Any]]) -> str:
    """Return a bench's figures one a line, each with its bar and the best where known."""
    lines = []
    for one in figures:
        digits = 4 if one["unit"] == "s" and one["value"] < 1 else 2
        best = f"  best {one['best']:.2f}" if "best" in one else ""
        bar = f"  (bar {one['bar']:g})" if one["bar"] else ""
        value = f"{one['value']:>9.{digits}f} {one['unit']:<5}"
        lines.append(f"{one['name']:<44} {value}{best}{bar}".rstrip())
    return "\n".join(lines)


def table_text(columns: Sequence[tuple[str, str]], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a bench's rows of figures as text.

    Args:
        columns: Heading and format of each, such as `("Δ loss", "{loss_difference:.1e}")`.
        rows: Named values; `memory` is added in MB, and a row with an `error` is a sentence.
    """
    lines = []
    for row in rows:
        values = {"memory": row.get("peak_bytes", 0) / 1e6, **row}
        used = [*columns[:1], ("", "{error}")] if "error" in row else columns
        lines.append([form.format(**values) for _, form in used])
    return "\n".join(fitted([heading for heading, _ in columns], lines, 10**6))


def steps_of(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return the figures of every step of a peer's rounds: loss and gradient norm."""
    return [step for one in rounds for step in one["steps"]]


def summary(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of a peer: speed, memory, losses; the first round is not timed."""
    speeds = [one["tokens"] / one["seconds"] for one in rounds[1:]]
    steps = steps_of(rounds)
    return {
        "tokens_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "examples_per_second": statistics.median(r["examples"] / r["seconds"] for r in rounds[1:]),
        "seconds_per_step": statistics.median(r["seconds"] / len(r["steps"]) for r in rounds[1:]),
        "peak_bytes": rounds[-1]["peak_bytes"],
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "grad_norm": steps[-1]["grad_norm"],
    }


def differences(ones: list[dict[str, float]], others: list[dict[str, float]]) -> dict[str, float]:
    """Return as figures how far two runs are apart: losses (absolute), norms (relative)."""
    pairs = list(zip(ones, others, strict=True))
    return {
        "loss_difference": max(abs(a["loss"] - b["loss"]) for a, b in pairs),
        "grad_norm_difference": max(
            abs(a["grad_norm"] - b["grad_norm"]) / max(b["grad_norm"], 1e-12) for a, b in pairs
        ),
    }


def progress(text: str) -> None:
    """Print on standard error what the bench measures now."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def round_text(name: str, number: int, rounds: int, seconds_left: float = 0.0) -> str:
    """Return the line on a bench's progress: variant and round; round 0 warms up."""
    text = f"{name}, " + (f"round {number} of {rounds}" if number else "warming up")
    return f"{text}, about {seconds_left:.0f} s left" if seconds_left else text


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long a call takes, in seconds, for a bench's figures."""
    started = clock()
    work()
    return clock() - started


def median_ms(work: Callable[[], object], *, times: int = 15) -> float:
    """Return the median of several calls in milliseconds, for a bench's figures."""
    return 1e3 * statistics.median(seconds(work) for _ in range(times))


def interleaved(
    variants: Mapping[str, Callable[[], Any]], rounds: int, label: str
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Time variants in turns: return seconds by round, a warm-up aside, and last results.

    A variant that returns a float has timed itself.
    """
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else bool
    taken: dict[str, list[float]] = {name: [] for name in variants}
    found: dict[str, Any] = {}
    for number in range(rounds + 1):
        progress(round_text(label, number, rounds))
        for name, run in variants.items():
            wait()
            started = time.perf_counter()
            found[name] = run()
            wait()
            taken[name].append(time.perf_counter() - started)
            if isinstance(found[name], float):
                taken[name][-1] = found[name]
    return {name: own[1:] for name, own in taken.items()}, found


def median_ratio(ones: Iterable[float], others: Iterable[float]) -> float:
    """Return the median of the ratios of pairs of figures measured side by side."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))
