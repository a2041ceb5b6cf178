"""Data files of a dataset: found in a folder, chosen by split, hashed, read as one origin.

A dataset repository that was cloned, or a folder that `Dataset.save_to_disk` wrote, holds rows for
training beside rows for validation and tests. Its splits are named as on the hub: by its card, by
its files, by its folders; only the split that was asked for is read.

The page and the runner both need the SHA-256 of a dataset, so it is remembered. A file counts as
unchanged if its path, inode, size and modification time are; one that was modified moments before
it was hashed is not remembered, since a later change could leave the same time (as in git's index).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

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


TRAIN = "train"
_WORDS = {
    "train": TRAIN, "training": TRAIN,
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_NAMED = re.compile(rf"(?<![A-Za-z])({'|'.join(_WORDS)})(?![A-Za-z])", re.I)
_SHARD = re.compile(r"^(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.")


def choose_split(
    root: Path, files: list[Path], *, subset: str, split: str
) -> tuple[list[Path], tuple[str, ...]]:
    """Return the files of one split of a folder, and notes on the others.

    These are all files if nothing there names a split. `root` is resolved; `subset` is a
    configuration of the card, the default one if empty.

    Raises:
        DataError: The card names no such configuration, or there is no such split.
    """
    named = _saved(root, files) or _card(root, files, subset) or _by_names(root, files)
    if not named and split == TRAIN:
        return files, ()
    if split not in named:
        known = f"its splits are {', '.join(named)}" if named else "no file there names a split"
        raise DataError(
            f'The folder {root.name} has no split "{split}": {known}. Set data.split accordingly.'
        )
    notes = []
    others = [name for name in named if name != split]
    if others:
        listed = " and ".join(f'"{name}" ({_count(named[name])})' for name in others)
        notes.append(
            f'Only the split "{split}" ({_count(named[split])}) is used, not {listed}; '
            f"data.validation_split={others[0]} evaluates on it."
        )
    read = {file for group in named.values() for file in group}
    if rest := [file for file in files if file not in read]:
        notes.append(f"{_count(rest)} of the folder belong to no split and are not read.")
    return named[split], tuple(notes)


def _count(files: list[Path]) -> str:
    return "1 file" if len(files) == 1 else f"{len(files):,} files"


def _saved(root: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Return the splits of a folder that `save_to_disk` wrote."""
    splits = atomic.read_object(root / "dataset_dict.json").get("splits")
    if isinstance(splits, list):
        groups = {str(name): _state_files(root / str(name), files) for name in splits}
        return {name: group for name, group in groups.items() if group}
    if (root / "state.json").is_file() and (found := _state_files(root, files)):
        return {str(atomic.read_object(root / "state.json").get("_split") or TRAIN): found}
    return {}


def _state_files(folder: Path, files: list[Path]) -> list[Path]:
    listed = atomic.read_object(folder / "state.json").get("_data_files")
    names = [e.get("filename") for e in _listed(listed) if isinstance(e, dict)]
    return [folder / name for name in names if isinstance(name, str) and folder / name in files]


def _card(root: Path, files: list[Path], subset: str) -> dict[str, list[Path]]:
    """Return the splits that the dataset card (README.md) names under `configs`."""
    configs = [c for c in _listed(_front_matter(root).get("configs")) if isinstance(c, dict)]
    if not configs:
        return {}
    names = [_word(config.get("config_name"), "default") for config in configs]
    marked = [name for name, c in zip(names, configs, strict=True) if c.get("default")]
    preferred = [subset] if subset else [*marked, "default", *(names if len(names) == 1 else ())]
    wanted = next((name for name in preferred if name in names), "")
    if not wanted:
        problem = f'no configuration "{subset}"' if subset else "several configurations"
        raise DataError(
            f"The card of the dataset folder {root.name} has {problem}: set data.subset to one of "
            f"{', '.join(names)}."
        )
    config = configs[names.index(wanted)]
    base = (root / _word(config.get("data_dir"), ".").replace("\0", "")).resolve()
    found: dict[str, list[Path]] = {}
    for split, patterns in _patterns(config.get("data_files")):
        fits = _matcher(base, patterns)
        found.setdefault(split, []).extend(f for f in files if fits(f))
    if not config.get("data_files"):
        inside = [file for file in files if file.is_relative_to(base)]
        found = _by_names(base, inside) or {TRAIN: inside}
    return {split: group for split, group in found.items() if group}


def _front_matter(root: Path) -> dict[str, Any]:
    try:
        text = (root / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text.removeprefix("\ufeff"), re.DOTALL)
    try:
        values = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):  # of a date, a number, depth
        return {}
    return values if isinstance(values, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _word(value: Any, default: str) -> str:
    """Return a value of the card as text, never one that nests others, which may be endless."""
    return default if value is None or isinstance(value, list | dict | set) else str(value)


def _patterns(data_files: Any) -> list[tuple[str, list[str]]]:
    """Return the patterns of each split, from the forms that cards use."""
    if isinstance(data_files, str):
        return [(TRAIN, [data_files])]
    if isinstance(data_files, dict):
        return [(_word(split, TRAIN), _texts(paths)) for split, paths in data_files.items()]
    found = []
    for item in _listed(data_files):
        if isinstance(item, str):
            found.append((TRAIN, [item]))
        elif isinstance(item, dict):
            found.append((_word(item.get("split"), TRAIN), _texts(item.get("path"))))
    return found


def _texts(paths: Any) -> list[str]:
    return [_word(path, "") for path in (paths if isinstance(paths, list) else [paths])]


def _matcher(base: Path, patterns: list[str]) -> Callable[[Path], bool]:
    # As in fsspec: `*` stays within a folder, `**` does not.
    parts = [re.escape(p.removeprefix("./")) for p in patterns]
    made = [
        p.replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
        .replace(r"\?", "[^/]")
        for p in parts
    ]  # fmt: skip
    made += [translate(p) for p in patterns if "[" in p]
    compiled = re.compile("|".join(f"(?:{p})" for p in made))

    def fits(file: Path) -> bool:
        if not file.is_relative_to(base):
            return False
        return bool(compiled.fullmatch(file.relative_to(base).as_posix()))

    return fits


def _by_names(root: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Return the splits named by files or folders; empty if no name has one.

    Files without a split in their name are rows for training if no file is named so.
    """
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_split_of(file.relative_to(root)), []).append(file)
    unnamed = found.pop("", [])
    if found and unnamed and TRAIN not in found:
        found = {TRAIN: unnamed, **found}
    order = [name for name in (TRAIN, "validation", "test") if name in found]
    return {name: found[name] for name in dict.fromkeys([*order, *found])}


def _split_of(path: Path) -> str:
    """Return the split in a path: of its shards' name, of a word in its name, of its folder."""
    shard = _SHARD.match(path.name)
    if shard and path.parent.name == "data":
        word = _NAMED.search(shard[1])
        return _WORDS[word[1].lower()] if word else shard[1]
    for part in reversed(path.parts):
        if word := _NAMED.search(part):
            return _WORDS[word[1].lower()]
    return ""
