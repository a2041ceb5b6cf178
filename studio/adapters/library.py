"""The adapter library: list, describe, rename, tag, delete and restore adapters (no tensors).

An adapter lives in `adapters/<name>/` (imported, mixed) or in `runs/<id>/adapter/` (trained here).
Its folder holds PEFT's two files; the passport beside them is ours and may be missing, and so may
the label: what a person calls it and sorts it by (`keeping.py` writes it). What full fine-tuning
leaves is a whole model in the same place (`is_model`): a base to choose, not to stack.

A name and tags are a person's own and live in a label beside the adapter, whose published files
stay as their manifest says. Deleting moves the folder into the home's trash in one rename; undo
moves it back to where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from studio.errors import AdapterError, InputError, nearest
from studio.home import Home, slug
from studio.methods import methods
from studio.names import fault

CONFIG, PASSPORT, LABEL = "adapter_config.json", "passport.json", "label.json"
WEIGHTS = ("adapter_model.safetensors", "adapter.safetensors")  # PEFT's and AdapterHub's
MAX_JSON_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """One adapter on disk. Unknown parts are empty: a foreign adapter has no passport."""

    name: str
    path: Path
    source: Literal["run", "library", "folder"]
    base: str
    base_fingerprint: str
    method: str
    size_bytes: int
    created: str
    ended: str
    steps: int
    first_loss: float | None
    last_loss: float | None
    eval_loss: float | None
    parents: tuple[str, ...]
    tags: tuple[str, ...]
    passport: dict[str, Any]

    @property
    def id(self) -> str:
        """Where it is in the home, in one word that survives a new name: `run-3`."""
        folder = self.path.parent if self.source == "run" else self.path
        return f"{self.source}-{folder.name}"

    @property
    def is_model(self) -> bool:
        """Whether this is a whole model, from full fine-tuning."""
        return self.method == "full"


def adapters(home: Home) -> list[Adapter]:
    """Return every adapter of the home, newest first; unreadable folders are left out."""
    runs = [("run", run / "adapter") for run in home.runs.iterdir() if run.is_dir()]
    own = [("library", folder) for folder in home.adapters.iterdir() if folder.is_dir()]
    found = []
    for source, folder in [*runs, *own]:
        if folder.name.startswith(".") or not _holds_something(folder):
            continue
        try:
            found.append(describe(folder, source="run" if source == "run" else "library"))
        except AdapterError:
            continue
    return sorted(found, key=lambda adapter: (adapter.created, adapter.name), reverse=True)


def describe(folder: Path, *, source: Literal["run", "library", "folder"] = "folder") -> Adapter:
    """Read what an adapter is from its config and passport.

    Raises:
        AdapterError: The folder holds no readable adapter.
    """
    passport = _read(folder / PASSPORT) if (folder / PASSPORT).is_file() else {}
    whole = _is_model(folder)
    config = {} if whole else _read(folder / CONFIG)
    label = _label(folder)
    names = [file.name for file in folder.glob("*.safetensors")] if whole else WEIGHTS
    weights = [folder / name for name in names if (folder / name).is_file()]
    if not weights:
        raise AdapterError(_why_no_weights(folder))
    base = _part(passport, "base")
    trained_here = source == "run"
    default_name = folder.parent.name if trained_here else folder.name
    return Adapter(
        name=str(label.get("name") or passport.get("name") or default_name),
        path=folder,
        source=source,
        base=str(
            base.get("path")
            or config.get("base_model_name_or_path")
            or config.get("model_name")
            or ""
        ),
        base_fingerprint=str(base.get("fingerprint") or ""),
        method=_method_name(passport, config),
        size_bytes=sum(file.stat().st_size for file in weights),
        created=str(passport.get("created") or ""),
        ended=str(passport.get("ended") or ""),
        steps=int(passport.get("steps") or 0),
        first_loss=_number(passport.get("first_loss")),
        last_loss=_number(passport.get("last_loss")),
        eval_loss=_number(passport.get("eval_loss")),
        parents=tuple(map(str, passport.get("parents") or ())),
        tags=tuple(map(str, label.get("tags") or ())),
        passport=passport,
    )


def name_of(folder: Path) -> str:
    """Return what an adapter is called; its folder's name where it cannot be read."""
    try:
        return describe(folder).name
    except AdapterError:
        return folder.name


