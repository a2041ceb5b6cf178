"""The guard, attacked from outside by raw HTTP against a live server, gradio's routes included."""

import asyncio
import contextlib
import http.client

from huggingface_hub import constants

from tests.served import Served
from ui.app import OfflineSwitch
from ui.security import OriginCheck

OWN = "http://{host}"


def ask(
    studio: Served, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    host = studio.address.removeprefix("http://")
    with contextlib.closing(http.client.HTTPConnection(host, timeout=20)) as connection:
        connection.putrequest(method, path, skip_host=True)
        for name, value in ({"Host": host} | headers).items():
            connection.putheader(name, value.format(host=host))
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def test_our_own_page_passes_and_is_protected(studio):
    status, headers, body = ask(studio, "GET", "/", {"Origin": OWN, "Sec-Fetch-Site": "none"})
    assert status == 200
    assert b"gradio-app" in body
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    port = studio.address.rpartition(":")[2]
    named = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
    assert ask(studio, "GET", "/api/health", named)[0] == 200


def test_a_link_from_elsewhere_may_open_a_page_but_not_an_api(studio):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document"}  # fmt: skip
    assert ask(studio, "GET", "/runs", link)[0] == 200
    assert ask(studio, "GET", "/api/live", link)[0] == 403
    assert ask(studio, "POST", "/runs", link)[0] == 403


def test_a_header_that_comes_twice_is_refused():
    async def never(*_: object) -> None:
        raise AssertionError

    twice = [(b"host", b"127.0.0.1"), (b"host", b"evil.test")]
    assert OriginCheck(never).refusal({"type": "http", "headers": twice})


def test_each_request_obeys_the_offline_switch_of_another_process(home, monkeypatch):
    seen, place = [], home.state / "offline"
    monkeypatch.setattr("studio.offline._GIVEN", "")
    monkeypatch.setattr("studio.offline._applied", None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    async def page(scope, receive, send) -> None:
        seen.append(constants.HF_HUB_OFFLINE)

    async def request() -> None:
        await OfflineSwitch(page, home)({"type": "http"}, None, None)

    for change in (lambda: None, place.touch, place.unlink):
        change()
        asyncio.run(request())
    assert seen == [False, True, False]
