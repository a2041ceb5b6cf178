"""The page's way to the chat host: what is wrong is refused before a host is asked or started."""

import time

import pytest

from jobs.processes import me
from studio.spec import RunSpec
from tests.jobs.conftest import take
from tests.ui.conftest import client_of
from ui.compare_page import compare_routes


@pytest.fixture
def client(home, store):
    return client_of(compare_routes(home, store))


def test_lanes_can_choose_from_bases_adapters_and_recipes(client):
    choices = client.get("/api/chat/choices").json()

    assert choices["models"][0]["path"] == "starter"
    assert choices["adapters"] == choices["recipes"] == []
    assert "What is the capital of France?" in choices["prompts"]
    moved = {"id": "gone", "lane": 0, "stack": [{"name": "p", "weight": 0.5}]}
    assert client.post("/api/chat/weigh", json=moved).json() == {"moved": False}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("weigh", {"id": "a", "lane": 16, "stack": []}),
        ("weigh", {"id": "../a", "lane": 0, "stack": []}),
        ("weigh", {"id": "a", "lane": 0, "stack": [{"name": "p", "weight": "much"}]}),
        ("weigh", {"id": "a", "lane": 0, "stack": [{"name": "p", "weight": 99}]}),
        ("generate", {"id": "a", "lanes": []}),
        ("generate", {"id": "a", "lanes": [{"model": "starter", "messages": []}] * 17}),
        ("generate", {"id": "a b", "lanes": [{"model": "starter", "messages": []}]}),
        ("stop", {"id": ""}),
    ],
)
def test_what_is_no_request_is_refused(client, path, body):
    assert client.post(f"/api/chat/{path}", json=body).status_code == 422


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"seed": 1.5}, "Lane 1: sampling.seed is 1.5: input should be a whole number."),
        (
            {"chat_template_kwargs": "enable_thinking"},
            "Lane 1: write it as enable_thinking=false, reasoning_effort=high.",
        ),
        ({"heat": 1}, "The page asked for something that does not exist; reload it."),
    ],
)
def test_a_wrong_setting_is_named_and_an_unknown_one_is_of_an_old_page(client, sampling, words):
    lane = {"messages": [{"role": "user", "content": "Hi"}], "sampling": sampling}
    answer = client.post("/api/chat/generate", json={"id": "a", "lanes": [lane]})
    assert (answer.status_code, answer.json()["error"]["text"]) == (422, words)


def test_the_host_is_started_ahead_only_where_nothing_trains(client, store, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr("jobs.chat_client.ensure_host", lambda home: asked.append(str(home.path)))
    store.submit(RunSpec())
    claim = take(store, "cpu")

    assert client.post("/api/chat/warm", json={}).json() == {"warming": False}
    store.claims.register(claim, me())
    store.claims.finish(claim, "succeeded")
    assert client.post("/api/chat/warm", json={}).json() == {"warming": True}
    deadline = time.monotonic() + 10
    while not asked and time.monotonic() < deadline:
        time.sleep(0.01)
    assert asked == [str(store.home.path)]


def test_a_stop_says_whether_the_host_knew_what_to_stop(client, monkeypatch):
    assert client.post("/api/chat/stop", json={"id": "early"}).json() == {"stopped": False}
    monkeypatch.setattr("jobs.chat_client.stop", lambda home, request: request == "running")
    assert client.post("/api/chat/stop", json={"id": "running"}).json() == {"stopped": True}
