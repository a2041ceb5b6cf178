"""OpenMP settings of processes that compute. Never imports torch.

At each barrier libgomp spins about 300,000 turns before it sleeps. Beside one busy process the
thread that is waited for has no core meanwhile, and a run takes nine times as long. A bounded spin
costs a quiet machine little. OpenMP reads its variables once, when torch loads it, and child
processes inherit them, so `studio/__init__.py` sets them before anything else is imported.
"""

import logging
import os
from collections.abc import MutableMapping

logger = logging.getLogger(__name__)

# libgomp counts turns of its loop; Intel's and LLVM's OpenMP count milliseconds.
BOUNDED = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}


def configure(variables: MutableMapping[str, str] = os.environ) -> None:
    """Bound the spin unless the user chose a setting; ignore an invalid number of threads."""
    threads = variables.get("OMP_NUM_THREADS")
    if threads and not all(_is_positive(number) for number in threads.split(",")):
        del variables["OMP_NUM_THREADS"]
        logger.warning(
            "OMP_NUM_THREADS=%s is ignored: it must be a positive integer. "
            "All physical cores are used.",
            threads[:80],
        )
    if not variables.get("OMP_WAIT_POLICY"):
        for name, value in BOUNDED.items():
            variables.setdefault(name, value)


def _is_positive(number: str) -> bool:
    return number.strip().isdecimal() and int(number) > 0
