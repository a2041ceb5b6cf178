"""How much memory a run will need of its device, estimated when it enters the queue.

The estimate reads the run's rows, so it is only made where that is quick: nothing is downloaded and
no large file is tokenised here. What is not known is 0, and a job of 0 is placed as before.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from studio import starter
from studio.errors import StudioError
from studio.home import Home
from studio.spec import RunSpec

logger = logging.getLogger(__name__)

MOST_BYTES = 16 * 2**20
MOST_ESTIMATES = 40


def needed_bytes(spec: RunSpec, home: Home) -> int:
    """Return the peak of a run on its device in bytes; 0 where it is not known."""
    if not _is_quick(spec, home):
        return 0
    from studio.training.estimate import estimate

    try:
        return estimate(spec, home).total_bytes
    except StudioError as error:
        logger.info("no estimate: %s", error.text)
        return 0


def needed_by_each(specs: Iterable[RunSpec], home: Home) -> list[int]:
    """Return the bytes of each run of a sweep; beyond some different ones, the most of those."""
    known: dict[RunSpec, int] = {}
    found = []
    for spec in specs:
        alike = spec.with_values({"name": "", "seed": 0, "train.learning_rate": "auto"})
        if alike not in known and len(known) < MOST_ESTIMATES:
            known[alike] = needed_bytes(spec, home)
        found.append(known.get(alike, max(known.values())))
    return found


def _is_quick(spec: RunSpec, home: Home) -> bool:
    if spec.model.path != starter.MODEL and not Path(spec.model.path).expanduser().exists():
        return False
    if "/" not in spec.data.path and (home.datasets / spec.data.path).is_dir():
        return (home.datasets / spec.data.path / "dataset.json").is_file()
    path = starter.resolve_data(spec.data.path) or Path(spec.data.path).expanduser()
    return path.is_file() and path.stat().st_size <= MOST_BYTES