def resolve(home: Home, name_or_dir: str) -> Path:
    """Return an adapter's folder: a path, its name, a library folder, a run's number or name.

    Of several with one name the newest wins. A run's own name still finds an adapter that was
    given another one.

    Raises:
        AdapterError: There is none; names the nearest.
    """
    folder = Path(name_or_dir).expanduser()
    for place in (folder, folder / "adapter"):
        if _holds_something(place):
            return place.absolute()
    if folder.is_dir():
        raise AdapterError(f"{folder} is not an adapter: it has no {CONFIG}.")
    known = adapters(home)
    for adapter in known:
        if adapter.name == name_or_dir:
            return adapter.path
    for place in (home.adapters / slug(name_or_dir), home.runs / slug(name_or_dir) / "adapter"):
        if _holds_something(place):
            return place
    for adapter in known:
        if adapter.passport.get("name") == name_or_dir:
            return adapter.path
    raise AdapterError(
        f'There is no adapter "{name_or_dir}".{nearest(name_or_dir, [a.name for a in known])}'
        + ("" if known else " None has been trained or imported yet.")
    )


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / CONFIG).is_file()


def _holds_something(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (_is_model(folder) and (folder / PASSPORT).is_file())


def _label(folder: Path) -> dict[str, Any]:
    try:
        return _read(folder / LABEL) if (folder / LABEL).is_file() else {}
    except AdapterError:
        return {}  # a name and tags are not worth an adapter


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise AdapterError(f"{path} is larger than any adapter's config; it was not read.")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path.parent} is not an adapter: it has no {path.name}.") from None
    except (OSError, ValueError, RecursionError):
        raise AdapterError(f"{path} is not readable JSON.") from None
    if not isinstance(values, dict):
        raise AdapterError(f"{path} must hold a JSON object.")
    return values


def _why_no_weights(folder: Path) -> str:
    if next(folder.glob("*.bin"), None):
        return (
            f"{folder} holds pickled weights, which can run code and are never opened. Convert "
            "them where you trust them: load with PEFT and call save_pretrained."
        )
    return f"{folder} is not a whole adapter: {WEIGHTS[0]} is missing."


def _part(values: dict[str, Any], key: str) -> dict[str, Any]:
    part = values.get(key)
    return part if isinstance(part, dict) else {}


def _method_name(passport: dict[str, Any], config: dict[str, Any]) -> str:
    named = _part(_part(passport, "spec"), "method").get("name")
    if named:
        return str(named)
    if "peft_type" not in config and isinstance(config.get("config"), dict):
        return "bottleneck"  # AdapterHub's
    peft_type = str(config.get("peft_type", ""))
    for name, method in methods().items():
        if method.peft_type == peft_type:
            return name
    return peft_type.lower()


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def refuse_place(out: Path) -> None:
    """Refuse a folder that is there already, or could not be made here.

    What the system says is asked by making an empty folder beside the place, not guessed: a folder
    of root's may still take nothing.

    Raises:
        InputError: Something is in the way, or nothing can be written there.
    """
    if os.path.lexists(out):
        raise InputError(f"{out} exists already; give another name or folder.")
    parent = next((place for place in out.absolute().parents if os.path.lexists(place)), out)
    if not parent.is_dir():
        raise InputError(f"{parent} is a file, not a folder: choose another place than {out}.")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".tmp-{out.name}-", dir=parent))
    except (OSError, ValueError) as error:
        why = str(getattr(error, "strerror", None) or error).lower()
        raise InputError(
            f"{out} cannot be made: {parent} takes no new folder ({why}). Choose another place."
        ) from None


ORIGIN, KEPT = "origin.json", "adapter"
KEEP_SECONDS = 30 * 86_400
MOST_TAGS, LONGEST_TAG = 20, 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Trashed:
    """A deleted adapter: `token` names it for undo, `path` is where it was."""

    token: str
    name: str
    path: Path
    deleted: float


def find(home: Home, name: str) -> Adapter:
    """Return an adapter that lies in this home, by its id, name or number.

    Raises:
        AdapterError: There is none, or it lies elsewhere.
    """
    known = adapters(home)
    for adapter in known:
        if name == adapter.id:
            return adapter
    path = resolve(home, name)
    for adapter in known:
        if adapter.path == path:
            return adapter
    raise AdapterError(f"{path} is not in this home; import it first.")


def rename(home: Home, name: str, new: str) -> Adapter:
    """Give an adapter another name; one of the library also gets its folder renamed.

    Raises:
        AdapterError: The name is empty, taken, or could be read as something else.
    """
    adapter = find(home, name)
    new = _checked_name(new)
    taken = {other.name.casefold() for other in adapters(home) if other.path != adapter.path}
    target = adapter.path.with_name(slug(new)) if adapter.source == "library" else adapter.path
    if new.casefold() in taken or (target != adapter.path and target.exists()):
        raise AdapterError(f'There is already an adapter "{new}"; choose another name.')
    _write_label(adapter, name=new)
    if target != adapter.path:
        os.rename(adapter.path, target)
    return describe(target, source=adapter.source)


