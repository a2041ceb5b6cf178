"""A job in the one shape that commands print and pages read: the `--json` contract."""

from typing import Any

from jobs.database import now
from jobs.record import Job


def summary(job: Job) -> dict[str, Any]:
    """Return plain values; what is not known yet is None."""
    result = job.result
    rows = result.get("rows") or {}
    failed = job.error_kind is not None or job.error_text is not None
    return {
        "id": job.id,
        "name": job.name,
        "kind": job.kind,
        "state": job.state,
        "step": job.step,
        "total_steps": job.total_steps,
        "first_loss": result.get("first_loss"),
        "last_loss": result.get("last_loss"),
        "eval_loss": result.get("eval_loss"),
        "seconds": result.get("seconds"),
        "seconds_left": seconds_left(job),
        "adapter": result.get("adapter"),
        "rows": {key: rows.get(key) for key in ("read", "kept", "dropped")},
        "position": job.position,
        "parent": job.parent,
        "needs": job.needs,
        "sweep": job.sweep,
        "on_error": job.on_error,
        "retries_left": job.retries_left,
        "start_after": job.start_after,
        "start_when": job.start_when,
        "memory_bytes": job.memory_bytes or None,
        "waits": job.waits if job.state == "queued" else "",
        "notes": job.notes,
        "tags": job.tags,
        "error": {"kind": job.error_kind or "run", "text": job.error_text} if failed else None,
    }


def seconds_left(job: Job) -> float | None:
    """Return how long a running job will still take, judged by its own pace so far."""
    begun = job.result.get("training_since")
    first = job.result.get("training_from_step", 0)
    done = job.step - first
    if job.state != "running" or not begun or not job.total_steps or done < 2:
        return None
    pace = max(0.0, now() - begun) / done  # the clock may have been set back meanwhile
    return round(pace * (job.total_steps - job.step), 1)
