"""Follow one job in a terminal until it ends: a progress bar with the loss, on standard error.

Without a terminal it prints a line every few seconds instead. It only reads the database, so ending
it does nothing to the job.
"""

import sys
import time

from jobs.job_queue import JobStore
from jobs.job_record import Job, seconds_left

POLL_SECONDS = 0.1
LINE_SECONDS = 5.0


def follow_to_the_end(store: JobStore, job: Job) -> Job:
    """Show a job's progress until it ends or waits for the user; return its last state."""
    if sys.stderr.isatty():
        return _with_bar(store, job)
    printed_at, printed = 0.0, ""
    while True:
        job = store.get(job.id)
        if _over(job):
            return job
        line = _line(job)
        if line != printed and time.monotonic() - printed_at > LINE_SECONDS:
            printed_at, printed = time.monotonic(), line
            print(line, file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)


def _with_bar(store: JobStore, job: Job) -> Job:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(job.name, total=None, facts="")
        while not _over(job):
            job = store.get(job.id)
            text = job.phase if job.state == "running" else job.state
            progress.update(
                task, total=job.total_steps, completed=job.step, facts=_facts(job),
                description=f"{job.name}  {text}",
            )  # fmt: skip
            time.sleep(POLL_SECONDS)
    return job


def _over(job: Job) -> bool:
    queued_again = job.state == "interrupted" and job.error_kind is None
    return not job.active and job.state != "queued" and not queued_again


def _line(job: Job) -> str:
    if job.state != "running":
        return f"{job.name}: {job.state}"
    if job.total_steps is None:
        return f"{job.name}: {job.phase}"
    return f"{job.name}: step {job.step} of {job.total_steps}  {_facts(job)}"


def _facts(job: Job) -> str:
    loss = job.result.get("last_loss")
    left, reward = seconds_left(job), job.result.get("eval_reward")
    parts = [] if loss is None else [f"loss {loss:.4f}"]
    if reward is not None:
        parts.append(f"held-out reward {reward:.3f}")
    if left is not None:
        parts.append(f"{int(left // 60)}:{int(left % 60):02} left")
    return "  ".join(parts)
