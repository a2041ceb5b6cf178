"""Measurements of runs: written in small batches, read as one snapshot and then only what is new.

A snapshot is thinned on the way out (`curves.py`). After it a page asks with its cursor and gets
raw new points, steps that were done again included.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.curves import Curves, Series
from jobs.database import now
from jobs.tables import Tables


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a runner has to say since it last spoke."""

    metrics: Sequence[tuple[str, int, float, float]] = ()  # name, step, value, time
    samples: Sequence[tuple[int, str, str]] = ()  # step, prompt, text
    checkpoints: Sequence[tuple[int, str, float | None]] = ()  # step, path, eval loss
    step: int | None = None
    total_steps: int | None = None
    phase: str | None = None
    result: dict[str, Any] | None = None


def write_measurements(db: Tables, job: int, progress: Progress) -> None:
    """Store a report's measurements inside the caller's transaction."""
    moment = now()
    if progress.metrics:
        count = len(progress.metrics)
        first = db.conn.execute(_NEXT_SEQ, (count,)).fetchall()[0][0] - count + 1
        db.conn.executemany(
            _METRIC,
            [
                (job, name, step, *_storable(value), at, first + index)
                for index, (name, step, value, at) in enumerate(progress.metrics)
            ],
        )
    db.conn.executemany(
        _SAMPLE, [(job, step, prompt, text, moment) for step, prompt, text in progress.samples]
    )
    db.conn.executemany(
        _CHECKPOINT, [(job, step, path, loss, moment) for step, path, loss in progress.checkpoints]
    )


def read_metrics(
    db: Tables,
    jobs: Iterable[int],
    names: Iterable[str],
    *,
    after_seq: int = 0,
    bins: int = 500,
    window: tuple[float, float] | None = None,
    curves: Curves | None = None,
) -> dict[str, Any]:
    """Return `{"seq", "snapshot", "data": {name: {job: {"x": [...], "y": [...]}}}}`.

    A value that is no finite number is None in `y`. Jobs are text keys, as in JSON.

    Args:
        db: A connection.
        jobs: Job ids.
        names: Metric names such as `loss`.
        after_seq: The `seq` of the previous answer; 0 asks for a snapshot.
        bins: At most twice this many points a series in a snapshot.
        window: Steps to show, both included; None shows all.
        curves: What the process keeps between questions.
    """
    ids, wanted = list(jobs), list(names)
    seq = int(db.conn.execute("SELECT value FROM counters WHERE name = 'metrics'").fetchone()[0])
    data: dict[str, dict[str, Series]] = {}
    if after_seq > 0:
        values = (after_seq, seq, json.dumps(ids), json.dumps(wanted))
        for job, name, step, value in db.conn.execute(_DELTA, values):
            series = data.setdefault(name, {}).setdefault(str(job), {"x": [], "y": []})
            series["x"].append(step)
            series["y"].append(value)
        return {"seq": seq, "snapshot": False, "data": data}
    low, high = window or (0, 2**62)
    kept = curves or Curves()
    for name in wanted:
        for job in ids:
            series = kept.read(
                db, job, name, seq=seq, low=math.floor(low), high=math.ceil(high), bins=bins
            )
            if series["x"]:
                data.setdefault(name, {})[str(job)] = series
    return {"seq": seq, "snapshot": True, "data": data}


def finite(value: Any) -> Any:
    """Replace numbers JSON cannot hold (NaN, infinities) by None, at any depth."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _storable(value: float) -> tuple[float | None, str | None]:
    if math.isfinite(value):
        return value, None
    return None, "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


_NEXT_SEQ = "UPDATE counters SET value = value + ? WHERE name = 'metrics' RETURNING value"
_METRIC = """
INSERT INTO metrics(job, name, step, value, flag, time, seq) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT(job, name, step) DO UPDATE SET value = excluded.value, flag = excluded.flag,
  time = excluded.time, seq = excluded.seq
"""
_SAMPLE = """
INSERT INTO samples(job, step, prompt, text, time) VALUES (?, ?, ?, ?, ?)
ON CONFLICT(job, step, prompt) DO UPDATE SET text = excluded.text, time = excluded.time
"""
_CHECKPOINT = """
INSERT INTO checkpoints(job, step, path, eval_loss, time) VALUES (?, ?, ?, ?, ?)
ON CONFLICT(job, step) DO UPDATE SET path = excluded.path, eval_loss = excluded.eval_loss,
  time = excluded.time
"""
# The planner would sort whole runs at every poll; the cursor's index is the right one.
_DELTA = """
SELECT job, name, step, value FROM metrics INDEXED BY metrics_by_seq
WHERE seq > ? AND seq <= ?
  AND job IN (SELECT value FROM json_each(?)) AND name IN (SELECT value FROM json_each(?))
ORDER BY seq
"""
