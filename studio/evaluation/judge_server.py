"""Ask a judge behind an OpenAI-compatible address (`POST /v1/chat/completions`).

An address on the loopback is used as it is; another one only when the request allows it, because
prompts and answers leave this machine. Redirects are not followed, and answers are bounded in size
and time. A key is read from `STUDIO_JUDGE_KEY` and never stored.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from studio.errors import JudgeFailed, SpecError

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

KEY = "STUDIO_JUDGE_KEY"
PATH = "/v1/chat/completions"
TRIES, WAIT_SECONDS, CONNECT_SECONDS = 3, 1.0, 5.0
MAX_BYTES = 2**21
BUSY = (429, 500, 502, 503, 504)


def checked_address(address: str, *, allow_remote: bool, offline: bool) -> str:
    """Return the address without its path, `/v1` included.

    Raises:
        SpecError: It is not an http address, or on another machine without permission.
    """
    text = address.strip().rstrip("/")
    for end in ("/chat/completions", "/v1"):
        text = text.removesuffix(end)
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.query:
        raise SpecError(
            f'"{address}" is not the address of a judge: write it as http://127.0.0.1:8000/v1.',
            field="address",
        )
    if is_loopback(host):
        return text
    if not allow_remote:
        raise SpecError(
            f"{host} is another machine: prompts and answers of the suite would be sent there. "
            "Allow it (--allow-remote), or use an address on this machine.", field="allow_remote",
        )  # fmt: skip
    if offline:
        raise SpecError(
            f"{host} is another machine and the studio is offline: turn the offline switch off, or "
            "use a judge on this machine.", field="address",
        )  # fmt: skip
    return text


def is_loopback(host: str) -> bool:
    """Return True for an address of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class JudgeServer:
    """A client of one address."""

    def __init__(self, address: str, model: str, *, seconds: float, max_new_tokens: int) -> None:
        import httpx

        self._address, self._seconds, self._tokens = address, seconds, max_new_tokens
        key, near = os.environ.get(KEY, ""), is_loopback(urlsplit(address).hostname or "")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {}, trust_env=not near,
            timeout=httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS)),
        )  # fmt: skip
        self._pool = ThreadPoolExecutor(2)
        self._model = model or self._first_model()

    def close(self) -> None:
        """Close connections and threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """Return the answers to some prompts, asked at the same time.

        Raises:
            JudgeFailed: It is unreachable, refuses, is too slow or answers in another form.
        """
        return list(self._pool.map(self._answer, prompts))

    def _first_model(self) -> str:
        found = self._call("GET", "/v1/models", None)
        try:
            return str(found["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise JudgeFailed(
                f"The judge at {self._address} names no model: give one (--model)."
            ) from None

    def _answer(self, prompt: str) -> str:
        asked = {
            "model": self._model, "temperature": 0, "max_tokens": self._tokens,
            "messages": [{"role": "user", "content": prompt}],
        }  # fmt: skip
        found = self._call("POST", PATH, asked)
        try:
            content = found["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise JudgeFailed(
                f"The judge at {self._address} does not answer as OpenAI's API does: "
                "choices[0].message.content is missing."
            ) from None
        return content if isinstance(content, str) else ""

    def _call(self, verb: str, path: str, body: Any) -> Any:
        """Return the JSON of one call; a busy server and a lost connection are tried again."""
        import httpx

        for attempt in range(1, TRIES + 1):
            try:
                status, answer = self._once(verb, path, body)
            except httpx.TimeoutException as error:
                if isinstance(error, httpx.ConnectTimeout):
                    why = "it does not accept connections"
                else:
                    raise JudgeFailed(
                        f"The judge at {self._address} did not answer within {self._seconds:g} s. "
                        "Give it more time (--seconds) or use a faster one, then resume the job."
                    ) from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                logger.warning("the judge cannot be reached: %s", error)
                why = "the connection failed"
            else:
                if status == httpx.codes.OK:
                    return answer
                why = f"it answered {status}"
                if status not in BUSY:
                    break
            if attempt < TRIES:
                time.sleep(WAIT_SECONDS * attempt)
        hint = "Check that it runs, then resume the job"
        if why.endswith((" 401", " 403")):
            hint = f"Set its key as {KEY} where the studio is started, then resume the job"
        elif why.endswith((" 400", " 404", " 422")):
            hint = "Check the address and the name of the model"
        raise JudgeFailed(f"The judge at {self._address} cannot be used: {why}. {hint}.")

    def _once(self, verb: str, path: str, body: Any) -> tuple[int, Any]:
        """Return status and JSON (None if it is not any) of one call that ends in time."""
        import httpx

        deadline, data = time.monotonic() + self._seconds, bytearray()
        with self._client.stream(verb, self._address + path, json=body) as answer:
            self._read(answer, data, deadline)
        if answer.status_code != httpx.codes.OK:
            logger.warning("the judge answered %s: %.500r", answer.status_code, bytes(data))
            return answer.status_code, None
        try:
            return answer.status_code, json.loads(data)
        except ValueError:
            return answer.status_code, None

    def _read(self, answer: httpx.Response, data: bytearray, deadline: float) -> None:
        import httpx

        for part in answer.iter_bytes():
            data += part
            if len(data) > MAX_BYTES:
                raise JudgeFailed(f"The judge at {self._address} answers with over 2 MB of text.")
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("the answer comes too slowly")
