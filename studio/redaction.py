"""Take secrets and the user's own folder out of a text that leaves the machine or enters a log."""

import os
import re
from pathlib import Path

_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)S?$")
_SHAPES = (
    (re.compile(r"(\w+://)[^/\s@]+@"), r"\1…@"),  # user and password of an address
    (re.compile(r"\b(hf_|sk-|ghp_|github_pat_|xox[bap]-)[\w-]{8,}"), r"\1…"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.+/=-]{8,}"), r"\1 …"),
    (re.compile(r"(?i)([?&](?:token|key|api_key|secret|password|signature)=)[^&\s]+"), r"\1…"),
)  # fmt: skip
_SHORTEST = 6  # a shorter value would blot out words that only look alike


def redacted(text: str) -> str:
    """Return a text without passwords, tokens, and the values of secret environment variables."""
    for name, value in os.environ.items():
        if _NAMES.search(name.upper()) and len(value) >= _SHORTEST:
            text = text.replace(value, "…")
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return tilde(text)


def tilde(text: str) -> str:
    """Return a text in which the user's own folder is `~`, for what leaves the machine."""
    own = Path.home()
    for path in {str(own), own.as_posix()} - {"/", "."}:
        text = re.sub(re.escape(path) + r"(?![\w-])", "~", text)
    return text
