"""Which of our processes live and who holds which device, as rows that a page can show.

A row counts only while its very process lives, so nothing has to be cleaned up after a kill.
"""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jobs.database import now
from jobs.processes import Identity
from jobs.schema import Tables


def announce(db: Tables, role: str, identity: Identity, url: str) -> None:
    """Write or refresh a process's row, and forget rows of dead ones."""
    for row in db.query("SELECT role, pid, pid_started, boot_id FROM processes"):
        if not _identity(row).alive():
            db.conn.execute(
                "DELETE FROM processes WHERE role = ? AND pid = ?", (row["role"], row["pid"])
            )
    db.conn.execute(
        _ANNOUNCE,
        {
            "role": role, "pid": identity.pid, "started": identity.started,
            "boot_id": identity.boot_id, "url": url, "version": _version(), "now": now(),
        },
    )  # fmt: skip


def living(db: Tables) -> list[dict[str, Any]]:
    """Return the rows of living processes."""
    rows = db.query("SELECT * FROM processes ORDER BY role, since")
    return [row for row in rows if _identity(row).alive()]


def leases(db: Tables) -> list[dict[str, Any]]:
    """Return the leases; a chat lease of a dead process is none."""
    return [
        row
        for row in db.query(_LEASES)
        if row["holder"] == "job" or (row["pid"] is not None and _identity(row).alive())
    ]


def take_chat_lease(db: Tables, device: str, identity: Identity, memory_bytes: int) -> None:
    """Write the chat's lease on a device; the last process to ask has it."""
    db.conn.execute(
        _CHAT_LEASE,
        {
            "device": device, "pid": identity.pid, "started": identity.started,
            "boot_id": identity.boot_id, "memory": memory_bytes, "now": now(),
        },
    )  # fmt: skip


def ask_chat_to_leave(db: Tables, device: str) -> None:
    """Mark the chat's lease on a device as wanted back."""
    db.conn.execute(
        "UPDATE leases SET wanted_back = 1 WHERE holder = 'chat' AND device = ?", (device,)
    )


def what_waits(db: Tables) -> dict[int, str]:
    """Return what queued jobs say that they wait for, besides their turn."""
    return dict(db.conn.execute("SELECT id, waits FROM jobs WHERE waits <> ''").fetchall())


def say_what_waits(db: Tables, sentences: dict[int, str]) -> None:
    """Write what each of some queued jobs waits for, and that no other does."""
    db.conn.execute("UPDATE jobs SET waits = '' WHERE waits <> ''")
    for job, sentence in sentences.items():
        db.conn.execute(
            "UPDATE jobs SET waits = ? WHERE id = ? AND state = 'queued'", (sentence, job)
        )


def return_chat_lease(db: Tables, identity: Identity) -> None:
    """Remove the leases of a chat process."""
    db.conn.execute("DELETE FROM leases WHERE holder = 'chat' AND pid = ?", (identity.pid,))


@cache
def _version() -> str:
    try:
        return version("adapter-studio")
    except PackageNotFoundError:  # run from the sources
        return "0"


def _identity(row: dict[str, Any]) -> Identity:
    return Identity(row["pid"], row["pid_started"], row["boot_id"])


_ANNOUNCE = """
INSERT INTO processes(role, pid, pid_started, boot_id, url, version, since, heartbeat)
VALUES (:role, :pid, :started, :boot_id, :url, :version, :now, :now)
ON CONFLICT(role, pid) DO UPDATE SET pid_started = :started, boot_id = :boot_id, url = :url,
  version = :version, heartbeat = :now,
  since = CASE pid_started WHEN :started THEN since ELSE :now END
"""
_LEASES = """
SELECT leases.*, jobs.name AS job_name, jobs.state AS job_state
FROM leases LEFT JOIN jobs ON jobs.id = leases.job ORDER BY leases.device, leases.holder
"""
_CHAT_LEASE = """
INSERT INTO leases(device, holder, pid, pid_started, boot_id, memory_bytes, since)
VALUES (:device, 'chat', :pid, :started, :boot_id, :memory, :now)
ON CONFLICT(device, holder) DO UPDATE SET pid = :pid, pid_started = :started,
  boot_id = :boot_id, memory_bytes = :memory, wanted_back = 0
"""
