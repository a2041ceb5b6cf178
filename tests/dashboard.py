"""A Ray dashboard of our own: it answers what a test wants, so that no cluster is needed."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Dashboard:
    """What it answers by path (a number is a status), and what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "/api/version": {"ray_version": "2.60.0"},
            "/nodes?view=summary": nodes(
                node(CPU=4, GPU=4), node(CPU=4, GPU=2), node(state="DEAD", GPU=8), {}
            ),
            "/api/cluster_status": status(GPU=[1.0, 6.0]),
        }
        self.asked: list[str] = []
        self.address = ""


def nodes(*found: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"summary": list(found)}}


def node(*, state: str = "ALIVE", **resources: float) -> dict[str, Any]:
    return {"raylet": {"state": state, "resourcesTotal": resources}}


def status(**usage: list[float]) -> dict[str, Any]:
    return {"data": {"clusterStatus": {"loadMetricsReport": {"usage": usage}}}}


@contextlib.contextmanager
def answering() -> Iterator[Dashboard]:
    """Serve one on loopback."""
    here = Dashboard()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.asked.append(f"{self.command} {self.path}")
            answer = here.answers.get(self.path, 404)
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            if not isinstance(answer, int):
                raw = isinstance(answer, bytes)
                self.wfile.write(answer if raw else json.dumps(answer).encode())

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
