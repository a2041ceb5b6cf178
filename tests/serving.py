"""HTTP servers on the loopback, for tests."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers without logging."""

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def serving(handler: type[Handler]) -> Iterator[ThreadingHTTPServer]:
    """Serve on a free port while the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
