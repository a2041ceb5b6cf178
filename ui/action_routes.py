"""The HTTP routes of actions, and what forms and dialogs show before one is asked for.

An action is asked with `POST /api/do/NAME` and answers with its job or its value. Everything here
reads small files; nothing is downloaded, and no tensor is opened.
"""

from typing import Any

from fastapi import APIRouter

from jobs.actions import ACTIONS, ask, outcome
from jobs.actions.adapters import best_losses, card, trashed
from jobs.actions.registry import find, has_outcome, schema
from jobs.job_queue import JobStore
from studio.adapter_stack import MAX_LANES
from studio.adapters import library
from studio.errors import QueueError
from studio.home import Home
from ui import train_page_facts
from ui.language import with_path
from ui.live_queue import job_row


def action_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the routes of actions and of the adapter library."""
    router = APIRouter(prefix="/api")

    @router.get("/actions")
    def actions() -> list[dict[str, Any]]:
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
        return {**job_row(job, home), "outcome": found}

    @router.get("/adapters")
    def adapters() -> dict[str, Any]:
        best = best_losses(store)
        return {
            "adapters": [card(one, best) for one in library.adapters(home)],
            "trash": [trashed(one) for one in library.deleted(home)],
            "models": train_page_facts.labelled_models(home),
            "max_lanes": MAX_LANES,
        }

    return router