def tag(home: Home, name: str, tags: Sequence[str]) -> Adapter:
    """Set an adapter's tags; none takes them all away.

    Raises:
        AdapterError: There are too many, or one is too long.
    """
    adapter = find(home, name)
    words = list(dict.fromkeys(" ".join(word.split()) for word in tags if word.strip()))
    if len(words) > MOST_TAGS:
        raise AdapterError(f"An adapter can have {MOST_TAGS} tags, not {len(words)}.")
    for word in words:
        if len(word) > LONGEST_TAG or "," in word or not word.isprintable():
            raise AdapterError(
                f'"{word[:LONGEST_TAG]}" is no tag: at most {LONGEST_TAG} characters, no commas.'
            )
    _write_label(adapter, tags=words)
    return describe(adapter.path, source=adapter.source)


def delete(home: Home, name: str) -> Trashed:
    """Move an adapter to the trash; what lies there for a month goes for good.

    Raises:
        AdapterError: There is no such adapter in this home.
    """
    adapter = find(home, name)
    _empty_old(home)
    moment = time.time()
    token = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(moment))}-{slug(adapter.name)}"
    place, number = home.trash / token, 1
    while place.exists():
        number += 1
        place = home.trash / f"{token}-{number}"
    place.mkdir(parents=True, mode=0o700)
    relative = adapter.path.relative_to(home.path).as_posix()
    origin = {"name": adapter.name, "path": relative, "deleted": moment}
    (place / ORIGIN).write_text(json.dumps(origin, ensure_ascii=False), encoding="utf-8")
    os.rename(adapter.path, place / KEPT)
    return Trashed(token=place.name, name=adapter.name, path=adapter.path, deleted=moment)


def trash(home: Home) -> list[Trashed]:
    """Return what can be restored, newest first."""
    if not home.trash.is_dir():
        return []
    found = [_trashed(home, place) for place in home.trash.iterdir() if (place / KEPT).is_dir()]
    return sorted((one for one in found if one), key=lambda one: one.deleted, reverse=True)


def undo(home: Home, token_or_name: str = "") -> Adapter:
    """Restore what was deleted last, or the named one.

    Raises:
        AdapterError: There is nothing to restore, or its place was taken meanwhile.
    """
    waiting = trash(home)
    if not waiting:
        raise AdapterError("Nothing was deleted: there is nothing to restore.")
    wanted = [one for one in waiting if token_or_name in ("", one.token, one.name)]
    if not wanted:
        raise AdapterError(
            f'No deleted adapter is called "{token_or_name}".'
            f"{nearest(token_or_name, [one.name for one in waiting])}"
        )
    one = wanted[0]
    taken = {adapter.name.casefold() for adapter in adapters(home)}
    if one.path.exists() or one.name.casefold() in taken:
        raise AdapterError(
            f'"{one.name}" cannot come back: there is another adapter of that name now. '
            "Rename that one first."
        )
    one.path.parent.mkdir(parents=True, exist_ok=True)
    os.rename(home.trash / one.token / KEPT, one.path)
    shutil.rmtree(home.trash / one.token, ignore_errors=True)
    in_run = one.path.parent.parent == home.runs
    return describe(one.path, source="run" if in_run else "library")


def _checked_name(name: str) -> str:
    name = name.strip()
    if why := fault(name):
        raise AdapterError(why)
    return " ".join(name.split())


def _write_label(adapter: Adapter, **changes: Any) -> None:
    """Write name and tags in one rename; the adapter's own files stay as they are."""
    passport_name = str(adapter.passport.get("name") or "")
    label: dict[str, Any] = {"tags": list(adapter.tags)}
    if adapter.name != passport_name:
        label["name"] = adapter.name
    temporary = adapter.path / f".{LABEL}-{os.getpid()}"
    temporary.write_text(json.dumps(label | changes, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, adapter.path / LABEL)


def _trashed(home: Home, place: Path) -> Trashed | None:
    try:
        origin = json.loads((place / ORIGIN).read_text(encoding="utf-8"))
        path = home.path / str(origin["path"])
        if not path.resolve().is_relative_to(home.path.resolve()):
            return None
        return Trashed(
            token=place.name, name=str(origin["name"]), path=path,
            deleted=float(origin["deleted"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _empty_old(home: Home) -> None:
    for one in trash(home):
        if time.time() - one.deleted > KEEP_SECONDS:
            shutil.rmtree(home.trash / one.token, ignore_errors=True)
