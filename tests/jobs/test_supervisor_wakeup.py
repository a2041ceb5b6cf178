"""The supervisor waits instead of polling: what wakes it, and how often it looks."""

import os
import socket
import subprocess
import sys

import pytest

from jobs import processes, supervisor
from jobs.processes import Wakeup, wake
from jobs.supervisor import Supervisor
from studio.home import Home
from tests.jobs.conftest import a_spec

LONG = 60.0  # never waited for: the flag is set before


@pytest.fixture
def waiting(home):
    opened = Wakeup(home)
    yield opened
    opened.close()


def test_every_durable_commit_of_another_process_wakes_the_supervisor(store, waiting):
    job = store.submit(a_spec()).id
    assert waiting.wait(LONG)
    store.cancel(job)
    assert waiting.wait(LONG)
    store.return_chat_lease()
    assert waiting.wait(LONG)
    store.announce("web")  # a heartbeat
    store.database.wakes = False  # as the supervisor's own
    store.submit(a_spec())
    assert not waiting.wait(0.05)


def test_a_datagram_without_the_token_is_ignored(home, waiting):
    port = int((home.state / processes.WAKEUP_FILE).read_text().split()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"x" * 32, ("127.0.0.1", port))
    assert not waiting.wait(0.05)
    wake(home.state)
    assert waiting.wait(LONG)


@pytest.mark.skipif(os.name == "nt", reason="no POSIX permissions")
def test_its_token_is_private_and_goes_with_it(home):
    opened = Wakeup(home)
    assert (home.state / processes.WAKEUP_FILE).stat().st_mode & 0o077 == 0
    opened.close()
    assert list(home.state.glob(f"{processes.WAKEUP_FILE}*")) == []
    wake(home.state)  # without a listener: nothing happens


@pytest.mark.skipif(not processes.CAN_WATCH, reason="this system tells of no process's end")
def test_the_end_of_a_watched_process_wakes_and_leaves_its_exit_code(waiting):
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    waiting.watch(child.pid)
    assert waiting.wait(LONG)
    assert child.wait() == 3
    waiting.watch(child.pid)  # it has ended already
    assert waiting.wait(LONG)


def test_without_a_socket_the_supervisor_polls(home, monkeypatch):
    def refuse(*_: object) -> socket.socket:
        raise PermissionError("no sockets here")

    monkeypatch.setattr(processes.socket, "socket", refuse)
    opened = Wakeup(home)
    assert not opened.complete
    assert not opened.wait(0.001)
    opened.close()


class Turns:
    """A supervisor whose clock is turned by hand; counts its looks."""

    def __init__(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.looks = 1000.0, 0
        monkeypatch.setattr(supervisor.time, "monotonic", lambda: self.now)
        self.supervisor = Supervisor(home, slots=["cpu"], spare=False)
        monkeypatch.setattr(self.supervisor, "_claim", self._count)
        self.turn()

    def _count(self) -> None:
        self.looks += 1

    def turn(self, count: int = 1, *, woken: bool = False) -> int:
        before = self.looks
        for _ in range(count):
            self.supervisor.turn(woken=woken)
            self.now += supervisor.TURN_SECONDS
        return self.looks - before


@pytest.fixture
def turns(home, monkeypatch):
    made = Turns(home, monkeypatch)
    yield made
    made.supervisor.wakeup.close()
    made.supervisor.store.close()


def test_a_supervisor_looks_rarely_while_idle_and_at_every_turn_with_work(turns, store):
    assert turns.turn(20) == 4
    first = store.supervisor()
    turns.turn(3)
    assert first and store.supervisor()["heartbeat"] > first["heartbeat"]
    store.submit(a_spec())
    assert turns.turn(10) == 10


def test_a_lost_wake_up_costs_one_turn(turns, store):
    assert turns.turn() == 0
    store.announce("web")  # a commit that wakes nothing
    assert turns.turn() == 1
    assert turns.turn() == 0
    assert turns.turn(woken=True) == 1
