"""Where rows come from: a demo, a file, a folder, an imported dataset, or a hub id."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studio.data.files import ENDINGS, PACKED, look
from studio.data.readers import read
from studio.data.recognise import SAMPLE_ROWS, Guess, recognise
from studio.data.records import Problem, Row
from studio.data.report import why_nothing
from studio.errors import DataError, nearest
from studio.home import Home
from studio.spec import DataSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_FILES = 10_000
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


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
    guess: Guess | None = None  # a mapping that a person has settled
    held_out: Callable[[], NDArray[np.bool_] | None] = lambda: None  # a split that is stored
    pick: Callable[[list[int]], Iterator[tuple[int, Row]]] | None = None  # rows by number, at once


def starter_folder() -> Path:
    """Return the folder of the embedded demo datasets."""
    import studio.starter

    return Path(studio.starter.__file__).parent / "data"


def demos() -> list[str]:
    """Return the names of the embedded demo datasets."""
    names = [p.stem for p in sorted(starter_folder().glob("*.jsonl"))]
    return [name for name in names if "." not in name]


def find(source: DataSource, home: Home | None = None) -> Origin:
    """Find a dataset.

    Raises:
        DataError: Nothing of that name is there, or it cannot be reached.
    """
    path = source.path.strip()
    if not path:
        raise DataError("No dataset is named: give a file, a folder, a hub id or starter:pirate.")
    if "\x00" in path:
        raise DataError("The dataset's path holds a NUL character.")
    if path.startswith("starter:"):
        name = path.removeprefix("starter:")
        if name not in demos():
            raise DataError(f'There is no demo dataset "{name}".{nearest(name, demos())}')
        return from_files(path, [starter_folder() / f"{name}.jsonl"])
    imported = _imported(path, home)
    if imported:
        return imported
    place = Path(path).expanduser()
    if os.path.lexists(place):
        if not place.is_dir():
            return from_files(place.name, [place])
        return from_files(place.name, files_in(place))
    if not looks_like_hub_id(path, home):
        raise DataError(f"There is no file {path}.")
    from studio.data.hub import from_hub

    return from_hub(source)


def looks_like_hub_id(path: str, home: Home | None = None) -> bool:
    """Whether a path can only be meant as the id of a dataset on the hub."""
    place = Path(path).expanduser()
    here = path.startswith(("starter:", ".", "/", "~")) or "\x00" in path
    if here or os.path.lexists(place) or place.suffix.lower() in {*ENDINGS, *PACKED}:
        return False
    return bool(_HUB_ID.fullmatch(path)) and not (
        home is not None and (home.datasets / path / "dataset.json").is_file()
    )


def from_files(name: str, files: list[Path]) -> Origin:
    """Return an origin that reads files one after the other."""
    opened = [look(file) for file in files]
    plain = {o.format in ("txt", "md") for o in opened}
    if len(plain) > 1:
        raise DataError(f"{name} mixes text files with tables of rows: use a folder for each.")

    def rows() -> Iterator[Row | Problem]:
        for each in opened:
            yield from read(each)

    notes = tuple(note for o in opened for note in o.notes)
    return Origin(
        name=name,
        files=tuple(files),
        plain=plain == {True},
        rows=rows,
        content_hash=lambda: hash_files(files),
        notes=notes,
        container=" ".join(sorted({o.format for o in opened})),
        encoding=" ".join(sorted({o.encoding for o in opened})),
    )


def files_in(folder: Path) -> list[Path]:
    """Return the data files of a folder and its subfolders, sorted; links leading out are left.

    Raises:
        DataError: There is none, or there are far too many.
    """
    root = folder.resolve()
    found: list[Path] = []
    for base, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            file = Path(base) / name
            suffixes = [s.lower() for s in file.suffixes]
            while suffixes and suffixes[-1] in PACKED:
                suffixes.pop()
            if name.startswith(".") or not suffixes or suffixes[-1] not in ENDINGS:
                continue
            if file.is_file() and file.resolve().is_relative_to(root):
                found.append(file)
        if len(found) > MAX_FILES:
            raise DataError(f"{folder} holds more than {MAX_FILES:,} data files.")
    readme = [f for f in found if f.stem.lower() in ("readme", "license", "changelog")]
    found = [f for f in found if f not in readme]
    if not found:
        raise DataError(
            f"The folder {folder} holds no data files. Known: jsonl, json, csv, tsv, parquet, txt, "
            "md, and gzip or zstd of these."
        )
    return found


def hash_files(files: list[Path]) -> str:
    """Return one SHA-256 of the bytes of all files in order."""
    digests = []
    for file in files:
        with file.open("rb") as handle:
            digests.append(hashlib.file_digest(handle, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _imported(path: str, home: Home | None) -> Origin | None:
    if home is None or "/" in path or "\\" in path or path.startswith("."):
        return None
    if not (home.datasets / path / "dataset.json").is_file():
        return None
    from studio.data.snapshots import open_snapshot

    return open_snapshot(home, path).origin()


def guess_origin(origin: Origin, source: DataSource) -> Guess:
    """Guess what the rows of an origin are from its first ones."""
    sample: list[Row] = []
    problems: list[Problem] = []
    for item in origin.rows():
        if isinstance(item, Row):
            sample.append(item)
        else:
            problems.append(item)
        if len(sample) >= SAMPLE_ROWS or len(problems) >= 100_000:
            break
    if not sample:
        counts: dict[str, int] = {}
        for problem in problems:
            counts[problem.kind] = counts.get(problem.kind, 0) + 1
        raise DataError(why_nothing(origin.name, len(problems), problems, counts))
    return recognise(sample, wanted=source.format, plain=origin.plain)
