"""Curves of runs (metrics) in the database, with samples and checkpoints: store, read, thin out.

Each process caches the curves it read last, and reads one again after a repeated step, a restart or
a deletion. Thinning takes the minimum and maximum of bins whose width is a power of two anchored at
step 0, so that drawn points stay drawn and no spike or gap is lost.

The first answer is a thinned snapshot; with its cursor a page then gets the new points, repeated
steps included.
"""

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.database import Database, now
from jobs.database_schema import Tables

if TYPE_CHECKING:
    import numpy as np


# The series of a run: fields of `events.Step`, and those of `events.Evaluated` by their names.
STEP_SERIES = (
    "loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes", "expert_balance",
    "rewards_chosen", "rewards_rejected", "rewards_margins", "rewards_accuracies", "logps_chosen",
    "logps_rejected", "reward", "reward_std", "frac_reward_zero_std", "completion_length", "kl",
)  # fmt: skip
EVAL_SERIES = {
    "eval_loss": "eval_loss", "eval_rewards_accuracies": "rewards_accuracies",
    "eval_rewards_margins": "rewards_margins", "eval_kl": "kl", "eval_reward": "reward",
}  # fmt: skip
ANSWER_SERIES = ("answer_length", "answers_overrun", "answers_copied")  # of `events.Answered`
FORGETTING = "forgetting"
ANSWER_TOKENS = "answer_tokens"  # of `events.Sampled`
SERIES = (*STEP_SERIES, *EVAL_SERIES, FORGETTING, ANSWER_TOKENS)
MOST_CURVES, MOST_POINTS = 128, 3_000_000
MOST_NEWS = 50_000
Series = dict[str, Any]  # x, y, and thinned where points are left out


@dataclass(slots=True)
class Curve:
    """One series of one job up to a cursor."""

    steps: "np.ndarray[Any, Any]"
    values: "np.ndarray[Any, Any]"
    seq: int


class Curves:
    """A cache of the curves read last; safe to share between threads."""

    def __init__(self) -> None:
        self._cache: OrderedDict[tuple[int, str], Curve] = OrderedDict()
        self._guard = threading.Lock()

    def read(
        self, db: Tables, job: int, name: str, *, seq: int, low: int, high: int, bins: int
    ) -> Series:
        """Return the points between two steps, both included, thinned to `2 * bins` if any."""
        with self._guard:
            curve = self._current(db, job, name, seq)
            steps, values = curve.steps, curve.values
        first, last = steps.searchsorted(low, "left"), steps.searchsorted(high, "right")
        return _thinned(steps[first:last], values[first:last], bins)

    def _current(self, db: Tables, job: int, name: str, seq: int) -> Curve:
        key = (job, name)
        curve = self._cache.pop(key, None)
        if curve is None or not _grown(db, job, name, curve, seq):
            curve = _fetched(db, job, name, seq)
        self._cache[key] = curve
        while len(self._cache) > MOST_CURVES or (
            len(self._cache) > 1 and sum(len(c.steps) for c in self._cache.values()) > MOST_POINTS
        ):
            self._cache.popitem(last=False)
        return curve


def _grown(db: Tables, job: int, name: str, curve: Curve, seq: int) -> bool:
    """Append new points; return False if the curve must be read again."""
    if not len(curve.steps) or not 0 <= seq - curve.seq <= MOST_NEWS:
        return False
    ends = db.conn.execute(_ENDS, {"job": job, "name": name}).fetchone()
    if ends[0] != int(curve.steps[0]) or ends[1] is None or ends[1] < int(curve.steps[-1]):
        return False
    rows = db.conn.execute(_NEWS, (curve.seq, seq, job, name)).fetchall()
    if rows:
        steps, values = _arrays(rows)
        if steps[0] <= curve.steps[-1]:
            return False
        import numpy as np

        curve.steps = np.concatenate([curve.steps, steps])
        curve.values = np.concatenate([curve.values, values])
    curve.seq = seq
    return True


def _fetched(db: Tables, job: int, name: str, seq: int) -> Curve:
    return Curve(*_arrays(db.conn.execute(_SERIES, (job, name)).fetchall()), seq)


def _arrays(rows: list[tuple[int, float | None]]) -> tuple[Any, Any]:
    import numpy as np

    count = len(rows)
    steps = np.fromiter((row[0] for row in rows), np.int64, count)
    gaps = (math.nan if row[1] is None else row[1] for row in rows)
    return steps, np.fromiter(gaps, np.float64, count)


