"""How the chat host shares devices with running jobs.

Training comes first: chat takes a GPU only while no job has it, lets go when one wants it, and on a
CPU that is training it uses half the threads. A database that cannot be read costs this courtesy,
never an answer.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from jobs.seats import device_of
from jobs.store import JobStore
from studio.errors import StudioError
from studio.home import Home

logger = logging.getLogger(__name__)


class Leases:
    """The chat host's own leases; torch is loaded when a method that needs it is called."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._store: JobStore | None = None
        self._held: set[str] = set()
        self._threads = 0

    def announce(self, url: str) -> None:
        """Say that this process lives, so that pages show it and `studio stop` ends it."""
        try:
            self._open().announce("chat", url=url)
        except StudioError as error:
            logger.warning("the chat host is not announced: %s", error)

    def device(self, asked: str) -> str:
        """Return where models may be loaded now: a GPU that a job has is not for chat."""
        if asked != "auto":
            return asked
        from studio.models.loading import default_device

        device = default_device()
        return "cpu" if device in self._taken_by_jobs() else device

    def take(self, models: list[dict[str, Any]]) -> None:
        """Write down what is in memory where."""
        memory: dict[str, int] = {}
        for model in models:
            memory[model["device"]] = memory.get(model["device"], 0) + model["bytes"]
        self._held = set(memory)
        try:
            for device, count in memory.items():
                self._open().take_chat_lease(device, memory_bytes=count)
        except StudioError as error:
            logger.warning("no chat lease: %s", error)

    def give_back(self) -> None:
        """Say that nothing is in memory any more."""
        self._held = set()
        try:
            self._open().return_chat_lease()
        except StudioError as error:
            logger.warning("no chat lease returned: %s", error)

    def wanted(self) -> bool:
        """Whether a job needs a device that chat holds; a CPU is shared while its memory lasts."""
        return bool(self._held) and any(
            device in self._held
            and (row["wanted_back"] or (row["holder"] == "job" and device != "cpu"))
            for row in self._rows()
            for device in [device_of(row["device"])]
        )

    def share_the_cpu(self) -> None:
        """Use half the threads while a job trains on the CPU, all otherwise."""
        if os.environ.get("OMP_NUM_THREADS"):
            return
        import torch

        self._threads = self._threads or torch.get_num_threads()
        crowded = "cpu" in self._taken_by_jobs()
        wanted = max(1, self._threads // 2) if crowded else self._threads
        if torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)

    def _taken_by_jobs(self) -> set[str]:
        return {device_of(row["device"]) for row in self._rows() if row["holder"] == "job"}

    def _rows(self) -> list[dict[str, Any]]:
        try:
            return self._open().leases()
        except StudioError as error:
            logger.warning("leases cannot be read: %s", error)
            return []

    def _open(self) -> JobStore:
        if self._store is None:
            self._store = JobStore(self._home)
        return self._store
