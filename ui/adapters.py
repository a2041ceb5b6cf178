"""Serve the Adapters page: the library, the trash, and what its dialogs offer.

Everything here reads small files; no tensor is opened. What changes or queues something, and one
adapter's passport, are actions.
"""

from typing import Any

from fastapi import APIRouter

from jobs.actions.adapters import best_losses, card, trashed
from jobs.store import JobStore
from studio.adapters import library
from studio.home import Home
from ui.sources import model_choices


def adapter_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the route of the Adapters page."""
    router = APIRouter(prefix="/api/adapters")

    @router.get("")
    def adapters() -> dict[str, Any]:
        best = best_losses(store)
        return {
            "adapters": [card(one, best) for one in library.adapters(home)],
            "trash": [trashed(one) for one in library.trash(home)],
            "models": [{"label": label, "path": path} for label, path in model_choices(home)],
        }

    return router
