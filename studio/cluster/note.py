"""The note of a run that was sent: `cluster.json` in its folder, while its job is on the cluster.

It is written before Ray hears of the run and names the job that Ray will know, so that a run is
sent once, whoever dies in between.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from studio.cluster.order import CONTROL, write_json
from studio.cluster.storage import Place
from studio.errors import ClusterError
from studio.knobs import Record

logger = logging.getLogger(__name__)

NOTE = "cluster.json"


class Sent(Record):
    """Which job on the cluster is this run's, and how much of it has been heard."""

    submission: str
    place: str
    submitted: bool = False
    file: int = 1
    lines: int = 0
    step: int = 0
    total_steps: int | None = None

    def keep(self, run_dir: Path) -> Sent:
        """Write the note in one rename."""
        temporary = run_dir / f".tmp-{NOTE}"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(self.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, run_dir / NOTE)
        return self


def remembered(run_dir: Path) -> Sent | None:
    """Return the note of a run that was sent."""
    try:
        return Sent.model_validate_json((run_dir / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def forget(run_dir: Path) -> None:
    """The job on the cluster is over and everything of it is here."""
    (run_dir / NOTE).unlink(missing_ok=True)


def wish_to_stop(sent: Sent) -> None:
    """Leave the wish to stop where the run looks for it; a storage away is told to the log."""
    try:
        write_json(Place(sent.place), CONTROL, {"number": time.time_ns(), "wish": "stop"})
    except (OSError, ClusterError) as error:
        logger.warning("%s could not be asked to stop: %s", sent.submission, error)
