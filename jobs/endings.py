"""How an attempt at a job ends: as asked, by the death of its process, or before it began.

Each function works inside the caller's transaction, moves one row along a legal way and says what
became of it; an attempt that is no longer the job's moves nothing.
"""

import json
from typing import Any

from jobs.database import now
from jobs.metrics import finite
from jobs.states import Intent, State
from jobs.tables import Tables

NO_PROGRESS_LIMIT = 3
TRIED_AGAIN = """
SELECT id FROM jobs WHERE state = 'failed' AND retries_left > 0  -- only what may pass by itself
  AND error_kind IN ('start', 'out_of_memory', 'weights_too_large', 'network')
"""


def leave(
    db: Tables,
    job: int,
    state: State,
    *,
    attempt: int | None = None,
    actor: str,
    why: str = "",
    result: dict[str, Any] | None = None,
    error: tuple[str, str] | None = None,
) -> bool:
    """Move a job into a state without a process; False when the attempt does not match.

    The transition trigger refuses what is not legal.
    """
    kind, text = error or (None, None)
    values = {
        "id": job, "state": state, "attempt": attempt, "actor": actor, "why": why or text or "",
        "now": now(), "error_kind": kind, "error_text": text,
        "result": json.dumps(finite(result or {})),
    }  # fmt: skip
    return bool(db.conn.execute(_LEAVE, values).fetchall())


def obey(
    db: Tables,
    job: int,
    attempt: int,
    *,
    result: dict[str, Any] | None = None,
    error: tuple[str, str] | None = None,
) -> State | None:
    """End the way that was asked for, as it stands now; None when the attempt is not the job's."""
    row = db.conn.execute(_ACTIVE_ATTEMPT, (job, attempt)).fetchone()
    if row is None:
        return None
    state = _OBEYED[row[0]]
    leave(
        db, job, state, attempt=attempt, actor="runner", result=result,
        error=error if state == "paused" else None,
    )  # fmt: skip
    return state


def lose(
    db: Tables,
    job: int,
    attempt: int,
    *,
    why: str,
    newest_step: int,
    blameless: bool,
    limit: int,
) -> State | None:
    """The attempt's process is proven dead: end as was asked, or queue again while it moves on.

    Returns:
        The state the job is in now; None when the attempt had already ended.
    """
    row = db.conn.execute(_ACTIVE_ATTEMPT, (job, attempt)).fetchone()
    if row is None:
        return None
    intent, resume_step, no_progress = row
    if intent in ("cancel", "pause"):
        leave(db, job, _OBEYED[intent], attempt=attempt, actor="supervisor", why=why)
        return _OBEYED[intent]
    moved = newest_step > resume_step or blameless or intent == "shutdown"
    tries = 0 if moved else no_progress + 1
    error = ("interrupted", _GIVEN_UP.format(tries=tries, why=why))
    leave(
        db, job, "interrupted", attempt=attempt, actor="supervisor", why=why,
        error=error if tries >= limit else None,
    )  # fmt: skip
    db.conn.execute(_COUNT_PROGRESS, (tries, max(newest_step, resume_step), job))
    if tries >= limit:
        return "interrupted"
    where = f"from step {newest_step}" if newest_step else "from the beginning"
    leave(db, job, "queued", actor="supervisor", why=f"goes on {where}")
    return "queued"


def never_began(db: Tables, job: int, attempt: int, *, text: str) -> None:
    """The runner ended before it could register: the job fails with a sentence, or as asked."""
    row = db.conn.execute(_ACTIVE_ATTEMPT, (job, attempt)).fetchone()
    if row is None:
        return
    state: State = _OBEYED[row[0]] if row[0] in ("cancel", "pause") else "failed"
    leave(
        db, job, state, attempt=attempt, actor="supervisor",
        error=("start", text) if state == "failed" else None,
    )  # fmt: skip


_OBEYED: dict[Intent, State] = {
    "cancel": "cancelled", "pause": "paused", "shutdown": "interrupted",
}  # fmt: skip
_GIVEN_UP = "It ended {tries} times without reaching a new checkpoint. The last time: {why}"
_LEAVE = """
UPDATE jobs SET state = :state, device = NULL, owner = NULL, pid = NULL, pid_started = NULL,
  boot_id = NULL, heartbeat = NULL, stop_requested = NULL, stop_requested_at = NULL, phase = '',
  finished = CASE WHEN :state IN ('succeeded', 'failed', 'cancelled') THEN :now END,
  error_kind = :error_kind, error_text = :error_text, result = json_patch(result, :result),
  changed_by = :actor, why = :why
WHERE id = :id AND (:attempt IS NULL OR (attempt = :attempt
                    AND state IN ('starting', 'running', 'stopping')))
RETURNING id
"""
_ACTIVE_ATTEMPT = """
SELECT stop_requested, resume_step, no_progress FROM jobs
WHERE id = ? AND attempt = ? AND state IN ('starting', 'running', 'stopping')
"""
_COUNT_PROGRESS = "UPDATE jobs SET no_progress = ?, resume_step = ? WHERE id = ?"
