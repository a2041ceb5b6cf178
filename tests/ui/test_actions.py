"""Every action asked on the command line and over HTTP gives the same answer or refusal."""

import json

import pytest
import typer
from fastapi import FastAPI
from fastapi.testclient import TestClient

from jobs.actions import ACTIONS, ask
from jobs.actions.registry import schema
from jobs.store import JobStore
from studio.errors import StudioError
from studio.home import open_home
from ui.actions import action_routes
from ui.app import sentence_of
from ui.cli.main import app, main


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    return open_home()


REFUSED = [
    ("merge", {}, []),
    ("merge", {"stack": ["a:heavy"]}, ["--adapter", "a:heavy"]),
    ("merge", {"stack": ["nothing"]}, ["--adapter", "nothing"]),
    ("mix", {"stack": ["nothing"]}, ["--adapter", "nothing"]),
    ("push", {"folder": "/nowhere", "repo": "a/b"}, ["/nowhere", "a/b"]),
    ("promote", {"checkpoint": "last"}, ["last"]),
    ("import", {"source": "/nowhere"}, ["/nowhere"]),
    ("export", {"name": "nothing"}, ["nothing"]),
    ("adapters.rename", {"adapter": "nothing", "name": "b"}, ["nothing", "b"]),
    ("adapters.undo", {"adapter": "nothing"}, ["nothing"]),
    ("adapters.picture", {"adapter": "nothing"}, ["nothing"]),
    ("train", {"set": ["method.rr=3"]}, ["--set", "method.rr=3"]),
    ("train", {"model": " "}, ["--model", " "]),
    ("cancel", {"job": "nothing"}, ["nothing"]),
    ("move", {"job": "nothing"}, ["nothing"]),
    ("extend", {"job": "nothing", "steps": 1}, ["nothing", "--steps", "1"]),
    ("suite", {"file": "/nowhere"}, ["/nowhere"]),
    ("vote", {"conversation": "a", "turn": 1, "verdict": "A"}, ["a", "1", "A"]),
    ("recipes", {"delete": "nothing"}, ["--delete", "nothing"]),
    ("data.split", {"name": "nothing", "count": 1}, ["nothing", "--count", "1"]),
    ("data.delete", {"name": "nothing"}, ["nothing"]),
    ("presets.forget", {"name": "nothing"}, ["nothing"]),
]


@pytest.mark.parametrize(("name", "values", "words"), REFUSED, ids=lambda one: str(one)[:30])
def test_an_action_is_refused_alike(own_home, capsys, name, values, words):
    with pytest.raises(SystemExit) as ended:
        main([*name.split("."), *words, "--json"])
    command = json.loads(capsys.readouterr().out)

    store = JobStore(own_home)
    server = FastAPI()
    server.include_router(action_routes(own_home, store))
    server.add_exception_handler(StudioError, sentence_of)
    response = TestClient(server).post(f"/api/do/{name}", json=values)
    store.close()

    assert (ended.value.code, response.status_code) == (2, 400)
    assert response.json() == command


def test_target_modules_are_listed_and_said_in_the_shortest_way(own_home):
    modules = ask(own_home, "modules", {"model": "starter", "local": True}).value
    assert {"self_attn.q_proj", "mlp.down_proj"} <= {one["name"] for one in modules}
    queries = [one["key"] for one in modules if one["name"] == "self_attn.q_proj"]
    for chosen, targets in ((queries, ["q_proj"]), (queries[:1], queries[:1])):
        found = ask(own_home, "modules", {"model": "starter", "chosen": chosen}).value
        assert found == {"targets": targets}
    with pytest.raises(StudioError, match="not a folder here"):
        ask(own_home, "modules", {"model": "org/name", "local": True})


def test_row_numbers_may_be_ranges():
    read = ACTIONS["data.drop"].read
    assert read({"name": "a", "row": ["3", "40-42", 7]}).row == (3, 40, 41, 42, 7)
    for wrong in ("3-x", "0-99999999"):
        with pytest.raises(StudioError, match="row"):
            read({"name": "a", "row": [wrong]})


def test_every_field_of_a_dialog_is_an_option_of_its_command():
    group = typer.main.get_command(app)
    for action in ACTIONS.values():
        command = group
        for word in action.name.split("."):
            command = command.commands[word]
        options = {param.name for param in command.params}
        shown = {one.path.replace(".", "__") for one in action.fields if one.flag != "-"}
        assert shown <= options, action.name
        assert {one["name"] for one in schema(action)["fields"]} >= {
            one.replace("__", ".") for one in shown
        }


@pytest.mark.parametrize("name", ["compare", "endpoint", "stop"])
def test_what_loads_models_or_ends_the_page_is_asked_in_a_terminal_only(own_home, name):
    store = JobStore(own_home)
    server = FastAPI()
    server.include_router(action_routes(own_home, store))
    server.add_exception_handler(StudioError, sentence_of)
    client = TestClient(server)
    assert name not in {one["name"] for one in client.get("/api/actions").json()}
    response = client.post(f"/api/do/{name}", json={})
    store.close()
    assert response.status_code == 400
    assert f"`studio {name}` in a terminal" in response.json()["error"]["text"]
