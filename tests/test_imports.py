"""Modules that must start quickly load no heavy library; each row is a process of its own."""

import subprocess
import sys

import pytest

from tests.served import ROOT

TORCH = {"torch", "transformers", "datasets", "peft"}
EVERYTHING = TORCH | {"accelerate", "gradio", "pandas", "numpy"}
PREPARED = """
from studio.data.prepare import prepare
from studio.data.template.backend import backend_from_folder
from studio.spec import DataSource
from studio.starter import MODEL_DIR
backend = backend_from_folder(MODEL_DIR)
prepare(DataSource(path="starter:pirate"), backend, context_length=64, seed=0)
"""
HELP = """
from ui.cli import main
try:
    main.main(["--help"])
except SystemExit:
    pass
"""
DATA_PAGE = """
import tempfile
from fastapi import FastAPI
from fastapi.testclient import TestClient
from jobs.store import JobStore
from studio.data.importing import import_dataset
from studio.home import open_home
from studio.spec import DataSource
from ui.datasets import data_routes
with tempfile.TemporaryDirectory() as folder:
    home = open_home(folder)
    import_dataset(home, DataSource(path="starter:pirate"), name="p")
    app = FastAPI()
    app.include_router(data_routes(home, JobStore(home)))
    page = TestClient(app)
    for path in ("", "/p", "/p/rows", "/p/tokens", "/p/xray?pick=longest", "/p/export?format=csv"):
        assert page.get("/api/data" + path).status_code == 200, path
    assert page.post("/api/data/look", json={"path": "starter:pirate"}).status_code == 200
"""
ROWS: dict[str, tuple[str, set[str]]] = {
    "the library": ("import studio.adapters.library", TORCH),
    "devices and models": ("import studio.hardware, studio.models.sources", TORCH),
    "the starter": ("import studio.starter", TORCH),
    "data": ("import studio.data.check_dataset, studio.data.importing, studio.data.curate, "
             "studio.data.xray, studio.data.preview", TORCH),
    "preparing rows": (PREPARED, {"torch", "transformers"}),
    "the data page": (DATA_PAGE, TORCH),
    "the chat client": ("import jobs.chat_client", TORCH),
    "the supervisor": ("import jobs.supervisor, jobs.doctor", EVERYTHING),
    "the help": (HELP, {"torch", "gradio", "sqlite_utils", "transformers"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_nothing_heavy_is_imported(name):
    code, heavy = ROWS[name]
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(sorted({heavy!r} & set(sys.modules)))"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout[-300:] + done.stderr[-2000:]
