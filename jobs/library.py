"""What a person does with the library, where the queue has a say: a waiting merge keeps its parts.

The craft is in `studio.adapters`; this refuses what would pull an adapter away from under a job,
and queues what takes longer than a moment.
"""

from pathlib import Path
from typing import Any, Protocol

from jobs import jobs_table, supervisor
from jobs.job import OPEN, Job
from jobs.store import JobStore
from studio.adapters import library, requests
from studio.adapters.gguf import GgufRequest
from studio.adapters.library import Adapter, describe
from studio.adapters.push import PushRequest
from studio.errors import AdapterError
from studio.home import Home
from studio.names import cleaned


class _Request(Protocol):
    def checked(self, home: Home) -> Any: ...


REQUESTS: dict[str, Any] = {
    "merge": requests.MergeRequest,
    "mix": requests.MixRequest,
    "import_adapter": requests.ImportRequest,
    "export_adapter": requests.ExportRequest,
    "picture": requests.PictureRequest,
    "gguf": GgufRequest,
    "push": PushRequest,
}


def ask(store: JobStore, kind: str, values: dict[str, Any]) -> Job:
    """Check a request about adapters and queue it.

    Raises:
        StudioError: It cannot be done; nothing was queued.
    """
    request: _Request = REQUESTS[kind].parse(values)
    plain = request.checked(store.home).model_dump(mode="json")
    _nobody_makes(store, plain.get("out"))
    if not plain["name"]:
        plain["name"] = _free_name(store, f"{kind.partition('_')[0]} {_about(plain)}")
    job = store.submit(plain, kind=kind)
    supervisor.ensure_running(store.home)
    return job


def rename(store: JobStore, name: str, new: str) -> Adapter:
    """Give an adapter another name.

    Raises:
        StudioError: The name cannot be, or a waiting job needs the adapter where it is.
    """
    _idle(store, library.find(store.home, name))
    return library.rename(store.home, name, new)


def delete(store: JobStore, name: str) -> library.DeletedAdapter:
    """Move an adapter to the trash.

    Raises:
        StudioError: There is none, or a waiting job needs it.
    """
    _idle(store, library.find(store.home, name))
    return library.delete(store.home, name)


def best_losses(store: JobStore) -> dict[int, float]:
    """Return the lowest held-out loss of every run that was evaluated."""
    with store.database.reading() as db:
        return {int(job): float(loss) for job, loss in db.conn.execute(_BEST).fetchall()}


def _idle(store: JobStore, adapter: Adapter) -> None:
    waiting = store.list(OPEN)
    for job in waiting:
        if str(adapter.path) in _parts(job):
            raise AdapterError(
                f'"{job.name}" is {job.state} and needs "{adapter.name}": wait for it or cancel it '
                "first."
            )


def _nobody_makes(store: JobStore, out: str | None) -> None:
    for job in store.list(OPEN) if out else ():
        if job.spec.get("out") == out:
            raise AdapterError(
                f'"{job.name}" (number {job.id}) is {job.state} and will make {out}: wait for it, '
                "or choose another name."
            )


def _parts(job: Job) -> set[str]:
    stack = job.spec.get("stack") or []
    return {str(item.get("name")) for item in stack} | {str(job.spec.get("adapter") or "")}


def _about(plain: dict[str, Any]) -> str:
    if "repo" in plain:
        return str(plain["repo"])
    if "source" in plain:
        return str(plain["adapter"] or Path(plain["source"]).name)
    folders = [item["name"] for item in plain.get("stack", ())] or [plain["adapter"]]
    return " + ".join(describe(Path(folder)).name for folder in folders)


def _free_name(store: JobStore, base: str) -> str:
    base = cleaned(base)[:110]
    taken = {job.name: job.id for job in store.list(search=base)}
    return jobs_table.first_free(base, taken)


_BEST = """
SELECT job, MIN(value) FROM metrics WHERE name = 'eval_loss' AND value IS NOT NULL GROUP BY job
"""
