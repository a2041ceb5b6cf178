"""Supervisor and runners may die at any moment: every run still succeeds exactly once."""

import os

from studio.home import Home
from tests.jobs.chaos import storm


def test_a_storm_of_kills_loses_and_doubles_nothing(home: Home) -> None:
    kills = int(os.environ.get("STUDIO_CHAOS_KILLS", "25"))
    figures = storm(home, kills=kills, jobs=max(4, kills // 8), seed=1)
    assert figures["kills"] > 0
