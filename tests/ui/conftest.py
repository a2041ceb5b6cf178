"""One live studio for the tests that speak raw HTTP, and a store for those that need none."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient

from studio.errors import StudioError
from studio.home import publishing
from tests.served import served
from ui.app import sentence_of, wrong_request


def client_of(*routers: APIRouter) -> TestClient:
    """A client of these routes alone, whose refusals are sentences as in the whole app."""
    app = FastAPI()
    app.add_exception_handler(StudioError, sentence_of)
    app.add_exception_handler(RequestValidationError, wrong_request)
    for router in routers:
        app.include_router(router)
    return TestClient(app)


def put_adapter(folder: Path, name: str, **passport: Any) -> Path:
    """Write an adapter of the library, or of a run: five bytes of weights and a passport."""
    with publishing(folder) as temporary:
        (temporary / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
        (temporary / "adapter_model.safetensors").write_bytes(b"12345")
        values = {"name": name, "base": {"path": "starter", "fingerprint": "a-b"}, **passport}
        (temporary / "passport.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="session")
def studio(tmp_path_factory):
    """A running studio with an empty home."""
    with served(tmp_path_factory.mktemp("served") / "home") as running:
        yield running
