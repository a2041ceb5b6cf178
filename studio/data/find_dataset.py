"""Find a dataset by its path: demo, import, file, folder or hub id."""

from __future__ import annotations

import re

from studio import starter, trash
from studio.data.dataset_files import TRAIN, Origin, choose_split, files_in, from_files
from studio.data.readers import ENDINGS
from studio.data.readers.compression_and_encoding import COMPRESSED
from studio.errors import DataError
from studio.home import Home, slug
from studio.names import Location, locate
from studio.spec import DataSource


def origin_of(path: str, home: Home | None = None) -> Location:
    """Return what the path of a dataset stands for: demo, dataset, file, folder or hub id.

    The name of a deleted dataset is missing: the hub may have another one of that name.

    Raises:
        DataError: There is no demo of that name.
    """
    path = path.strip()
    if demo := starter.resolve_data(path):
        return Location("embedded", demo)
    if home is not None and path and not re.search(r"^\.|[/\\\x00]", path):
        folder = home.datasets / path
        if (folder / "dataset.json").is_file():
            return Location("dataset", folder)
    found = locate(path, file_endings={*ENDINGS, *COMPRESSED})
    gone = found.kind == "hub" and home is not None and _was_deleted(path, home)
    return Location("missing", found.path) if gone else found


def missing(path: str, home: Home | None = None) -> DataError:
    """Return the error on a path that `origin_of` calls missing."""
    if home is not None and _was_deleted(path.strip(), home):
        return DataError(
            f'The dataset "{path.strip()}" was deleted. Restore it on the Data page or with '
            f"`studio data undo {path.strip()}`. If the hub's dataset of that name is meant, empty "
            "the trash on System or with `studio clean --trash` first."
        )
    return DataError(
        f"There is no file or folder {path}: check the path, or use a demo such as starter:pirate."
    )


def _was_deleted(name: str, home: Home) -> bool:
    gone = trash.listed(home, home.datasets) if slug(name) == name else ()
    return any(one.path.name == name for one in gone)


def find(source: DataSource, home: Home | None = None, *, first: int = 0) -> Origin:
    """Find a dataset; of the hub, stream only its first rows where `first` is above 0.

    Raises:
        DataError: There is nothing of that name, or it cannot be reached.
    """
    path = source.path.strip()
    if not path:
        raise DataError("No dataset is named: give a file, a folder, a hub id or starter:pirate.")
    if "\x00" in path:
        raise DataError("The dataset's path holds a NUL character.")
    kind, place = origin_of(path, home)
    if kind in ("dataset", "file", "embedded") and source.split != TRAIN:
        raise DataError(
            f'{place.name} has no split "{source.split}": only folders and hub datasets have '
            "splits. Leave data.split and data.validation_split unset."
        )
    if kind == "dataset":
        from studio.data.snapshots import open_snapshot

        assert home is not None
        return open_snapshot(home, path).origin()
    if kind == "hub":
        from studio.data.hub_datasets import from_hub

        return from_hub(source, first=first)
    if kind == "missing":
        raise missing(path, home)
    if kind != "folder":
        return from_files(path if kind == "embedded" else place.name, [place], home)
    found, links = files_in(place)
    files, notes = choose_split(place.resolve(), found, subset=source.subset, split=source.split)
    return from_files(place.name, files, home, notes=(*links, *notes))
