"""The routes of Compare: what is kept comes back, votes are ranked, files are downloads."""

import pytest

from tests.ui.conftest import client_of
from ui.compare_page import compare_routes
from ui.queue_routes import queue_routes

LANES = [{"model": "starter", "stack": []}, {"model": "starter", "stack": [{"name": "p"}]}]
ANSWERS = [{"text": "a", "lane": "starter"}, {"text": "<b>", "lane": "starter~p:1"}]
VOTE = {"conversation": "c1", "turn": 1, "verdict": "B", "blind": True}


@pytest.fixture
def client(store):
    talking = client_of(compare_routes(store.home, store), queue_routes(store.home, store))
    kept = {"id": "c1", "lanes": LANES, "settings": {"shared": {"system": ""}}}
    talking.post("/api/chat/conversations", json=kept)
    turn = {"conversation": "c1", "number": 0, "prompt": "Hi", "answers": ANSWERS}
    talking.post("/api/chat/turns", json=turn)
    return talking


def saved(client, **values):
    return client.post("/api/do/conversations", json=values)


def test_a_conversation_is_kept_found_branched_and_deleted(client):
    assert saved(client, search="hi").json()[0]["id"] == "c1"
    assert saved(client, show="c1").json()["lanes"] == LANES
    assert (
        client.post("/api/chat/branch", json={"id": "c1", "new": "c2", "turns": 0}).json()["turns"]
        == []
    )
    saved(client, delete="c1")
    gone = saved(client, show="c1")
    assert gone.status_code == 400 and "no conversation" in gone.json()["error"]["text"]


def test_a_vote_is_on_the_answers_that_were_shown(client):
    stale = client.post("/api/do/vote", json=VOTE | {"shown": ["a", "older"]})
    assert "in another tab" in stale.json()["error"]["text"]
    assert client.post("/api/do/leaderboard", json={}).json()["votes"] == 0
    assert client.post("/api/do/vote", json=VOTE | {"shown": ["a", "<b>"]}).status_code == 200


@pytest.mark.parametrize("form", ["csv", "jsonl", "html"])
def test_votes_are_downloads_that_no_browser_runs(client, form):
    client.post("/api/do/vote", json=VOTE)

    answer = client.get(f"/api/chat/export/votes.{form}")

    assert answer.headers["content-disposition"] == f'attachment; filename="votes.{form}"'
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<b>" not in answer.text or form != "html"


def test_a_turn_of_no_conversation_is_refused(client):
    turn = {"conversation": "../x", "number": 0, "prompt": "", "answers": []}
    assert client.post("/api/chat/turns", json=turn).status_code == 422
