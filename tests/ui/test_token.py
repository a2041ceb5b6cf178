"""Bound elsewhere than here, nobody gets in without the token; the guesses are few and slow."""

import json
import os
import socket
import stat
from types import SimpleNamespace

import pytest

from tests.served import Served, served
from tests.ui.test_security import ask
from ui import security
from ui.security import OriginCheck, TokenCheck, is_local, own_names, shown_host, token_of


@pytest.fixture(scope="module")
def open_studio(tmp_path_factory):
    """A studio on another loopback address, which counts as elsewhere."""
    if os.name != "posix" or os.uname().sysname != "Linux":
        pytest.skip("only Linux answers on all of 127.0.0.0/8")
    with served(tmp_path_factory.mktemp("open") / "home", "--host", "127.0.0.2") as running:
        address, _, token = running.address.partition("/?token=")
        assert len(token) >= 32, "the printed address holds the token"
        yield Served(address=address, home=running.home, pid=running.pid)


def token(studio: Served) -> str:
    return (studio.home / "state" / "secrets" / "token").read_text()


def test_nothing_is_answered_without_the_token(open_studio):
    for method, path in (
        ("GET", "/"), ("GET", "/api/live"), ("POST", "/api/do/cancel"), ("GET", "/config"),
        ("GET", "/studio/main.js"), ("POST", "/gradio_api/upload"), ("GET", "/favicon.ico"),
        ("GET", "/gradio_api/queue/data?session_hash=x"), ("POST", "/gradio_api/queue/join"),
    ):  # fmt: skip
        status, headers, body = ask(open_studio, method, path, {})
        assert status == 401, path
        assert b"token" in body and token(open_studio).encode() not in body
        assert "default-src 'self'" in headers["content-security-policy"]
    assert stat.S_IMODE((open_studio.home / "state/secrets/token").stat().st_mode) == 0o600
    said = (
        open_studio.home.with_suffix(".serve.log").read_text().partition("Adapter Studio is at")[0]
    )
    assert "WARNING" in said and "not encrypted" in said and token(open_studio) not in said


def test_the_token_becomes_a_cookie_and_leaves_the_address(open_studio):
    status, headers, _ = ask(open_studio, "GET", f"/runs?token={token(open_studio)}&run=3", {})
    assert (status, headers["location"]) == (303, "/runs?run=3")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and token(open_studio) not in cookie
    own = {"Cookie": cookie.partition(";")[0]}
    assert ask(open_studio, "GET", "/api/live", own)[0] == 200
    assert ask(open_studio, "GET", "/", own)[0] == 200
    bearer = {"Authorization": f"Bearer {token(open_studio)}"}
    assert ask(open_studio, "GET", "/api/live", bearer)[0] == 200
    for forged in ("x", token(open_studio), own["Cookie"].partition("=")[2][:-1]):
        name = own["Cookie"].partition("=")[0]
        assert ask(open_studio, "GET", "/api/live", {"Cookie": f"{name}={forged}"})[0] == 401


@pytest.mark.parametrize("foreign", ['prefs={"a":"b"}', "a b=c", "=", "caf\xe9=1", "studio-1=x"])
def test_a_cookie_of_another_program_on_this_host_locks_nobody_out(open_studio, foreign):
    _, headers, _ = ask(open_studio, "GET", f"/?token={token(open_studio)}", {})
    own = headers["set-cookie"].partition(";")[0]
    for both in (f"{foreign}; {own}", f"{own}; {foreign}", f"{own.partition('=')[0]}=old; {own}"):
        escaped = both.replace("{", "{{").replace("}", "}}")  # `ask` fills in the host
        assert ask(open_studio, "GET", "/api/live", {"Cookie": escaped})[0] == 200, both
    assert ask(open_studio, "GET", "/api/live", {"Cookie": f"x{own}"})[0] == 401


