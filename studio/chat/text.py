"""Turn tokens into text as they come: only whole characters, exactly the text of all together.

A token may be a part of a character (byte-level and byte-fallback vocabularies) or owe its leading
space to its neighbour (sentencepiece), so tokens are never decoded alone: always together with the
few before them, and text that ends in a broken character waits for the next token. It knows a
tokenizer's `decode` and nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BROKEN = "\ufffd"
CONTEXT = 6
PATIENCE = 8  # no character has more bytes; a longer wait means the bytes are no text


class Detokenizer:
    """The text of one growing answer.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: The tokens before the answer; their end decides about the first space.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._shown = list(prompt[-CONTEXT:])  # decoded before, for the first space's sake
        self._waiting: list[int] = []

    def add(self, token_id: int) -> str:
        """Take one token and return the text that is now certain, possibly none."""
        self._waiting.append(token_id)
        text = self._fresh()
        if not text or (text.endswith(BROKEN) and len(self._waiting) < PATIENCE):
            return ""
        self._advance()
        return text

    def flush(self) -> str:
        """Return what is left when no token follows; a broken character stays visible."""
        text = self._fresh()
        self._advance()
        return text

    def _fresh(self) -> str:
        before = self._decode(self._shown)
        after = self._decode(self._shown + self._waiting)
        if after.startswith(before):
            return after[len(before) :]
        return self._decode(self._waiting)  # broken bytes spoiled a run that was whole before

    def _advance(self) -> None:
        # The text just shown ends in a whole character, so decoding can go on from its tokens.
        if self._waiting:
            self._shown, self._waiting = self._waiting, []

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


class StopTexts:
    """Hold back text that may be the beginning of a stop text, and cut at the first whole one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.reached = False

    def add(self, text: str) -> str:
        """Return the part of the text that can be shown."""
        if not self._stops:
            return text
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.reached = True
            return self._held[: min(places)]
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """Return what was held back when the answer ends otherwise."""
        return "" if self.reached else self._held

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
