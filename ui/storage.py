"""The System page's routes on storage: what uses space, the rules, a preview, a clean-up, a backup.

Counting many files costs time, so the counts are kept for a minute, or until a clean-up.
"""

import threading
import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from jobs import storage
from jobs.backup import backup
from jobs.store import JobStore
from studio.errors import HomeError
from studio.home import Home

KEPT_SECONDS = 60.0


class Rules(BaseModel):
    """What of finished runs is kept."""

    keep_checkpoints: int
    keep_days: int


class Clean(BaseModel):
    """Whether to remove, or only to show."""

    sure: bool = False


class Target(BaseModel):
    """Where a backup goes."""

    file: str = Field(max_length=1000)


def storage_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the routes on storage."""
    router = APIRouter(prefix="/api/storage")
    counted: dict[str, Any] = {"at": 0.0, "usage": {}}
    guard = threading.Lock()

    @router.get("")
    def usage() -> dict[str, Any]:
        with guard:
            if not counted["usage"] or time.monotonic() - counted["at"] > KEPT_SECONDS:
                counted.update(usage=storage.usage(store), at=time.monotonic())
            return dict(counted["usage"])

    @router.post("/rules")
    def rules(wanted: Rules) -> dict[str, Any]:
        storage.set_rules(store, **wanted.model_dump())
        return _preview()

    @router.post("/clean")
    def clean(wanted: Clean) -> dict[str, Any]:
        if not wanted.sure:
            return _preview()
        counted["usage"] = {}
        return storage.report(storage.clean(store)) | {"removed": True}

    @router.post("/backup")
    def write_backup(target: Target) -> dict[str, Any]:
        file = Path(target.file.strip()).expanduser()
        if not file.is_absolute() or file.suffix != ".tar":
            raise HomeError("Give the full path of a new file that ends in .tar.")
        return backup(home, file)

    def _preview() -> dict[str, Any]:
        return storage.report(storage.spare(store)) | {"removed": False}

    return router
