"""Tells an address of the person's when a job ends: one small POST of JSON each, at least once.

The supervisor looks; a thread sends, so that a slow address delays nothing. What was told is a
number in the settings: a supervisor that dies in between tells the same end again, with the same
`event`. The address is a secret (`secrets.py`). Redirects are not followed.
"""

import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from jobs import secrets, settings
from jobs.store import JobStore
from studio.errors import QueueError, StudioError
from studio.home import Home

logger = logging.getLogger(__name__)

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
TRIES, WAIT_SECONDS, TIMEOUT_SECONDS = 3, 2.0, 10.0


def choose(store: JobStore, url: str) -> None:
    """Tell this address of every end from now on.

    Raises:
        QueueError: It is no http or https address.
    """
    parts = _parts(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise QueueError("A webhook is an address such as https://example.org/hook.")
    settings.write(store, "ends_told", settings.last_event(store))
    secrets.keep(store.home, "webhook", url)


def shown(home: Home) -> str | None:
    """Return where ends are told, without what makes the address secret; None when nowhere."""
    url = secrets.read(home, "webhook")
    return f"{_parts(url).scheme}://{_parts(url).hostname}/…" if url else None


class Webhook:
    """The supervisor's part: looks for ends, and sends in the background."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Start to tell what has ended since the last time, unless that is still under way."""
        if self._thread is not None and self._thread.is_alive():
            return
        if not secrets.where(self._store.home, "webhook"):
            return
        with self._store.database.reading() as db:
            told = settings.read(self._store, "ends_told")
            ends = list(db.query(_ENDS, (told,)))
        url = secrets.read(self._store.home, "webhook") if ends else ""
        if url:
            self._thread = threading.Thread(target=self._tell, args=(url, ends), daemon=True)
            self._thread.start()

    def _tell(self, url: str, ends: list[dict[str, Any]]) -> None:
        try:
            for end in ends:
                send(url, end)
                settings.write(self._store, "ends_told", end["event"])
        except StudioError as error:
            logger.error("the webhook waits: %s", error.text)


def send(url: str, message: dict[str, Any]) -> bool:
    """POST one message; False when the address did not take it or we are offline."""
    host = _parts(url).hostname or ""
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    if offline and host not in LOOPBACK:
        logger.warning("offline (HF_HUB_OFFLINE): the webhook was not told")
        return False
    request = urllib.request.Request(
        url, json.dumps(message).encode(), {"content-type": "application/json"}, method="POST"
    )
    opener = urllib.request.build_opener(_NoRedirect())
    for attempt in range(TRIES):
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"it answered {error.code}"
        except OSError as error:
            reason = type(error).__name__  # its text may hold the address
        if attempt + 1 < TRIES:
            time.sleep(WAIT_SECONDS * 2**attempt)
    logger.warning("the webhook at %s could not be told: %s", host, reason)
    return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


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
WHERE events.id > ? AND events.dst IN ('succeeded', 'failed', 'cancelled')
ORDER BY events.id LIMIT 50
"""