def _thinned(steps: Any, values: Any, bins: int) -> Series:
    import numpy as np

    thinned = 0 < 2 * bins < len(steps)
    if thinned:
        span = int(steps[-1] - steps[0]) + 1
        width = 1 << max(0, math.ceil(math.log2(span / bins)))
        starts = np.flatnonzero(np.diff(steps // width, prepend=steps[0] // width - 1))
        gaps = np.isnan(values)
        chosen = [
            _first_equal(
                values, starts, np.minimum.reduceat(np.where(gaps, np.inf, values), starts)
            ),
            _first_equal(
                values, starts, np.maximum.reduceat(np.where(gaps, -np.inf, values), starts)
            ),
            _first_true(gaps, starts),  # a gap must stay visible
            np.array([len(steps) - 1]),
        ]
        keep = np.unique(np.concatenate(chosen))
        steps, values = steps[keep], values[keep]
    numbers: list[float | None] = values.tolist()
    for gap in np.flatnonzero(np.isnan(values)).tolist():
        numbers[gap] = None
    return {"x": steps.tolist(), "y": numbers} | ({"thinned": True} if thinned else {})


def _first_equal(values: Any, starts: Any, wanted: Any) -> Any:
    import numpy as np

    lengths = np.diff(starts, append=len(values))
    return _first_true(values == np.repeat(wanted, lengths), starts)


def _first_true(marks: Any, starts: Any) -> Any:
    """Return the index of the first True element in each bin that has one."""
    import numpy as np

    places = np.flatnonzero(marks)
    owners = np.searchsorted(starts, places, "right")
    return places[np.unique(owners, return_index=True)[1]]


_SERIES = "SELECT step, value FROM metrics WHERE job = ? AND name = ? ORDER BY step"
_ENDS = """
SELECT (SELECT min(step) FROM metrics WHERE job = :job AND name = :name),
       (SELECT max(step) FROM metrics WHERE job = :job AND name = :name)
"""
_NEWS = """
SELECT step, value FROM metrics INDEXED BY metrics_by_seq
WHERE seq > ? AND seq <= ? AND job = ? AND name = ? ORDER BY step
"""


@dataclass(kw_only=True, slots=True)
class Progress:
    """A runner's measurements since its last report."""

    # name, step, value, time
    metrics: list[tuple[str, int, float, float]] = field(default_factory=list)
    samples: list[tuple[int, str, str]] = field(default_factory=list)  # step, prompt, text
    # step, path, evaluation loss
    checkpoints: list[tuple[int, str, float | None]] = field(default_factory=list)
    step: int | None = None
    total_steps: int | None = None
    phase: str | None = None
    result: dict[str, Any] | None = None

    def __bool__(self) -> bool:
        lists = self.metrics or self.samples or self.checkpoints
        return bool(lists) or self.step is not None or self.phase is not None

    def prepend(self, older: "Progress") -> None:
        """Add an earlier report that could not be stored."""
        self.metrics[:0] = older.metrics
        self.samples[:0] = older.samples
        self.checkpoints[:0] = older.checkpoints
        self.step = older.step if self.step is None else self.step
        self.total_steps = older.total_steps if self.total_steps is None else self.total_steps
        self.phase = older.phase if self.phase is None else self.phase


def write_measurements(db: Tables, job: int, progress: Progress) -> None:
    """Store points of a run's curves, samples and checkpoints in the caller's transaction."""
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
    curves: Curves,
) -> dict[str, Any]:
    """Return curves: `{"seq", "snapshot", "data": {name: {job: {"x": [...], "y": [...]}}}}`.

    A value that is not finite is None in `y`. Jobs are text keys, as in JSON.

    Args:
        after_seq: The `seq` of the previous answer; 0 asks for a snapshot.
        bins: About twice this many points a series in a snapshot, which is `thinned`; 0 is all.
        window: Steps to show, both included; None shows all.
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
    for name in wanted:
        for job in ids:
            series = curves.read(
                db, job, name, seq=seq, low=math.floor(low), high=math.ceil(high), bins=bins
            )
            if series["x"]:
                data.setdefault(name, {})[str(job)] = series
    return {"seq": seq, "snapshot": True, "data": data}


def best_losses(database: Database) -> dict[int, float]:
    """Return the lowest held-out loss on the curve of each evaluated run."""
    return {row["job"]: row["loss"] for row in database.rows(_BEST)}


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
_BEST = """
SELECT job, MIN(value) AS loss FROM metrics
WHERE name = 'eval_loss' AND value IS NOT NULL GROUP BY job
"""
