"""A live studio attacked from outside: files, sizes, forged requests, hostile names and logs."""

import http.client
import json
import os
import socket

import pytest

from jobs.job_queue import JobStore
from studio.home import open_home
from studio.spec import RunSpec
from tests.served import ROOT, served
from tests.ui.test_security import ask
from ui.app import build_app

SECRET = b"the-secret-of-this-home"


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return open_home(tmp_path_factory.mktemp("attacked") / "home")


def requests_of(app: object) -> list[tuple[str, str]]:
    """Every method and path that the application answers, gradio's included."""
    inner = app
    while not hasattr(inner, "routes"):
        inner = inner.app  # type: ignore[attr-defined]
    found: list[tuple[str, str]] = []
    waiting = [("", route) for route in inner.routes]
    while waiting:
        prefix, route = waiting.pop()
        router = getattr(route, "original_router", None)  # how FastAPI keeps an included router
        if router is not None:
            waiting += [(prefix, one) for one in router.routes if hasattr(one, "path")]
            waiting += [(router.prefix, one) for one in router.routes if not hasattr(one, "path")]
            continue
        path = prefix + getattr(route, "path", "")
        found += [(method, path) for method in getattr(route, "methods", None) or ()]
        waiting += [(path, one) for one in getattr(route, "routes", None) or ()]
    return [(m, p.replace("{", "").replace("}", "").replace(":path", "")) for m, p in found]


FOREIGN = [
    {"host": "evil.test"}, {"host": "127.0.0.1.evil.test"}, {"host": ""},
    {"origin": "http://evil.test"}, {"origin": "null"}, {"origin": "http://localhost:9999"},
    {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    {"origin": "http://evil.test", "content-type": "text/plain"},
]  # fmt: skip


def test_every_single_route_refuses_a_foreign_host_and_origin(house):
    from fastapi.testclient import TestClient

    app = build_app(house)
    known = requests_of(app)
    assert len(known) > 60 and any("gradio_api" in path for _, path in known)
    assert {"/api/live", "/api/actions", "/api/do/name"} <= {path for _, path in known}
    client = TestClient(app, base_url="http://127.0.0.1:7860", follow_redirects=False)
    for method, path in known:
        for headers in FOREIGN:
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 403, (method, path, headers)
            if method != "HEAD":
                assert answer.json()["error"]["kind"] == "refused"
            assert "access-control-allow-origin" not in answer.headers
            assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/queue/data?session_hash=x", "/gradio_api/heartbeat/x", "/api/chat/answer", "/ws"],
)
def test_no_stream_and_no_socket_opens_for_a_foreign_page(studio, path):
    upgrade = {"Origin": "http://evil.test", "Connection": "Upgrade", "Upgrade": "websocket",
               "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
               "Sec-WebSocket-Version": "13"}  # fmt: skip
    assert ask(studio, "GET", path, upgrade)[0] in (400, 403)
    stream = {"Origin": "http://evil.test", "Accept": "text/event-stream"}
    assert ask(studio, "GET", path, stream)[0] == 403


@pytest.fixture(scope="module")
def secret(studio):
    for place in ("state/secrets/webhook", "runs/secret.txt", "adapters/secret.txt"):
        file = studio.home / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(SECRET)
    link = studio.home / "adapters" / "link"
    if not link.exists():
        link.symlink_to("/etc")
    return SECRET


PLACES = [
    "{home}/state/secrets/webhook", "{home}/studio.db", "{home}/runs/secret.txt", "/etc/passwd",
    "{home}/adapters/link/passwd", "{root}/pyproject.toml", "../../pyproject.toml",
    "/proc/self/environ", "file:///etc/passwd", "app.py", "{home}/state/uploads/../secrets/webhook",
]  # fmt: skip
DOORS = [
    "/gradio_api/file={}", "/file={}", "/gradio_api/file/{}", "/studio/{}", "/studio/..%2f..%2f{}",
    "/studio/%2e%2e/%2e%2e/{}", "/static/{}", "/assets/{}", "/gradio_api/proxy={}",
    "/gradio_api/download?path={}", "/custom_component/x/{}", "/gradio_api/stream/x/{}", "//{}",
    "/api/outcome/{}", "/api/data/{}", "/..%5c..%5c{}",
]  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_no_route_serves_a_file_of_the_machine(studio, secret, door):
    for place in PLACES:
        path = door.format(place.format(home=studio.home, root=ROOT))
        status, _, body = ask(studio, "GET", path, {})
        assert status >= 300 or b"gradio" in body or not body, (path, status)
        for inside in (secret, b"root:", b"SQLite format", b"[build-system]", b"PATH="):
            assert inside not in body, path


