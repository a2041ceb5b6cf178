"""Exact duplicates by a 64-bit hash, eight bytes a row, so that millions of rows can be counted."""

from __future__ import annotations

from array import array

import numpy as np
import xxhash

from studio.data.records import Conversation, Document


def content_hash(row: Conversation | Document) -> int:
    """Return a hash of what a row says."""
    if isinstance(row, Document):
        text = row.text
    else:
        parts: list[str] = []
        for message in row.messages:
            parts += (message["role"], message["content"])
            if "tool_calls" in message:
                parts.append(str(message["tool_calls"]))
        text = "\x00".join(parts)
    return bytes_hash(text.encode("utf-8", "replace"))


def bytes_hash(data: bytes | memoryview) -> int:
    """Return 64 bits that differ for different bytes."""
    return xxhash.xxh3_64_intdigest(data)


def num_repeats(hashes: array[int]) -> int:
    """Return how many rows repeat an earlier one."""
    return len(hashes) - len(np.unique(np.frombuffer(hashes, dtype=np.uint64))) if hashes else 0