def test_a_foreign_page_with_the_cookie_is_still_refused(open_studio):
    _, headers, _ = ask(open_studio, "GET", f"/?token={token(open_studio)}", {})
    own = {"Cookie": headers["set-cookie"].partition(";")[0]}
    assert ask(open_studio, "POST", "/api/do/cancel", own | {"Origin": "http://evil"})[0] == 403
    assert ask(open_studio, "GET", "/", own | {"Host": "evil.test"})[0] == 403


def test_the_redirect_never_leads_away(open_studio):
    for path in ("//evil.test/", "/\\evil.test/", "/%0d%0aX-Evil:1"):
        status, headers, _ = ask(open_studio, "GET", f"{path}?token={token(open_studio)}", {})
        assert status in (303, 400)
        if status == 303:
            assert headers["location"].startswith("/")
            assert not headers["location"].startswith(("//", "/\\"))
        assert "x-evil" not in headers


def test_guesses_run_out(open_studio):
    """Last in this file: it makes this address wait a minute."""
    seen = [ask(open_studio, "GET", f"/?token=guess{n}", {})[0] for n in range(12)]
    assert seen == [401] * 10 + [429] * 2
    right = f"/?token={token(open_studio)}"
    assert ask(open_studio, "GET", right, {})[0] == 429, "also the right one waits: no oracle"
    body = json.loads(ask(open_studio, "GET", right, {})[2])
    assert body["error"]["kind"] == "refused"


def test_the_token_check_forgets_old_guesses_and_few_addresses(home, monkeypatch):
    async def never(*_: object) -> None:
        raise AssertionError

    assert token_of(home) == token_of(home) and len(token_of(home)) >= 40
    own = TokenCheck(never, token=token_of(home), port=1)
    clock = [1000.0]
    monkeypatch.setattr(security.time, "monotonic", lambda: clock[0])
    for _ in range(10):
        own._count("10.0.0.1")
    assert own._waits("10.0.0.1") and not own._waits("10.0.0.2")
    clock[0] += 61
    assert not own._waits("10.0.0.1")
    for number in range(3000):
        own._count(str(number))
    assert len(own.guesses) <= security.MOST_ADDRESSES


def test_only_own_numbers_and_allowed_names_are_ours():
    assert all(is_local(host) for host in ("127.0.0.1", "localhost", "::1"))
    assert not any(is_local(host) for host in ("0.0.0.0", "127.0.0.2", "", "example.org"))
    assert own_names("127.0.0.1", []) == {"localhost", "127.0.0.1", "::1"}
    names = own_names("0.0.0.0", ["Box.local"])
    assert "box.local" in names and "0.0.0.0" not in names and "evil.test" not in names
    assert shown_host("::1") == "[::1]" and shown_host("0.0.0.0") != "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "cards", "shown"),
    [("::", ["192.168.1.7", "fe80::1%eth0", "2001:db8::7"], "[2001:db8::7]"),
     ("::", ["192.168.1.7", "fe80::1%eth0"], "[::1]"), ("::", [], "[::1]"),
     ("0.0.0.0", ["2001:db8::7", "192.168.1.7"], "192.168.1.7"), ("0.0.0.0", [], "127.0.0.1"),
     ("2001:db8::7", ["2001:db8::7"], "[2001:db8::7]"), ("box.lan", [], "box.lan")],
)  # fmt: skip
def test_the_address_that_is_printed_is_answered(monkeypatch, host, cards, shown):
    found = [
        SimpleNamespace(
            address=card, family=socket.AF_INET6 if ":" in card else socket.AF_INET
        )
        for card in cards
    ]  # fmt: skip
    monkeypatch.setattr(security.psutil, "net_if_addrs", lambda: {"eth0": found})
    assert shown_host(host) == shown
    guarded = OriginCheck(None, hosts=own_names(host, []))
    named = {"headers": [(b"host", f"{shown}:7860".encode())], "type": "http", "method": "GET"}
    assert guarded.refusal(named) == ""
    for foreign in ("[::]", "0.0.0.0", "evil.test"):
        named["headers"] = [(b"host", f"{foreign}:7860".encode())]
        assert "only to its own address" in guarded.refusal(named)
