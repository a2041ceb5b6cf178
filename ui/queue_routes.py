"""JSON routes of the queue: one cursor poll per tab, curves, one job, actions and their outcome.

Gradio's events are bound to a tab and die with it; the routes that read only read the database, so
any number of tabs may come and go. `/api/live` answers with what is new since the cursors it was
given, and with 204 if there is nothing new. Changes are actions: one is asked for with
`POST /api/do/NAME` and answers with its job or its value. Nothing is downloaded, and no tensor is
opened.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from fastapi import APIRouter, Query, Response

from jobs import queue_settings
from jobs.actions import ACTIONS, ask, outcome
from jobs.actions.adapters import card, trashed
from jobs.actions.registry import find, has_outcome, schema
from jobs.claims import device_of
from jobs.disk_usage import shortage
from jobs.job_queue import JobStore
from jobs.job_record import TRAINS, Job, actions, loss_of, summary
from jobs.outcome_figures import figures, task_table
from jobs.run_curves import SERIES, best_losses
from studio import trash
from studio.adapter_stack import MAX_LANES
from studio.adapters import library
from studio.errors import QueueError, SpecError
from studio.home import Home
from studio.methods import methods, trains_base
from studio.spec import RunSpec, address_query, command_line
from ui import language, train_page_facts
from ui.language import with_path, with_titles

MOST_JOBS = 500
KEPT_LISTINGS = 64
View = Literal["log", "samples", "checkpoints", "config", "history"]
MOST_QUEUED = 200
_SHOWN = ("phase", "created", "started", "finished", "attempt", "intent", "device_wanted")


def queue_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the routes on the queue of `home`, of actions and of the adapter library."""
    router = APIRouter(prefix="/api")
    _reading(router, home, store)
    _asking(router, home, store)
    return router


def _reading(router: APIRouter, home: Home, store: JobStore) -> None:
    listing = Listing(home, store)

    @router.get("/health")
    def health() -> dict[str, Any]:
        return {"ok": True, "home": str(home.path)}

    @router.get("/live")
    def live(
        jobs: str = "",
        runs: str = "",
        names: str = "loss",
        after: int = 0,
        bins: int = Query(600, ge=10, le=5000),
        detail: Annotated[int | None, Query(lt=2**63)] = None,
        view: View = "log",
        seen: str = "",
    ) -> Response:
        news: dict[str, Any] = {}
        wanted = _ids(runs)
        changes = listing.since(jobs, wanted if detail is None else [*wanted, detail])
        if changes:
            news["jobs"] = changes
        metrics = _metrics(store, wanted, names, after, bins)
        if metrics and (metrics["data"] or metrics["seq"] != after):
            news["metrics"] = metrics
        if detail is not None:
            shown = _detail(store, home, detail, view)
            if shown["digest"] != seen:
                news["detail"] = shown
        return _json(news)

    @router.get("/metrics")
    def metrics(
        runs: str, names: str = "loss", low: int = 0, high: int = 2**53,
        bins: int = Query(1000, ge=0, le=5000),
    ) -> Response:  # fmt: skip
        return _json(_metrics(store, _ids(runs), names, 0, bins, window=(low, high)) or {})


def _asking(router: APIRouter, home: Home, store: JobStore) -> None:
    @router.get("/actions")
    def known() -> list[dict[str, Any]]:
        return [schema(action) for action in ACTIONS.values() if not action.terminal]

    @router.post("/do/{name}")
    def do(name: str, values: dict[str, Any]) -> Any:
        if find(name).terminal:
            raise QueueError(f'"{name}" is a command only: run `studio {name}` in a terminal.')
        for lines in ("over", "set"):  # assignments, with fields by their titles
            if isinstance(values.get(lines), list):
                values = values | {lines: [with_path(str(line)) for line in values[lines]]}
        answer = ask(home, name, values, store=store)
        return job_row(answer.jobs[0], home) if len(answer.jobs) == 1 else answer.value

    @router.get("/outcome/{job_id}")
    def made(job_id: int) -> dict[str, Any]:
        job = store.get(job_id)
        found = outcome(store, job) if has_outcome(job) else {}
        table = task_table(found) if job.kind == "tasks" and found else None
        shown = {"figures": figures(job.kind, found) if found else [], "table": table}
        return {**job_row(job, home), "outcome": found, **shown}

    @router.get("/adapters")
    def adapters() -> dict[str, Any]:
        best = best_losses(store.database)
        return {
            "adapters": [card(one, best) for one in library.adapters(home)],
            "trash": [trashed(one) for one in library.deleted(home)],
            "models": train_page_facts.labelled_models(home),
            "max_lanes": MAX_LANES,
        }


