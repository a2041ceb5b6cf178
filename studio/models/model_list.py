"""All models that can be trained here in one list: on this disk, and a curated list of the hub.

Folders are those of the home and those that a user registered, searched a few levels deep. Facts
come from headers and are kept by the files' modification times, so a second look reads nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from studio import atomic
from studio.errors import ModelError
from studio.home import Home
from studio.models.find_model import facts
from studio.models.hub_models import cache_folder, cached, size_on_disk
from studio.models.model_files import read_config, weight_files
from studio.spec import ModelSource
from studio.starter import MODEL as STARTER
from studio.starter import MODEL_DIR

CURATED = Path(__file__).with_name("curated.json")
MOST_DEPTH, MOST_FOLDERS = 3, 3000
Kind = Literal["starter", "made", "folder", "hub", "curated"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """One model; `path` is what a run takes, `why_not` the reason why it cannot be trained.

    `config` holds the sizes for an estimate. 0 and "" stand for facts that are not known.
    """

    path: str
    name: str
    kind: Kind
    folder: str = ""
    what: str = ""
    parameters: int = 0
    active: int = 0
    bytes: int = 0
    context: int = 0
    license: str = ""
    gated: bool = False
    has_chat_template: bool = False
    weights_dtype: str = ""
    why_not: str = ""
    config: dict[str, Any] = field(default_factory=dict)


def models(home: Home) -> list[Model]:
    """Return the starter, local models and the curated ones that are not here, in this order."""
    here = _here(home)
    paths = {row.path for row in here}
    return [*here, *(row for row in curated() if row.path not in paths)]


def usable(home: Home) -> list[Model]:
    """Return the models that can be trained without a download, the starter first."""
    return [row for row in _here(home) if not row.why_not]


def _here(home: Home) -> list[Model]:
    with _memory(home) as known:
        found = [
            replace(
                _local(known, STARTER, MODEL_DIR, "starter", name="Starter"),
                what="A tiny model that is always here: it shows in a minute whether data and "
                "settings work, and is too small for real answers",
            ),
            *(_local(known, str(p), p, "made") for p in _folders(home.models)),
            *(
                _local(known, str(path), path, "folder")
                for folder in registered(home)
                for path in _folders(Path(folder))
            ),
        ]
        for folder in sorted(cache_folder().glob("models--*")):
            name = folder.name.removeprefix("models--").replace("--", "/")
            if snapshot := cached(name):
                row = _local(known, name, snapshot, "hub", name=name)
                found.append(replace(row, bytes=size_on_disk(name)))
    return [*{row.path: row for row in found}.values()]


@cache
def curated() -> tuple[Model, ...]:
    """Return the curated models."""
    found = []
    for entry in json.loads(CURATED.read_text(encoding="utf-8"))["models"]:
        known = {name: value for name, (value, _) in entry["facts"].items()}
        known["has_chat_template"] = known.pop("template", False)
        found.append(
            Model(
                path=entry["id"], name=entry["id"], kind="curated", what=entry["what"],
                config=entry.get("config", {}), **known,
            )
        )  # fmt: skip
    return tuple(found)


# -- registered folders ----------------------------------------------------------------------------


def registered(home: Home) -> list[str]:
    """Return the folders that the user registered."""
    found = atomic.read_object(_registry(home)).get("folders")
    return [str(one) for one in found] if isinstance(found, list) else []


def register(home: Home, folder: Path) -> list[str]:
    """Add a folder that holds models, or one model, and return all of them.

    Raises:
        ModelError: It does not exist, or cannot be read.
    """
    folder = Path(os.path.expanduser(folder)).absolute()  # leaves `~unknown` as it is
    if not os.path.isdir(folder):
        raise ModelError(f"There is no folder {folder}: check the spelling.")
    if why := trouble(folder):
        raise ModelError(why)
    _write(home, list(dict.fromkeys([*registered(home), str(folder)])))
    return registered(home)


def forget(home: Home, folder: str) -> list[str]:
    """Remove a folder from the list, without touching it, and return the others.

    Raises:
        ModelError: It is not registered.
    """
    known = registered(home)
    wanted = folder if folder in known else str(Path(os.path.expanduser(folder)).absolute())
    if wanted not in known:
        raise ModelError(
            f"{folder} is not registered: `studio models folders` lists those that are."
        )
    _write(home, [one for one in known if one != wanted])
    return registered(home)


def trouble(folder: Path) -> str:
    """Return in a sentence why a folder cannot be searched; empty if it can."""
    if not os.path.isdir(folder):
        return f"There is no folder {folder}: it was moved or deleted, or its disk is not mounted."
    if not os.access(folder, os.R_OK | os.X_OK):
        return f"{folder} cannot be read by this user: change its permissions."
    return ""


def _registry(home: Home) -> Path:
    return home.state / "model-folders.json"


def _write(home: Home, folders: list[str]) -> None:
    atomic.write(_registry(home), json.dumps({"folders": folders}), durable=True)


def _folders(root: Path) -> Iterator[Path]:
    """Yield the model folders in a folder, each once; links that lead back are not followed."""
    seen: set[tuple[int, int]] = set()
    waiting = [(root, 0)]
    while waiting and len(seen) < MOST_FOLDERS:
        folder, depth = waiting.pop(0)
        try:
            stat = folder.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            inside = sorted(os.scandir(folder), key=lambda one: one.name)
        except OSError:
            continue
        if any(one.name == "config.json" for one in inside):
            if any(one.name.endswith(".safetensors") for one in inside):
                yield folder
            continue
        if depth < MOST_DEPTH:
            waiting += [
                (Path(one.path), depth + 1) for one in inside
                if not one.name.startswith(".") and os.path.isdir(one.path)
            ]  # fmt: skip


# -- facts of local models -------------------------------------------------------------------------


@contextlib.contextmanager
def _memory(home: Home) -> Iterator[dict[str, Any]]:
    """Yield the known facts by folder, and keep them where something was added."""
    place = home.state / "models.json"
    known = atomic.read_object(place)
    before = dict(known)
    yield known
    if known != before:  # quick: an entry that was kept is the same object
        atomic.write(place, json.dumps(known))


def _stamp(folder: Path) -> list[Any]:
    """Return what changes with a model's files."""
    stamp = []
    for one in sorted(os.scandir(folder), key=lambda one: one.name):
        if one.name.endswith((".json", ".safetensors", ".jinja")):
            stat = one.stat()
            stamp.append([one.name, stat.st_mtime_ns, stat.st_size])
    return stamp


def _local(known: dict[str, Any], path: str, folder: Path, kind: Kind, *, name: str = "") -> Model:
    row = Model(path=path, name=name or folder.name, kind=kind, folder=str(folder))
    try:
        stamp = _stamp(folder)
        kept = known.get(str(folder))
        if not (isinstance(kept, dict) and kept.get("stamp") == stamp):
            kept = known[str(folder)] = {"stamp": stamp, "facts": _facts_of(folder)}
        return replace(row, **kept["facts"])
    except (OSError, TypeError, KeyError) as error:
        return replace(row, why_not=f"{folder} cannot be read ({type(error).__name__}).")


def _facts_of(folder: Path) -> dict[str, Any]:
    try:
        found = facts(ModelSource(path=str(folder)))
    except ModelError as error:
        return {"why_not": error.text}
    return {
        "parameters": found.parameters,
        "bytes": sum(file.stat().st_size for file in weight_files(folder)),
        "context": found.context_length,
        "has_chat_template": found.has_chat_template,
        "weights_dtype": found.weights_dtype,
        "config": _sizes(read_config(folder)),
    }


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without its long lists, which no estimate needs."""
    return {
        key: _sizes(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not (isinstance(value, list) and len(value) > 200)
    }
