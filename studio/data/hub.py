"""Datasets by hub id, through the `datasets` library; the only place that may use the network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from studio.data.records import Problem, Row
from studio.data.sources import Origin
from studio.errors import DataError
from studio.spec import DataSource


def from_hub(source: DataSource) -> Origin:
    """Load one split of a hub dataset (from the local cache when offline).

    Raises:
        DataError: It is not there, cannot be reached, needs a subset, or wants to run code.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(
            source.path, source.subset or None, split=source.split or "train"
        )
    except Exception as error:  # the library raises dozens of kinds, some of them undocumented
        raise DataError(_sentence(source, error)) from None

    def rows() -> Iterator[Row | Problem]:
        for index, values in enumerate(loaded):
            yield Row(index + 1, dict(values))

    name = "/".join(filter(None, [source.path, source.subset, source.split]))
    key = f"{name}@{loaded._fingerprint}"
    return Origin(name, (), False, rows, lambda: hashlib.sha256(key.encode()).hexdigest())


def _sentence(source: DataSource, error: Exception) -> str:
    text = str(error).split("\n")[0][:200]
    name = type(error).__name__
    if "BuilderConfig" in text or "Config name is missing" in text:
        return f'The hub dataset "{source.path}" has several subsets: {text}'
    if "Unknown split" in text or "split" in text.lower():
        return f'The hub dataset "{source.path}" has no split "{source.split}": {text}'
    if "script" in text.lower():
        return f'The hub dataset "{source.path}" wants to run code, which is refused.'
    if "Gated" in name or "401" in text or "403" in text:
        return f'The hub dataset "{source.path}" needs permission: log in with `hf auth login`.'
    offline = "Offline" in name or "Connection" in name or "reach" in text or "offline" in text
    if offline:
        return (
            f'There is no file or folder "{source.path}", and the hub cannot be reached to look '
            "for a dataset of that name."
        )
    return f'There is no file, folder or hub dataset "{source.path}" ({name}: {text}).'
