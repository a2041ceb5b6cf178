"""Where the studio can be reached from, and under which names; loud when that is not only here."""

import socket

import psutil

from ui.guard import LOOPBACK


def is_local(host: str) -> bool:
    """Whether only this machine reaches it."""
    return host in LOOPBACK


def own_names(host: str, allowed: list[str]) -> frozenset[str]:
    """Return the `Host` names that are ours.

    Numbers of this machine's own network cards are: rebinding attacks need a name. Names are only
    ours when the person says so.
    """
    names = {*LOOPBACK, *(name.lower() for name in allowed)}
    if is_local(host):
        return frozenset(names)
    names.add(host.lower())
    for cards in psutil.net_if_addrs().values():
        names |= {
            card.address.partition("%")[0].lower()
            for card in cards
            if card.family in (socket.AF_INET, socket.AF_INET6)
        }
    return frozenset(names - {"0.0.0.0", "::"})


def shown_host(host: str) -> str:
    """Return the host as an address names it; for all cards at once, the first that has one."""
    if host == "0.0.0.0":
        cards = sorted(own_names(host, []) - LOOPBACK)
        host = next((name for name in cards if name.count(".") == 3), "127.0.0.1")
    return f"[{host}]" if ":" in host else host


def warning(host: str) -> str:
    """Say loudly what binding elsewhere means."""
    return (
        f"WARNING: the studio listens on {host}: other machines can reach it. Whoever has the "
        "address below, with its token, can train, read and delete everything in this home. The "
        "connection is not encrypted; prefer an ssh tunnel on networks that you do not own."
    )
