"""Data files of a dataset: found in a folder, hashed, read one after the other as one origin.

The page and the runner both need the SHA-256 of a dataset, so it is remembered. A file counts as
unchanged if its path, inode, size and modification time are; one that was modified moments before
it was hashed is not remembered, since a later change could leave the same time (as in git's index).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from studio import atomic
from studio.data.conversation_records import Problem, Row
from studio.data.readers import FORMATS, KNOWN, data_suffix, look, read, read_alike
from studio.data.recognise_format import Guess
from studio.errors import DataError
from studio.home import Home

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_FILES = 10_000
SMALL_BYTES = 1 << 18  # read again, which is as quick as looking it up
SETTLED_SECONDS = 2.0
MOST_ENTRIES = 512
_METADATA = {
    "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "project.kiln", "task.kiln",
}  # fmt: skip


class Sources(NamedTuple):
    """The datasets that a mix was made of, and the place of each row's own among them."""

    names: tuple[str, ...]
    of_row: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Origin:
    """A dataset that was found: its name, its files, and how to read its rows."""

    name: str
    files: tuple[Path, ...]
    plain: bool
    rows: Callable[[], Iterator[Row | Problem]]
    content_hash: Callable[[], str]
    notes: tuple[str, ...] = ()
    container: str = ""
    encoding: str = ""
    guess: Guess | None = None  # a mapping that was settled at the import
    held_out: Callable[[], NDArray[np.bool_] | None] = lambda: None  # a split that is stored
    sources: Callable[[], Sources | None] = lambda: None  # of a mix
    pick: Callable[[list[int]], Iterator[tuple[int, Row]]] | None = None  # rows by number, at once
    at_most: int = 0  # `rows` ends after this number, whatever follows; 0 if it does not


def from_files(
    name: str, files: list[Path], home: Home | None = None, *, notes: tuple[str, ...] = ()
) -> Origin:
    """Return an origin that reads files one after the other."""
    opened = read_alike([look(file) for file in files])
    plain = {FORMATS[each.format].plain for each in opened}
    if len(plain) > 1:
        raise DataError(f"{name} mixes text files with tables of rows: use a folder for each.")

    def rows() -> Iterator[Row | Problem]:
        for each in opened:
            yield from read(each)

    return Origin(
        name=name,
        files=tuple(files),
        plain=plain == {True},
        rows=rows,
        content_hash=lambda: hash_files(files, home),
        notes=(
            *notes,
            *(note for each in opened for note in each.notes),
            *(
                f'The column "{name}" holds whole numbers as floats, because some cells are empty; '
                "they are read as integers."
                for name in sorted(opened[0].whole or ())
            ),
        ),
        container=" ".join(sorted({each.format for each in opened})),
        encoding=" ".join(sorted({each.encoding for each in opened})),
    )


def files_in(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return the data files of a folder and its subfolders, sorted, and a note on links left out.

    Links may not lead out of the folder, but for those of the hub's cache to its own blobs.

    Raises:
        DataError: There is none, or there are far too many.
    """
    root = folder.resolve()
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parents[1] / "blobs")
    found: list[Path] = []
    left: list[str] = []
    for base, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        linked = [f for f in folders if (Path(base) / f).is_symlink()]  # which os.walk leaves out
        left += [f for f in linked if not (Path(base) / f).resolve().is_relative_to(root)]
        for name in sorted(names):
            file = Path(base) / name
            if name.startswith(".") or not data_suffix(name) or name in _METADATA:
                continue
            if name == "state.json" and "dataset_info.json" in names:
                continue
            if file.is_file() and any(file.resolve().is_relative_to(one) for one in roots):
                found.append(file)
            elif file.is_file():
                left.append(name)
        if len(found) > MAX_FILES:
            raise DataError(f"{folder} holds more than {MAX_FILES:,} data files.")
    found = [f for f in found if f.stem.lower() not in ("readme", "license", "changelog")]
    if not found and left:
        raise DataError(
            f"The folder {folder} holds no data files, only links that lead out of it: copy the "
            "files into it."
        )
    if not found:
        raise DataError(f"The folder {folder} holds no data files. Known: {KNOWN}.")
    if not left:
        return found, ()
    return found, (
        f"Links that lead out of the folder are not read: {len(left):,}, such as {left[0]}.",
    )


def hash_files(files: list[Path], home: Home | None = None) -> str:
    """Return one SHA-256 of the bytes of all files in order."""
    digests = [_hash(file, home) for file in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _hash(file: Path, home: Home | None) -> str:
    with file.open("rb") as handle:
        before = os.fstat(handle.fileno())
        if home is None or before.st_size <= SMALL_BYTES:
            return hashlib.file_digest(handle, "sha256").hexdigest()
        path, state = str(file.absolute()), [before.st_ino, before.st_size, before.st_mtime_ns]
        memory = home.state / "file-hashes.json"
        known = atomic.read_object(memory)
        entry = known.get(path)
        if isinstance(entry, list) and len(entry) == 4 and entry[:3] == state:
            return str(entry[3])
        started = time.time()
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        after = os.fstat(handle.fileno())
    settled = started - after.st_mtime > SETTLED_SECONDS
    if settled and state == [after.st_ino, after.st_size, after.st_mtime_ns]:
        known.pop(path, None)
        known[path] = [*state, digest]
        with contextlib.suppress(OSError):  # a full disk costs a second read
            atomic.write(memory, json.dumps(dict(list(known.items())[-MOST_ENTRIES:])))
    return digest
