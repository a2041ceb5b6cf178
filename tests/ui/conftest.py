"""One live studio for the tests that speak raw HTTP, and a store for those that need none."""

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from jobs.store import JobStore
from studio.errors import StudioError
from tests.served import served
from ui.app import sentence_of


def client_of(*routers: APIRouter) -> TestClient:
    """A client of these routes alone, whose refusals are sentences as in the whole app."""
    app = FastAPI()
    app.add_exception_handler(StudioError, sentence_of)
    for router in routers:
        app.include_router(router)
    return TestClient(app)


@pytest.fixture(scope="session")
def studio(tmp_path_factory):
    """A running studio with an empty home."""
    with served(tmp_path_factory.mktemp("served") / "home") as running:
        yield running


@pytest.fixture
def store(home):
    """The queue of a private home."""
    opened = JobStore(home)
    yield opened
    opened.close()
