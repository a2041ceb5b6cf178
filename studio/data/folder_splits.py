"""The splits of a dataset folder, named as on the hub: by its card, by its files, by its folders.

A dataset repository that was cloned, or a folder that `Dataset.save_to_disk` wrote, holds rows for
training beside rows for validation and tests; only the split that was asked for is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate
from pathlib import Path
from typing import Any

import yaml

from studio import atomic
from studio.errors import DataError

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

    These are all files if nothing there names a split.

    Args:
        root: The folder, resolved.
        files: Its data files.
        subset: Configuration of the card; the default one if empty.
        split: The split.

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
    others = [name for name in named if name != split and named[name]]
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
        return {str(name): _state_files(root / str(name), files) for name in splits}
    if (root / "state.json").is_file() and (found := _state_files(root, files)):
        return {str(atomic.read_object(root / "state.json").get("_split") or TRAIN): found}
    return {}


def _state_files(folder: Path, files: list[Path]) -> list[Path]:
    listed = atomic.read_object(folder / "state.json").get("_data_files")
    names = [e.get("filename") for e in listed or [] if isinstance(e, dict)]
    return [folder / name for name in names if isinstance(name, str) and folder / name in files]


def _card(root: Path, files: list[Path], subset: str) -> dict[str, list[Path]]:
    """Return the splits that the dataset card (README.md) names under `configs`."""
    configs = [c for c in _front_matter(root).get("configs") or [] if isinstance(c, dict)]
    if not configs:
        return {}
    names = [str(config.get("config_name", "default")) for config in configs]
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
    base = root / str(config.get("data_dir") or ".")
    found: dict[str, list[Path]] = {}
    for split, patterns in _patterns(config.get("data_files")):
        fits = _matcher(base.resolve(), patterns)
        found.setdefault(split, []).extend(f for f in files if fits(f))
    if not config.get("data_files"):
        inside = [file for file in files if file.is_relative_to(base.resolve())]
        return _by_names(base.resolve(), inside) or {TRAIN: inside}
    return {split: group for split, group in found.items() if group}


def _front_matter(root: Path) -> dict[str, Any]:
    try:
        text = (root / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text.removeprefix("\ufeff"), re.DOTALL)
    try:
        values = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _patterns(data_files: Any) -> list[tuple[str, list[str]]]:
    """Return the patterns of each split, from the forms that cards use."""
    if isinstance(data_files, str):
        return [(TRAIN, [data_files])]
    if isinstance(data_files, dict):
        return [(str(split), _texts(paths)) for split, paths in data_files.items()]
    found = []
    for item in data_files if isinstance(data_files, list) else []:
        if isinstance(item, str):
            found.append((TRAIN, [item]))
        elif isinstance(item, dict):
            found.append((str(item.get("split", TRAIN)), _texts(item.get("path"))))
    return found


def _texts(paths: Any) -> list[str]:
    return [str(path) for path in (paths if isinstance(paths, list) else [paths])]


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
