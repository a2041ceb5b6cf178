"""Modules that must start quickly load no heavy library: a fresh process runs rows in turn.

What a row loads stays for those below, so that rows that allow less stand above; the help, which
allows other things than the supervisor, has a process of its own.
"""

import json
import subprocess
import sys

import pytest

from tests.served import ROOT

TORCH = {"torch", "transformers", "datasets", "peft", "accelerate"}
EVERYTHING = TORCH | {"gradio", "pandas", "numpy"}
HELP = """
from ui.cli import main
try:
    main.main(["--help"])
except SystemExit:
    pass
"""
SUPERVISOR = """
import jobs.supervisor, jobs.doctor, jobs.chat_client, jobs.job_table
from jobs.job_queue import JobStore
JobStore(home).close()
"""
DATA_PAGE = """
from fastapi import FastAPI
from fastapi.testclient import TestClient
from jobs.job_queue import JobStore
from studio.data.import_dataset import import_dataset
from studio.spec import DataSource
from ui.data_page import data_routes
import_dataset(home, DataSource(path="starter:pirate"), name="p")
app = FastAPI()
app.include_router(data_routes(home, JobStore(home)))
page = TestClient(app)
for path in ("", "/p", "/p/rows", "/p/tokens", "/p/xray?pick=longest", "/p/export?format=csv"):
    assert page.get("/api/data" + path).status_code == 200, path
assert page.post("/api/data/look", json={"path": "starter:pirate"}).status_code == 200
"""
PREPARED = """
from studio.data.prepare_run_data import prepare
from studio.data.model_tokenizer import backend_from_folder
from studio.spec import DataSource
from studio.starter import MODEL_DIR
backend = backend_from_folder(MODEL_DIR)
prepare(DataSource(path="starter:pirate"), backend, context_length=64, seed=0)
"""
ROWS: dict[str, tuple[str, set[str]]] = {
    "the help": (HELP, TORCH | {"gradio", "pandas", "sqlite_utils"}),
    "the supervisor": (SUPERVISOR, EVERYTHING),
    "the library": ("import studio.adapters.library", TORCH),
    "devices and models": ("import studio.hardware, studio.models.find_model", TORCH),
    "the starter": ("import studio.starter", TORCH),
    "data": ("import studio.data.import_dataset, studio.data.import_dataset, "
             "studio.data.curate_dataset, studio.data.xray, studio.data.mapping_preview", TORCH),
    "the data page": (DATA_PAGE, TORCH),
    "the page": ("from ui.app import build_app; build_app(home)", TORCH),
    "preparing rows": (PREPARED, {"torch", "transformers"}),
}  # fmt: skip
RUN = """
import json, sys
from studio.home import open_home
found = {}
for name, (code, heavy) in json.load(sys.stdin).items():
    exec(code, {"home": open_home(sys.argv[1])})
    found[name] = sorted(set(heavy) & set(sys.modules))
print(json.dumps(found))
"""


@pytest.mark.parametrize("names", [["the help"], [*ROWS][1:]], ids=["the help", "the rest"])
def test_nothing_heavy_is_imported(tmp_path, names):
    rows = json.dumps({name: (ROWS[name][0], sorted(ROWS[name][1])) for name in names})
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "home")], input=rows,
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {name: [] for name in names}
