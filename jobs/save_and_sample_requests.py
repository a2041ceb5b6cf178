"""Requests to a running training: save a checkpoint, or answer its sample prompts, at once.

A page or command sets a flag in the job's row; the runner takes it within a fraction of a second.
"""

from jobs.claims import Claim
from jobs.job_queue import JobStore
from jobs.job_record import Request
from studio.errors import QueueError


def request(store: JobStore, job_id: int | str, what: Request) -> None:
    """Let a running job write a checkpoint, or answer its sample prompts, at its next step.

    Raises:
        QueueError: It is not a running training.
    """
    job = store.get(job_id)
    if job.state != "running" or job.kind != "train":
        raise QueueError(f'"{job.name}" is {job.state}; only a running training can {what}.')
    values = {"save": what == "save", "sample": what == "sample", "id": job.id}
    store.database.change(_SET, values)


def take_request(store: JobStore, claim: Claim) -> Request | None:
    """Return the user's next request to the run, and clear it."""
    values = {"id": claim.job, "attempt": claim.attempt}
    with store.database.reading() as db:
        save, sample = db.conn.execute(_FLAGS, values).fetchone() or (0, 0)
    if not (save or sample):
        return None
    store.database.change(_CLEAR, values | {"sample": not save}, durable=False)
    return "save" if save else "sample"


_SET = """
UPDATE jobs SET save_requested = max(save_requested, :save),
  sample_requested = max(sample_requested, :sample)
WHERE id = :id
"""
_FLAGS = "SELECT save_requested, sample_requested FROM jobs WHERE id = :id AND attempt = :attempt"
_CLEAR = """
UPDATE jobs SET save_requested = 0, sample_requested = sample_requested AND NOT :sample
WHERE id = :id AND attempt = :attempt
"""
