"""Decide what the path of a model, dataset or adapter stands for, without reading or downloading.

A path is the file or folder of that name if there is one, else the id of a repository on the hub if
it is written like one. `studio.data.find_dataset.origin_of` adds the demos and the imported
datasets, `studio.models.find_model.origin_of` the starter.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


class Location(NamedTuple):
    """What a path stands for; `path` is the file or folder to read, if it is on this machine."""

    kind: Literal["embedded", "dataset", "file", "folder", "hub", "missing"]
    path: Path

    @property
    def is_local(self) -> bool:
        """True if nothing has to be downloaded."""
        return self.kind not in ("hub", "missing")


def locate(path: str, *, file_endings: Collection[str] = ()) -> Location:
    """Return the kind and place of a path; a name with one of `file_endings` is never a hub id."""
    try:
        place = Path(path).expanduser()
    except RuntimeError:  # `~name` of an unknown account
        return Location("missing", Path(path))
    if path and os.path.isdir(place):
        return Location("folder", place)
    if path and os.path.lexists(place):  # a broken link too: opening it says what is wrong
        return Location("file", place)
    is_id = _HUB_ID.fullmatch(path) and place.suffix.lower() not in file_endings
    return Location("hub" if is_id else "missing", place)