def test_the_server_fetches_nothing_for_a_page(studio):
    """A listener of ours would hear a request that the studio is talked into (SSRF)."""
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x"
        for path in (f"/gradio_api/proxy={url}", f"/gradio_api/file={url}", f"/file={url}"):
            assert ask(studio, "GET", path, {})[0] >= 400
        with pytest.raises(TimeoutError):
            trap.accept()


@pytest.mark.parametrize(
    ("path", "size"),
    [("/api/do/cancel", 17 << 20), ("/gradio_api/upload", 1),
     ("/gradio_api/queue/join", 1 << 40), ("/api/do/backup", 17 << 20)],
)  # fmt: skip
def test_what_is_announced_too_large_is_refused_before_it_is_sent(studio, path, size):
    connection = http.client.HTTPConnection(studio.address.removeprefix("http://"), timeout=20)
    connection.putrequest("POST", path)
    connection.putheader("Content-Length", str(size))
    connection.putheader("Content-Type", "application/json")
    connection.endheaders(b"{")
    assert connection.getresponse().status == 413
    connection.close()


def test_what_is_not_announced_is_counted(studio):
    host, port = studio.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(
            f"POST /api/do/queue HTTP/1.1\r\nHost: {host}:{port}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        answer = b""
        try:
            for _ in range(20):
                raw.sendall(b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20)))
            raw.sendall(b"0\r\n\r\n")
            answer = raw.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            answer = b"HTTP/1.1 413"
        assert b" 413" in answer


def test_two_lengths_are_refused(studio):
    host = studio.address.removeprefix("http://")
    with socket.create_connection(tuple(host.split(":")), timeout=20) as raw:
        raw.sendall(f"POST /api/do/queue HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n"
                    "Content-Length: 40\r\n\r\n{}".encode())  # fmt: skip
        assert raw.recv(100).split()[1] in (b"400", b"413")


HOSTILE = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "javascript:alert(1)",
    "{{7*7}}", "${7*7}", "../../etc/passwd", "a\u202egnp.exe", "=cmd|' /C calc'!A0",
    "\"; rm -rf ~; #", "$(touch /tmp/hit)", "`touch /tmp/hit`", "%00", "con", "." * 100,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_a_name_and_names_no_place(studio, name, tmp_path):
    store = JobStore(open_home(studio.home))
    job = store.submit(RunSpec(name="harmless"), held=True)
    with store.database.writing() as db:  # as an older studio may have stored it
        db.conn.execute(
            "UPDATE jobs SET name = ?1, spec = json_set(spec, '$.name', ?1) WHERE id = ?2",
            (name, job.id),
        )
    assert store.get(job.id).name == name
    log = store.log_path(job.id)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"{name}\n<script>alert(1)</script>\n")
    for view in ("log", "config", "history"):
        status, headers, body = ask(studio, "GET", f"/api/live?detail={job.id}&view={view}", {})
        assert status == 200 and headers["content-type"] == "application/json"
        assert headers["x-content-type-options"] == "nosniff"
        json.loads(body)
    folders = {path.name for path in (studio.home / "runs").iterdir() if path.is_dir()}
    assert all(folder.isdigit() for folder in folders), "folders are numbers, never names"
    assert not os.path.exists("/tmp/hit")
    store.delete(job.id)
    store.close()


SPY = """
import sys
def spy(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        place = str(args[1] if event != "socket.getaddrinfo" else args[0])
        own = ("127.0.0.1", "::1", "localhost", "/", "None", "0.0.0.0")
        if not any(here in place for here in own):
            with open({log!r}, "a") as file:
                file.write(event + " " + place + "\\n")
sys.addaudithook(spy)
"""


def test_the_server_asks_nobody_outside_for_anything(tmp_path):
    """Every page, every route that only looks, a launch: no connection leaves the machine."""
    log = tmp_path / "outside.txt"
    (tmp_path / "sitecustomize.py").write_text(SPY.format(log=str(log)))
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    with served(tmp_path / "home", PYTHONPATH=path, HF_HUB_OFFLINE="1") as alone:
        for page in ("/", "/runs", "/compare", "/data", "/system", "/config", "/api/live",
                     "/api/system", "/api/actions", "/theme.css"):  # fmt: skip
            assert ask(alone, "GET", page, {})[0] in (200, 204, 404), page
        alone.json("/api/do/queue", {"on_error": "stop"})
    assert not log.exists(), log.read_text()
