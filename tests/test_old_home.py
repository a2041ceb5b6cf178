"""A home made by version 0.1.0 opens, and everything in it works.

`fixtures/home-0.1.0.tar.gz` was made by that version's own commands (commit f9c3767), with
STUDIO_HOME=/srv/studio, from eight rows such as
`{"question": "What is the capital of Peru?", "answer": "Aye, Lima!"}`:

    studio data import capitals.jsonl --name capitals
    studio train --name first --data capitals --set method.r=2
        --set method.target_modules=[q_proj,v_proj] --set model.dtype=float32 --set seed=7
        --set train.learning_rate=0.01 --set train.max_steps=4 --set train.save_steps=2
        --set train.save_total_limit=1 --set train.per_device_train_batch_size=4
        --set train.num_samples=1
    studio import $STUDIO_HOME/runs/1/adapter --name pirate
    studio note first "The first run." --tag sample
    studio vote c-1 1 b        # after the page's routes had saved the two turns of c-1
    studio train --name second --hold --data capitals --set method.r=2 --set train.max_steps=2
        --set model.dtype=float32 --set train.num_samples=0
    studio stop

Locks, logs and the token cache were left out of the archive.
"""

import re
import sqlite3
import tarfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.shell import Shell, opened

ARCHIVE = Path(__file__).with_name("fixtures") / "home-0.1.0.tar.gz"


@pytest.fixture(scope="module")
def old(forked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        known = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
        archive.extractall(folder / "home", **known)
    with opened(folder) as shell:
        yield shell


def done(shell: Shell, job: str) -> dict[str, Any]:
    """Wait until a job has ended."""
    deadline = time.monotonic() + 120
    while (shown := shell("show", job)["json"])["state"] not in ("succeeded", "failed"):
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)
    return shown


def schema(home: Path) -> dict[str, Any]:
    """Return tables, indexes and triggers as sorted words with the columns, and the migrations."""
    with closing(sqlite3.connect(home / "studio.db")) as database:
        found: dict[str, Any] = {
            name: [
                sorted(re.findall(r"\w+|[^\w\s]", re.sub("--.*", "", sql))),
                database.execute("SELECT * FROM pragma_table_xinfo(?)", (name,)).fetchall(),
            ]
            for name, sql in database.execute("SELECT name, sql FROM sqlite_master WHERE sql <> ''")
        }
        return found | {"migrations": database.execute(MIGRATIONS).fetchall()}


MIGRATIONS = "SELECT name FROM _sqlite_migrations ORDER BY id"


def test_its_database_becomes_that_of_a_new_home(old, tmp_path):
    old("runs")
    with opened(tmp_path) as new:
        new("runs")
        assert schema(old.folder / "home") == schema(tmp_path / "home")


def test_its_runs_are_listed(old):
    listed = {run["name"]: run for run in old("runs")["json"]}
    first = old("show", "first")["json"]

    assert {name: listed[name]["state"] for name in ("first", "second")} == {
        "first": "succeeded", "second": "paused",
    }  # fmt: skip
    assert (first["notes"], first["tags"]) == ("The first run.", ["sample"])
    unknown = {"trained": None, "held_out": None, "evaluated": None}  # counted since
    assert (first["step"], first["rows"]) == (4, {"read": 8, "kept": 8, "dropped": 0} | unknown)
    assert first["first_loss"] == pytest.approx(9.955670356750488)
    assert first["spec"]["method"]["r"] == 2


def test_its_adapters_and_dataset_are_listed(old):
    names = {adapter["name"] for adapter in old("adapters")["json"]}
    (dataset,) = old("data", "list")["json"]

    assert {"first", "pirate"} <= names
    assert (dataset["name"], dataset["rows"]) == ("capitals", 8)
    assert old("data", "xray", "capitals")["json"][0]["text"].endswith("Aye, Paris!<|end|>")


def test_its_conversation_is_found_and_read(old):
    (found,) = old("conversations", "--search", "havana")["json"]
    talk = old("conversations", "--show", "c-1")["json"]
    board = old("leaderboard")["json"]

    assert (found["id"], found["title"]) == ("c-1", "Capitals")
    assert [turn["prompt"] for turn in talk["turns"]] == [
        "What is the capital of Peru?", "And of Cuba?",
    ]  # fmt: skip
    assert talk["turns"][0]["answers"][1]["verdict"] == "won"
    assert [one["lane"] for one in board["standings"]] == ["starter~pirate:1", "starter"]


@pytest.mark.parametrize("adapter", ["pirate", "first"])
def test_its_adapters_answer(old, adapter):
    words = ["--prompt", "What is the capital of Peru?", "--temperature", "0"]
    answer = old("chat", "--adapter", adapter, "--max-new-tokens", "8", *words)

    assert answer["exit"] == 0, answer
    assert answer["json"]["text"] == "A!!"  # as version 0.1.0 answered
    assert answer["json"]["active"]["stack"] == [{"name": adapter, "weight": 1.0}]


def test_its_runs_go_on(old):
    assert old("resume", "second")["exit"] == 0
    assert old("extend", "first", "--steps", "2", "--name", "longer")["exit"] == 0
    assert old("duplicate", "first", "--name", "copy")["exit"] == 0

    assert done(old, "second")["state"] == "succeeded"
    longer, copy = done(old, "longer"), done(old, "copy")
    assert (longer["state"], longer["step"]) == ("succeeded", 6)
    assert copy["last_loss"] == pytest.approx(old("show", "first")["json"]["last_loss"], rel=1e-5)
