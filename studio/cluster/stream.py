"""What a run says on the cluster, heard at home: JSON lines in numbered files on the storage.

The newest file is written anew a few times a second until it is large enough, then the next one
begins; a reader remembers how many lines of which file it has had. Writing anew never changes a
line that was there, so a reader that meets a file half-written sees fewer lines, never wrong ones.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

from studio.cluster.storage import Place

logger = logging.getLogger(__name__)

FOLDER = "events"
TICK_SECONDS = 0.25
FILE_BYTES = 64 << 10
LAST_TRIES = 20


class Writer:
    """The one process that speaks; what it says is on the storage a moment later."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._number = 1 + max(map(_number, place.names(FOLDER)), default=0)
        self._text, self._stored = b"", 0
        self._guard, self._storing = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="stream", daemon=True)
        self._thread.start()

    @property
    def is_first(self) -> bool:
        """Whether nobody has spoken before."""
        return self._number == 1

    def say(self, values: dict[str, Any]) -> None:
        """Add one line."""
        line = json.dumps(values, ensure_ascii=False).encode() + b"\n"
        with self._guard:
            self._text += line

    def flush(self) -> None:
        """Have everything on the storage before this returns."""
        with self._storing:
            with self._guard:
                text = self._text
            if len(text) == self._stored:
                return
            self._place.write(_name(self._number), text)
            self._stored = len(text)
            if len(text) > FILE_BYTES:
                with self._guard:
                    self._text = self._text[len(text) :]
                self._number, self._stored = self._number + 1, 0

    def close(self) -> None:
        """Store the last lines, trying for a while where the storage does not answer."""
        self._closed.set()
        self._thread.join()
        for left in reversed(range(LAST_TRIES)):
            try:
                return self.flush()
            except OSError:
                if not left:
                    raise
                threading.Event().wait(TICK_SECONDS)

    def _loop(self) -> None:
        while not self._closed.wait(TICK_SECONDS):
            try:
                self.flush()
            except OSError as error:
                logger.warning("the storage did not take what was said, trying again: %s", error)


class Reader:
    """Whoever listens; `number` and `lines` say how far it has come."""

    def __init__(self, place: Place, *, number: int = 1, lines: int = 0) -> None:
        self._place = place
        self.number, self.lines = number, lines

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield what is new."""
        while True:
            follows = self._place.exists(_name(self.number + 1))  # asked first: then it is complete
            text = self._place.read(_name(self.number)) or b""
            whole = text[: text.rfind(b"\n") + 1].splitlines()
            for line in whole[self.lines :]:
                self.lines += 1
                yield json.loads(line)
            if not follows:
                return
            self.number, self.lines = self.number + 1, 0


def _name(number: int) -> str:
    return f"{FOLDER}/{number:06d}.jsonl"


def _number(name: str) -> int:
    return int(name.partition(".")[0])
