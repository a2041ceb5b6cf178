"""One prompt gets one answer, whichever way it is asked: every way has the record's defaults."""

from collections.abc import Iterator, Sequence

import pytest
from fastapi.testclient import TestClient

from jobs import chat_client
from jobs.openai_api import chat_request
from studio.chat.lanes import MAX_NEW_TOKENS, Delta, Lane, Sampling
from studio.evaluation.suites import SuiteRequest, parse_cases
from studio.home import Home
from tests.ui.conftest import client_of
from ui.cli.main import main
from ui.compare_page import compare_routes

PROMPT = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": PROMPT}]


@pytest.fixture
def asked(monkeypatch):
    """The lanes that commands would answer."""
    lanes: list[Lane] = []

    class Models:
        def __init__(self, home: Home, device: str) -> None:
            pass

        def stream(self, asked: Sequence[Lane]) -> Iterator[Delta]:
            lanes.extend(asked)
            yield Delta(lane=0, text="Paris", done=True, reason="stop")

    monkeypatch.setattr("studio.chat.resident_models.ResidentModels", Models)
    return lanes


@pytest.mark.parametrize("command", ["chat", "compare"])
def test_commands_ask_with_the_records_defaults(command, asked, home, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--prompt", PROMPT, "--home", str(home.path), "--json"])

    assert not ended.value.code
    assert asked == [Lane(messages=MESSAGES)]


def test_the_openai_route_asks_with_the_records_defaults(home):
    request = chat_request({"model": "starter", "messages": MESSAGES}, home)

    unlimited = Sampling(max_new_tokens=MAX_NEW_TOKENS)  # as other servers of this API
    assert request.lanes == (Lane(messages=MESSAGES, sampling=unlimited),)


def test_a_suite_asks_with_the_records_defaults():
    suite = SuiteRequest.parse({"lanes": [{}], "cases": parse_cases(PROMPT)})

    assert suite.lanes[0].with_prompt(PROMPT) == Lane(messages=MESSAGES)


def test_the_page_shows_and_asks_with_the_records_defaults(home, store, monkeypatch):
    sent: list[dict] = []
    monkeypatch.setattr(chat_client, "find_host", lambda home: "running")
    monkeypatch.setattr(chat_client, "relay", lambda home, request: sent.append(request) or [b""])
    page: TestClient = client_of(compare_routes(home, store))

    shown = page.get("/api/chat/choices").json()["sampling"]
    page.post("/api/chat/generate", json={"id": "a", "lanes": [{"messages": MESSAGES}]})

    assert {name: field["default"] for name, field in shown.items()} == Sampling().model_dump(
        mode="json"
    )
    assert sent[0]["lanes"] == [Lane(messages=MESSAGES).model_dump(mode="json")]
