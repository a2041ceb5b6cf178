"""Datasets on the hub before their download: search, and what one holds, from its card alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from studio.data.hub import ANSWER_SECONDS, refused
from studio.data.readers import data_suffix

Sort = Literal["downloads", "likes", "last_modified", "trending_score"]


def search(words: str, *, sort: Sort = "downloads", limit: int = 30) -> list[dict[str, Any]]:
    """Return datasets that match some words.

    Raises:
        Unreached: The hub does not answer.
    """
    from huggingface_hub import HfApi

    try:
        found = list(HfApi().list_datasets(search=words.strip() or None, sort=sort, limit=limit))
    except Exception as error:  # the library raises dozens of kinds
        raise refused(words, error) from None
    return [_summary(info) for info in found]


def look_up(name: str) -> dict[str, Any]:
    """Return a dataset's configurations and splits with rows and bytes, where its card has them.

    Raises:
        DataError: The hub does not have it, or refuses it.
        Unreached: The hub does not answer.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(name, files_metadata=True, timeout=ANSWER_SECONDS)
    except Exception as error:  # as above
        raise refused(name, error) from None
    files = [
        one for one in info.siblings or ()
        if data_suffix(one.rfilename) and not one.rfilename.startswith(("README", "LICENSE"))
    ]  # fmt: skip
    return _summary(info) | {
        "revision": info.sha, "files": len(files), "bytes": sum(one.size or 0 for one in files),
        "parts": [*_parts(info.card_data or {})],
    }  # fmt: skip


def _summary(info: Any) -> dict[str, Any]:
    card = info.card_data or {}
    tagged = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    return {
        "id": info.id, "downloads": info.downloads or 0, "likes": info.likes or 0,
        "license": str(card.get("license") or next(iter(tagged), "")), "gated": bool(info.gated),
        "updated": info.last_modified.isoformat() if info.last_modified else "",
    }  # fmt: skip


def _parts(card: Any) -> Iterable[dict[str, Any]]:
    """Yield each split of each configuration; `rows` and `bytes` are None where unknown."""
    known = card.get("dataset_info") or []
    known = [known] if isinstance(known, dict) else known
    described = {str(one.get("config_name") or "default"): one for one in known}
    for name, one in described.items():
        for split in one.get("splits") or ():
            yield {
                "subset": name, "split": str(split.get("name")), "rows": split.get("num_examples"),
                "bytes": split.get("num_bytes"),
            }  # fmt: skip
    for one in card.get("configs") or ():
        name, files = str(one.get("config_name") or "default"), one.get("data_files")
        if name not in described and isinstance(files, list):
            for part in files:
                split = part.get("split", "train") if isinstance(part, dict) else "train"
                yield {"subset": name, "split": str(split), "rows": None, "bytes": None}