def queue_state(home: Home, store: JobStore) -> dict[str, Any]:
    """Return what routes answer on the whole queue: what holds it, what errors do to it."""
    return {
        "held": queue_settings.read(store, "held"),
        "on_error": queue_settings.read(store, "on_error"),
        "short": shortage(home.path),
    }


def job_row(job: Job, home: Home) -> dict[str, Any]:
    """Return what routes answer on a job of the queue: the command's shape and a little more.

    `adapter_deleted` is "" where its adapter can no longer be restored.
    """
    spec = job.spec
    method = dict(spec.get("method") or {})
    known = methods().get(str(method.get("name")))
    title, loss = known.title if known else method.get("name", ""), loss_of(spec)
    shown = summary(job)
    token = shown["adapter_deleted"]
    if token and not (home.trash / token / trash.CONTENT).is_dir():
        shown["adapter_deleted"] = ""
    if shown["error"]:
        shown["error"] |= {"text": with_titles(shown["error"]["text"] or "")}
    return {
        **shown,
        "truncated": (job.result.get("rows") or {}).get("truncated"),
        "stage_of": stage_of(job),
        "model": (spec.get("model") or {}).get("path", ""),
        "data": (spec.get("data") or {}).get("path", ""),
        "max_steps": (spec.get("train") or {}).get("max_steps"),
        "method": f"{title} · {loss}" if loss else title,
        "loss": loss,
        **{key: getattr(job, key) for key in _SHOWN},
        "device": job.device and device_of(job.device),
        "ended": job.result.get("ended") or job.result.get("reason"),
        "note": job.result.get("note") and with_titles(job.result["note"]),
        "reward_accuracy": job.result.get("eval_rewards_accuracies"),
        "reward": job.result.get("eval_reward"),
        "tokens_shared": job.result.get("tokens_shared"),
        **{key: job.result.get(key) for key in ("trainable_parameters", "total_parameters")},
        "actions": actions(job.state),
        "trains_base": trains_base(str(method.get("name"))),
    }


def stage_of(job: Job) -> int | None:
    """Return the run whose adapter a run of the queue starts from, if it is of this home."""
    start = Path((job.spec.get("train") or {}).get("init_adapter") or "")
    number = start.parent.name
    return int(number) if start.name == "adapter" and number.isdecimal() else None


Shown = tuple[Job, dict[str, Any], str]
Rows = dict[int, Shown]


