"""A Ray dashboard of our own: it answers what a test wants, so that no cluster is needed."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tests.serving import Handler, serving


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

    class Asked(Handler):
        def do_GET(self) -> None:
            here.asked.append(f"{self.command} {self.path}")
            answer = here.answers.get(self.path, 404)
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            if not isinstance(answer, int):
                raw = isinstance(answer, bytes)
                self.wfile.write(answer if raw else json.dumps(answer).encode())

        do_POST = do_GET

    with serving(Asked) as server:
        here.address = f"http://127.0.0.1:{server.server_port}"
        yield here
