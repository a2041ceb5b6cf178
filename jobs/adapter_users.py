"""Refuse to delete or move an adapter that a waiting job or another adapter needs."""

from pathlib import Path

from jobs.job_queue import JobStore
from jobs.job_record import OPEN
from studio.adapters.adapter_lineage import built_on
from studio.errors import AdapterError


def refuse_needed(store: JobStore, folder: Path, name: str) -> None:
    """Check that nothing needs the adapter in a folder.

    Raises:
        AdapterError: A job that has not ended names it, or an adapter was trained on top of it.
    """
    for job in store.list(OPEN):
        stack = job.spec.get("stack") or []
        parts = {str(item.get("name")) for item in stack} | {str(job.spec.get("adapter") or "")}
        parts.add(str((job.spec.get("train") or {}).get("init_adapter")))
        if str(folder) in parts:
            raise AdapterError(
                f'"{job.name}" is {job.state} and needs "{name}": wait for it or cancel it first.'
            )
    for other in built_on(store.home, folder):
        raise AdapterError(
            f'"{other.name}" was trained on top of "{name}" and needs it: delete that one first.'
        )
