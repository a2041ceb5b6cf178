"""Wake the supervisor of a home when there is work, so that it does not have to poll.

It listens on a UDP socket of the loopback address and leaves port and token in the home's state
folder; a commit that changes a job's state sends the token. A datagram may be lost: the supervisor
looks at the database by itself every second or so as well. Where no socket can be opened, it polls.
"""

import contextlib
import logging
import os
import secrets
import select
import socket
import sys
import threading
from pathlib import Path

from studio import atomic
from studio.home import Home

logger = logging.getLogger(__name__)

FILE = "wakeup"
CAN_WATCH = hasattr(os, "pidfd_open") or hasattr(select, "kqueue")


def wake(state: Path) -> None:
    """Wake the supervisor that listens in a home's state folder, if there is one."""
    with contextlib.suppress(OSError, ValueError):
        port, token = (state / FILE).read_text(encoding="utf-8").split()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(token.encode(), ("127.0.0.1", int(port)))


class Wakeup:
    """A flag to wait for that other processes and the end of watched ones set."""

    def __init__(self, home: Home) -> None:
        self._flag = threading.Event()
        self._path = home.state / FILE
        self._token = secrets.token_hex(16)
        self._closed = False
        self._thread: threading.Thread | None = None
        try:
            listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            listener.bind(("127.0.0.1", 0))
            text = f"{listener.getsockname()[1]} {self._token}"
            atomic.write(self._path, text, private=True)
        except OSError as error:
            logger.warning("no socket to be woken by, polling instead: %s", error)
            return
        self._thread = threading.Thread(target=self._listen, args=(listener,), daemon=True)
        self._thread.start()

    @property
    def complete(self) -> bool:
        """True if every submission and every end of a watched process sets the flag."""
        return self._thread is not None and CAN_WATCH

    def wait(self, seconds: float) -> bool:
        """Wait for the flag and clear it; return True if it was set within `seconds`."""
        was_set = self._flag.wait(seconds)
        self._flag.clear()
        return was_set

    def watch(self, pid: int) -> None:
        """Set the flag when a process ends; it need not be a child and is not reaped."""
        if CAN_WATCH:
            threading.Thread(target=self._set_at_end, args=(pid,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._closed = True
        if self._thread is not None:
            wake(self._path.parent)
            self._thread.join(timeout=1)
            self._path.unlink(missing_ok=True)

    def _listen(self, listener: socket.socket) -> None:
        with listener:
            while not self._closed:
                with contextlib.suppress(OSError):
                    sent = listener.recv(len(self._token) + 1)
                    if secrets.compare_digest(sent, self._token.encode()):
                        self._flag.set()

    def _set_at_end(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            _wait_for_end(pid)
        self._flag.set()


def _wait_for_end(pid: int) -> None:
    if sys.platform == "linux":
        handle = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.poll()
        finally:
            os.close(handle)
        return
    queue = select.kqueue()
    with contextlib.closing(queue):
        ends = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)
        queue.control([ends], 1)
