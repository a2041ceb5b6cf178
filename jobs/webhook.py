"""Webhook: POST a small JSON document to the user's address when a job ends, at least once.

A job that stopped with an error and goes on only when the user resumes it (`interrupted`, `paused`)
counts as ended; a failed one that is retried does not.

The supervisor finds ended jobs and a thread sends, so that a slow address delays nothing. The last
event sent is a setting: if the supervisor dies in between, the same `event` is sent again. One that
is not accepted is tried again, ever more rarely, until it is a day old; later ones wait behind it.
The address is a secret (`secret_store.py`). Redirects are not followed.
"""

import json
import logging
import os
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from jobs import queue_settings, secret_store
from jobs.claims import retried
from jobs.job_queue import JobStore
from studio import offline
from studio.errors import QueueError
from studio.home import Home

logger = logging.getLogger(__name__)

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
TRIES, WAIT_SECONDS, TIMEOUT_SECONDS = 3, 2.0, 10.0
AGAIN_SECONDS, MOST_SECONDS, AGE_SECONDS = 60.0, 3600.0, 86_400.0


def choose(store: JobStore, url: str) -> None:
    """Set the webhook's address.

    Raises:
        QueueError: It is not an http or https address.
    """
    parts = _parts(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise QueueError("A webhook is an address such as https://example.org/hook.")
    queue_settings.write(store, "ends_told", queue_settings.last_event(store))
    secret_store.keep(store.home, "webhook", url)


def shown(home: Home) -> str | None:
    """Return the webhook's address without its secret path, or None."""
    url = secret_store.read(home, "webhook")
    return f"{_parts(url).scheme}://{_parts(url).hostname}/…" if url else None


class Webhook:
    """The supervisor's part: find ended jobs and send them in the background."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._thread: threading.Thread | None = None
        self.waits = False  # something is not sent yet
        self._failures, self._rests_until, self._rests_at = 0, 0.0, -1

    def look(self) -> None:
        """Start sending the jobs that ended since the last time, unless a thread does."""
        if self._thread is not None and self._thread.is_alive():
            return
        self.waits = False
        if not secret_store.where(self._store.home, "webhook"):
            return
        with self._store.database.reading() as db:
            sent = queue_settings.read(self._store, "ends_told")
            values = {"sent": sent, "again": json.dumps(list(retried(db)))}
            ends = list(db.query(_ENDS, values))
        self.waits = bool(ends)
        if sent == self._rests_at and time.monotonic() < self._rests_until:
            return  # unless another address was set, which passes over what ended before
        url = secret_store.read(self._store.home, "webhook") if ends else ""
        self.waits = bool(url)  # a locked keyring gives no reason to stay
        if url:
            self._thread = threading.Thread(target=self._send, args=(url, ends), daemon=True)
            self._thread.start()

    def _send(self, url: str, ends: list[dict[str, Any]]) -> None:
        offline.apply(self._store.home)  # it may have been switched since the supervisor's start
        try:
            for end in ends:
                if time.time() - end["time"] > AGE_SECONDS:
                    logger.warning("the webhook was not sent event %d in time", end["event"])
                elif not send(url, end):
                    break
                queue_settings.write(self._store, "ends_told", end["event"])
                self._failures = 0
            else:
                return
        except Exception as error:  # its text may hold the address
            logger.error("the webhook waits: %s", type(error).__name__)
        wait = min(MOST_SECONDS, AGAIN_SECONDS * 2 ** min(self._failures, 10))
        self._failures, self._rests_until = self._failures + 1, time.monotonic() + wait
        self._rests_at = queue_settings.read(self._store, "ends_told")


def send(url: str, message: dict[str, Any]) -> bool:
    """POST one message to the webhook; return False if not accepted or this machine is offline."""
    host = _parts(url).hostname or ""
    silent = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    if silent and host not in LOOPBACK:
        logger.warning("offline (HF_HUB_OFFLINE): nothing was sent to the webhook")
        return False
    import httpx

    for attempt in range(TRIES):
        try:
            answer = httpx.post(url, json=message, timeout=TIMEOUT_SECONDS)
            if answer.is_success:
                return True
            reason = f"it answered {answer.status_code}"
        except Exception as error:  # of httpx, or ImportError for a proxy of an unknown kind
            reason = type(error).__name__  # its text may hold the address
        if attempt + 1 < TRIES:
            time.sleep(WAIT_SECONDS * 2**attempt)
    logger.warning("the webhook at %s did not accept the message: %s", host, reason)
    return False


def _parts(url: str) -> Any:
    try:
        return urlsplit(url.strip())
    except ValueError:
        raise QueueError("A webhook is an address such as https://example.org/hook.") from None


_ENDS = """
SELECT events.id AS event, jobs.id AS job, jobs.name, jobs.kind, events.dst AS state,
  events.time, jobs.step, jobs.total_steps, jobs.error_kind, jobs.error_text,
  json_extract(jobs.result, '$.last_loss') AS last_loss,
  json_extract(jobs.result, '$.eval_loss') AS eval_loss
FROM events JOIN jobs ON jobs.id = events.job
WHERE events.id > :sent AND (
  events.dst IN ('succeeded', 'cancelled')
  OR events.dst = 'failed' AND jobs.id NOT IN (SELECT value FROM json_each(:again))
     AND NOT EXISTS (SELECT 1 FROM events AS later WHERE later.id > events.id
                     AND later.job = events.job AND later.attempt = events.attempt
                     AND later.actor = 'supervisor')  -- which retries it
  OR events.dst IN ('interrupted', 'paused') AND jobs.state = events.dst
     AND jobs.attempt = events.attempt AND jobs.error_kind IS NOT NULL)
ORDER BY events.id LIMIT 50
"""
