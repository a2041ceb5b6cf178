"""Stand-in judges behind an OpenAI-compatible address on the loopback.

`judging("good")` prefers the answer with the higher word "score N"; "first" takes the one shown
first, "babbling" never gives a verdict, "down" answers 500, "hanging" never ends its answer,
"html" is another server, and "moved" redirects.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.serving import Handler, serving


def verdict(kind: str, prompt: str) -> str:
    first, second = (
        prompt.split("### Answer A\n")[1].split("### Your task")[0].split("### Answer B")
    )
    if kind == "babbling":
        return "Both have their merits, and who am I to say?"
    if kind == "first":
        return "I like how it begins.\nVerdict: A"
    one, other = (int((re.findall(r"score (\d+)", text) or ["0"])[-1]) for text in (first, second))
    return (
        f"The scores decide.\n**Verdict:** {'tie' if one == other else 'A' if one > other else 'B'}"
    )


@contextmanager
def judging(kind: str, *, fails_after: int = 10**9) -> Iterator[Any]:
    """Serve a judge; yields its address, and the requests it got as `asked`."""
    release, asked = threading.Event(), []

    class Judge(Handler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "judge-1"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, dict(self.headers), body))
            prompt = body["messages"][-1]["content"]
            if kind == "down" or len(asked) > fails_after:
                self._send(500, {"error": {"message": "Traceback (most recent call last)"}})
            elif kind == "hanging":
                self.send_response(200)
                self.end_headers()
                while not release.wait(0.05):
                    self.wfile.write(b" ")
            elif kind == "html":
                self._send(200, "<html>It works!</html>")
            elif kind == "moved":
                self.send_response(307)
                self.send_header("Location", "http://192.0.2.1/v1/chat/completions")
                self.end_headers()
            else:
                message = {"role": "assistant", "content": verdict(kind, prompt)}
                self._send(200, {"choices": [{"index": 0, "message": message}]})

        def _send(self, status: int, value: Any) -> None:
            data = (value if isinstance(value, str) else json.dumps(value)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with serving(Judge) as server:
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            release.set()
