"""The memory that a run will need on its device, estimated when it is submitted.

Submitting happens in the page's process, so the estimate tokenises only the first rows of the
dataset: its largest batch is made of their longest ones. The runner reads the rest. Nothing is
downloaded; what is not known is 0, and the scheduler places such a job without a check of memory.
"""

import logging
from collections.abc import Iterable

from studio.errors import StudioError
from studio.home import Home
from studio.models import find_model
from studio.spec import RunSpec

logger = logging.getLogger(__name__)

MOST_ESTIMATES = 40


def needed_bytes(spec: RunSpec, home: Home) -> int:
    """Return the peak of a run on its device in bytes, from its first rows; 0 if not known."""
    from studio.training.estimate_memory_and_time import estimate

    if not find_model.origin_of(spec.model.path, spec.model.revision).is_local:
        return 0
    try:
        return estimate(spec, home, from_first_rows=True).total_bytes
    except StudioError as error:
        logger.info("no estimate: %s", error.text)
        return 0


def needed_by_each(specs: Iterable[RunSpec], home: Home) -> list[int]:
    """Return the bytes of each run of a sweep; after `MOST_ESTIMATES`, their largest."""
    known: dict[RunSpec, int] = {}
    found = []
    for spec in specs:
        alike = spec.with_values({"name": "", "seed": 0, "train.learning_rate": "auto"})
        if alike not in known and len(known) < MOST_ESTIMATES:
            known[alike] = needed_bytes(spec, home)
        found.append(known.get(alike, max(known.values())))
    return found
