"""Secrets: in the keyring where there is one, else in a private file, and nowhere else."""

import os
import stat
import time
import types
from typing import Any

import pytest

from jobs import secret_store, webhook
from jobs.backup import backup
from jobs.job_record import summary
from studio.home import Home, open_home
from tests.jobs.conftest import a_spec, supervising, until

URL = "https://example.org/hook?key=very-s3cret"


class Ring(types.ModuleType):
    """The package's shape, over a dictionary."""

    def __init__(self, *, priority: float = 5, delay: float = 0, broken: bool = False) -> None:
        super().__init__("keyring")
        self.kept: dict[tuple[str, str], str] = {}
        self._priority, self._delay, self._broken = priority, delay, broken

    def get_keyring(self) -> Any:
        return types.SimpleNamespace(priority=self._priority)

    def set_password(self, service: str, user: str, value: str) -> None:
        time.sleep(self._delay)
        if self._broken:
            raise RuntimeError(f"no bus; you gave {value}")
        self.kept[service, user] = value

    def get_password(self, service: str, user: str) -> str | None:
        time.sleep(self._delay)
        return self.kept.get((service, user))

    def delete_password(self, service: str, user: str) -> None:
        del self.kept[service, user]


def with_ring(monkeypatch: pytest.MonkeyPatch, **how: Any) -> Ring:
    ring = Ring(**how)
    monkeypatch.setitem(__import__("sys").modules, "keyring", ring)
    return ring


def holding(home: Home, secret: bytes) -> list[str]:
    return [
        os.path.relpath(file, home.path)
        for file in home.path.rglob("*")
        if file.is_file() and secret in file.read_bytes()
    ]


def test_a_secret_is_in_one_private_file_and_nowhere_else(store):
    webhook.choose(store, URL)
    store.submit(a_spec())
    place = store.home.state / "secrets" / "webhook"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert webhook.shown(store.home) == "https://example.org/…"
    assert holding(store.home, b"very-s3cret") == ["state/secrets/webhook"]
    assert secret_store.forget(store.home, "webhook") and not secret_store.forget(
        store.home, "webhook"
    )
    assert webhook.shown(store.home) is None


def test_a_keyring_that_is_there_keeps_it_and_no_file_does(store, monkeypatch):
    ring = with_ring(monkeypatch)
    webhook.choose(store, URL)

    assert list(ring.kept.values()) == [URL]
    assert secret_store.where(store.home, "webhook") == "keyring"
    assert secret_store.read(store.home, "webhook") == URL
    assert webhook.shown(store.home) == "https://example.org/…"
    assert holding(store.home, b"very-s3cret") == []
    assert secret_store.forget(store.home, "webhook") and ring.kept == {}
    assert (
        secret_store.where(store.home, "webhook") == "" == secret_store.read(store.home, "webhook")
    )


def test_a_file_moves_into_a_keyring_and_back_and_two_homes_have_two_secrets(
    home, tmp_path, monkeypatch
):
    secret_store.keep(home, "token", "one")
    assert secret_store.where(home, "token") == "file"
    ring, other = with_ring(monkeypatch), open_home(tmp_path / "other")
    assert secret_store.read(home, "token") == "one", "what is kept stays readable"
    secret_store.keep(home, "token", "two")
    assert (secret_store.where(home, "token"), holding(home, b"two")) == ("keyring", [])
    secret_store.keep(other, "token", "else")
    assert secret_store.read(home, "token") == "two" and len(ring.kept) == 2
    ring._broken = True
    secret_store.keep(home, "token", "three")

    assert (
        secret_store.where(home, "token") == "file" and secret_store.read(home, "token") == "three"
    )
    assert list(ring.kept.values()) == ["else"], "no old value stays behind"


@pytest.mark.parametrize("how", [{"priority": 0}, {"broken": True}, {"delay": 1.0}])
def test_a_keyring_that_keeps_nothing_refuses_or_waits_is_not_used(home, monkeypatch, how, caplog):
    with_ring(monkeypatch, **how)
    monkeypatch.setattr(secret_store, "TIMEOUT_SECONDS", 0.1)

    secret_store.keep(home, "webhook", URL)

    assert (
        secret_store.where(home, "webhook") == "file" and secret_store.read(home, "webhook") == URL
    )
    assert "s3cret" not in caplog.text


def test_a_whole_run_with_a_webhook_writes_its_address_nowhere(store, monkeypatch, capfd):
    """Spec, log, database, what pages and commands show, a backup: none holds it or a token."""
    sent = []
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret_token")
    monkeypatch.setattr(webhook, "send", lambda url, end: sent.append((url, end)) or True)
    webhook.choose(store, URL)
    job = store.submit(a_spec(steps=3)).id
    with supervising(store.home):
        until(lambda: store.get(job).state == "succeeded")
        until(lambda: sent)
    assert sent[0][0] == URL and "s3cret" not in str(sent[0][1])
    file = store.home.path.parent / "whole.tar"
    backup(store.home, file)

    shown = str(summary(store.get(job))) + store.log_tail(job) + str(store.events(job))
    assert "s3cret" not in shown + "".join(capfd.readouterr())
    assert holding(store.home, b"s3cret") == ["state/secrets/webhook"]
    assert b"s3cret" not in file.read_bytes()
    assert holding(store.home, b"hf_very_secret_token") == []
