"""The guard, attacked from outside by raw HTTP against a live server, gradio's routes included."""

import contextlib
import http.client
import json

import pytest

from tests.served import Served
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


@pytest.mark.parametrize("path", ["/", "/runs", "/api/live", "/config", "/gradio_api/info",
                                  "/studio/main.js"])  # fmt: skip
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.test"},
        {"Host": "127.0.0.1.evil.test"},
        {"Host": ""},
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate",
         "Sec-Fetch-Dest": "iframe"},
    ],
)  # fmt: skip
def test_a_foreign_request_is_refused_on_every_route(studio, path, headers):
    status, answered, body = ask(studio, "GET", path, headers)
    assert status == 403
    assert "access-control-allow-origin" not in answered
    assert json.loads(body)["error"]["kind"] == "refused"


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data"])
@pytest.mark.parametrize(
    "path", ["/api/do/cancel", "/gradio_api/upload", "/gradio_api/component_server",
             "/gradio_api/queue/join", "/gradio_api/run/predict"]
)  # fmt: skip
def test_a_foreign_page_can_post_nothing(studio, path, kind):
    headers = {"Origin": "https://evil.test", "Content-Type": kind, "Sec-Fetch-Site": "cross-site"}
    assert ask(studio, "POST", path, headers, b"{}")[0] == 403


def test_our_own_page_passes_and_is_protected(studio):
    status, headers, body = ask(studio, "GET", "/", {"Origin": OWN, "Sec-Fetch-Site": "none"})
    assert status == 200
    assert b"gradio-app" in body
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_a_link_from_elsewhere_may_open_a_page_but_not_an_api(studio):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document"}  # fmt: skip
    assert ask(studio, "GET", "/runs", link)[0] == 200
    assert ask(studio, "GET", "/api/live", link)[0] == 403
    assert ask(studio, "POST", "/runs", link)[0] == 403


def test_localhost_by_name_is_ours(studio):
    port = studio.address.rpartition(":")[2]
    named = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
    assert ask(studio, "GET", "/api/health", named)[0] == 200


def test_a_header_that_comes_twice_is_refused():
    async def never(*_: object) -> None:
        raise AssertionError

    twice = [(b"host", b"127.0.0.1"), (b"host", b"evil.test")]
    assert OriginCheck(never).refusal({"type": "http", "headers": twice})


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=studio.db",
        "/studio/../app.py",
        "/studio/%2e%2e/app.py",
        "/studio/..%2fapp.py",
    ],
)
def test_no_route_serves_a_file_that_is_not_ours(studio, path):
    status, _, body = ask(studio, "GET", path, {})
    assert status in {403, 404}
    assert b"root:" not in body
