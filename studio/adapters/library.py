"""The library of adapters: what is on disk, with each one's passport. Reads files, never tensors.

An adapter lives in `adapters/<name>/` (imported, mixed) or in `runs/<id>/adapter/` (trained here).
Its folder holds PEFT's two files; the passport beside them is ours and may be missing, and so may
the label: what a person calls it and sorts it by (`keeping.py` writes it). What full fine-tuning
leaves is a whole model in the same place (`is_model`): a base to choose, not to stack.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from studio.errors import AdapterError, nearest
from studio.home import Home, slug
from studio.methods import methods

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