class Listing:
    """The list of jobs as differences: a tab names the state it has and gets what changed."""

    def __init__(self, home: Home, store: JobStore) -> None:
        self.home, self.store = home, store
        self.sent: OrderedDict[str, dict[int, str]] = OrderedDict()
        self.rows: dict[str, Rows] = {}  # by language

    def since(self, digest: str, asked: Iterable[int] = ()) -> dict[str, Any] | None:
        """Return what changed since the listing of that digest; None where nothing did.

        `asked` are jobs that are listed however old they are.

        `items` are the changed jobs, `removed` the ids that are gone; `whole` says that the tab
        must forget what it had, because its listing is not known here (any more).
        """
        spoken = language.current.get()
        kept = self.rows.get(spoken, {})
        made = self.rows[spoken] = {
            job.id: _row(job, kept.get(job.id), self.home) for job in self._shown(asked)
        }
        rows = [row for _, row, _ in made.values()]
        now = {job_id: digest for job_id, (_, _, digest) in made.items()}
        supervised = self.store.supervisor() is not None
        unlisted = sum(self.store.counts().values()) - len(made) if len(made) >= MOST_JOBS else 0
        queue = queue_state(self.home, self.store) | {"unlisted": unlisted}
        current = _digest([now, supervised, queue])
        if current == digest:
            return None
        before = self.sent.get(digest)
        self.sent[current] = now
        while len(self.sent) > KEPT_LISTINGS:
            self.sent.popitem(last=False)
        known = before or {}
        return {
            "digest": current,
            "supervised": supervised,
            "queue": queue,
            "whole": before is None,
            "items": [row for row in rows if known.get(row["id"]) != now[row["id"]]],
            "removed": [job_id for job_id in known if job_id not in now],
        }

    def _shown(self, asked: Iterable[int]) -> list[Job]:
        """Return the newest jobs, the front of the queue, and those that are asked for."""
        jobs = {job.id: job for job in self.store.list(limit=MOST_JOBS)}
        if len(jobs) == MOST_JOBS:
            jobs |= {job.id: job for job in self.store.queue(limit=MOST_QUEUED)}
            for job_id in set(asked) - jobs.keys():
                with suppress(QueueError):  # it was deleted
                    jobs[job_id] = self.store.get(job_id)
        return sorted(jobs.values(), key=lambda job: -job.id)


def _row(job: Job, kept: Shown | None, home: Home) -> Shown:
    """Return the last row; made anew for a job that changed, is active or lost its adapter."""
    if kept and kept[0] == job and not job.active and not kept[1].get("adapter_deleted"):
        return kept
    row = job_row(job, home)
    return job, row, _digest(row)


def _ids(runs: str) -> list[int]:
    return [int(part) for part in runs.split(",") if part.isdecimal() and len(part) < 19][:20]


def _metrics(
    store: JobStore,
    ids: list[int],
    names: str,
    after: int,
    bins: int,
    window: tuple[int, int] | None = None,
) -> dict[str, Any] | None:
    wanted = [name for name in names.split(",") if name in SERIES]
    if not ids or not wanted:
        return None
    return store.metrics(ids, wanted, after_seq=after, bins=bins, window=window)


def _detail(store: JobStore, home: Home, job_id: int, view: View) -> dict[str, Any]:
    try:
        job = store.get(job_id)
    except QueueError as error:
        return {"id": job_id, "view": view, "digest": "gone", "error": error.as_dict()}
    content = {
        "log": lambda: store.log_tail(job_id, 400),
        "samples": lambda: store.samples(job_id),
        "checkpoints": lambda: store.checkpoints(job_id),
        "history": lambda: {"events": store.events(job_id)},
        "config": lambda: _config(job),
    }[view]()
    return {"id": job_id, "view": view, "content": content, "digest": _digest(content)}


def _config(job: Job) -> dict[str, str]:
    if job.kind not in TRAINS:
        return {"yaml": yaml.safe_dump(job.spec, sort_keys=False, allow_unicode=True)}
    try:
        spec = RunSpec.parse({key: value for key, value in job.spec.items() if key != "folder"})
    except SpecError as error:
        return {"yaml": json.dumps(job.spec, indent=2), "command": "", "query": "",
                "error": error.text}  # fmt: skip
    return {
        "yaml": spec.to_yaml(),
        "command": command_line(spec),
        "query": address_query(spec.model_copy(update={"name": ""})),
    }


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, default=str).encode(), digest_size=8).hexdigest()


def _json(value: dict[str, Any]) -> Response:
    if not value:
        return Response(status_code=204, headers={"cache-control": "no-store"})
    body = json.dumps(value, default=str, allow_nan=False, ensure_ascii=False).encode()
    return Response(body, media_type="application/json", headers={"cache-control": "no-store"})
