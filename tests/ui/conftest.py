"""One live studio for the tests that speak raw HTTP, and a store for those that need none."""

from collections.abc import Iterator

import pytest

from jobs.store import JobStore
from studio.home import Home
from tests.served import Served, served


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running studio with an empty home."""
    with served(tmp_path_factory.mktemp("served") / "home") as running:
        yield running


@pytest.fixture
def store(home: Home) -> Iterator[JobStore]:
    """The queue of a private home."""
    opened = JobStore(home)
    yield opened
    opened.close()
