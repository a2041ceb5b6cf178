"""The adapter library: list, describe, rename, tag, delete and restore adapters (no tensors).

An adapter is in `adapters/<name>/` (imported, mixed) or in `runs/<id>/adapter/` (trained here).
Its folder holds PEFT's two files; the passport beside them is ours and may be missing, and so may
the label with the user's name and tags, which changes while the published files stay as their
manifest says. Full fine-tuning leaves a whole model in the same place (`is_model`): a base to
choose, not to stack. A deleted one is in the home's trash.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from studio import atomic, trash
from studio.errors import AdapterError, InputError, nearest
from studio.home import Home, slug
from studio.methods import methods, trains_base
from studio.methods.method_of_config import CONFIG, is_adapterhub, read_json
from studio.names import fault

PASSPORT, LABEL = "passport.json", "label.json"
WEIGHTS = ("adapter_model.safetensors", "adapter.safetensors")  # PEFT's and AdapterHub's
MAX_TAGS, MAX_TAG_CHARACTERS = 20, 40
Source = Literal["run", "library", "folder"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredAdapter:
    """One adapter on disk. Unknown parts are empty: a foreign adapter has no passport."""

    name: str
    path: Path
    source: Source
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
        """Return a name for its place in the home that survives renaming, such as `run-3`."""
        folder = self.path.parent if self.source == "run" else self.path
        return f"{self.source}-{folder.name}"

    def section(self, *names: str) -> dict[str, Any]:
        """Return a section of the passport, such as `data`, or one in it; empty if missing."""
        return reduce(_part, names, self.passport)

    @property
    def data_path(self) -> str:
        """Return the dataset it was trained on, as the run named it; empty if unknown."""
        data = self.section("data") or self.section("spec", "data")
        return str(data.get("path", ""))

    @property
    def base_revision(self) -> str:
        """Return the revision of the base on the hub; empty for its newest."""
        model, base = self.section("spec", "model"), self.section("base")
        is_same = base.get("path", model.get("path")) == model.get("path")  # an import may set it
        return str(({**model, **base} if is_same else base).get("revision") or "")

    @property
    def chat_template(self) -> str:
        """Return the named template it was trained with; `auto` for the model's own or none."""
        name = self.section("data").get("template")
        return name if name in ("chatml", "alpaca", "vicuna", "plain") else "auto"

    @property
    def forgetting(self) -> float | None:
        """Return the KL divergence from the base on general prompts; None if not measured."""
        return _number(self.section("forgetting").get("forgetting"))

    @property
    def chat_template_kwargs(self) -> str:
        """Return the settings of the chat template that it was trained with."""
        return str(self.section("spec", "data").get("chat_template_kwargs") or "")

    @property
    def is_model(self) -> bool:
        """Return True if this is a whole model, from full fine-tuning."""
        return trains_base(self.method)


def write_passport(folder: Path, passport: dict[str, Any]) -> None:
    """Write what is known of an adapter beside its weights."""
    text = json.dumps(passport, indent=1, ensure_ascii=False)
    (folder / PASSPORT).write_text(text, encoding="utf-8")


def adapters(home: Home) -> list[StoredAdapter]:
    """Return every adapter of the home, newest first; unreadable folders are left out."""
    folders = [*(run / "adapter" for run in home.runs.iterdir()), *home.adapters.iterdir()]
    found = []
    for folder in folders:
        if not folder.name.startswith(".") and _holds_adapter(folder):
            with suppress(AdapterError):
                found.append(describe(folder, source=_source(home, folder)))
    given = Counter(str(one.passport.get("name") or "") for one in found)
    borne = {one.name for one in found}
    names = {
        name: one.name for one in found
        if given[name := str(one.passport.get("name") or "")] == 1 and name not in borne
    }  # fmt: skip
    found = [
        replace(one, parents=tuple(_renamed(parent, names) for parent in one.parents))
        for one in found
    ]
    return sorted(found, key=lambda adapter: (adapter.created, adapter.name), reverse=True)


def _renamed(parent: str, names: dict[str, str]) -> str:
    """Return a parent of a passport, `name` or `name:weight`, by the name that it has now."""
    name, colon, weight = parent.rpartition(":")
    return names.get(parent) or names.get(name, name) + colon + weight


def children(home: Home, parent: StoredAdapter) -> list[str]:
    """Return the names of the adapters that were trained from an adapter or mixed of it."""
    return [
        one.name for one in adapters(home)
        if any(parent.name in (name, name.rpartition(":")[0]) for name in one.parents)
    ]  # fmt: skip


def describe(folder: Path, *, source: Source = "folder") -> StoredAdapter:
    """Read an adapter's config, passport and label.

    Raises:
        AdapterError: The folder holds no readable adapter.
    """
    passport = read_json(folder / PASSPORT) if (folder / PASSPORT).is_file() else {}
    whole = _is_model(folder)
    config = {} if whole else read_json(folder / CONFIG)
    label: dict[str, Any] = {}
    if (folder / LABEL).is_file():
        with suppress(AdapterError):  # the adapter is usable without its name and tags
            label = read_json(folder / LABEL)
    files = folder.glob("*.safetensors") if whole else [folder / name for name in WEIGHTS]
    weights = [file for file in files if file.is_file()]
    if not weights:
        raise AdapterError(_why_no_weights(folder))
    base = _part(passport, "base")
    stated = config.get("base_model_name_or_path") or config.get("model_name")
    place = folder.parent if source == "run" else folder
    return StoredAdapter(
        name=str(label.get("name") or passport.get("name") or place.name),
        path=folder,
        source=source,
        base=str(base.get("path") or stated or ""),
        base_fingerprint=str(base.get("fingerprint") or ""),
        method=_method_name(passport, config),
        size_bytes=sum(file.stat().st_size for file in weights),
        created=str(passport.get("created") or ""),
        ended=str(passport.get("ended") or ""),
        steps=int(_number(passport.get("steps")) or 0),
        first_loss=_number(passport.get("first_loss")),
        last_loss=_number(passport.get("last_loss")),
        eval_loss=_number(passport.get("eval_loss")),
        parents=_texts(passport.get("parents")),
        tags=_texts(label.get("tags")),
        passport=passport,
    )


def name_of(folder: Path) -> str:
    """Return an adapter's name, or its folder's name if it cannot be read."""
    try:
        return describe(folder).name
    except AdapterError:
        return folder.name


def resolve(home: Home, name_or_dir: str) -> Path:
    """Return the folder of an adapter given by path, name, library folder, or run number or name.

    Of several with one name the newest wins. A renamed adapter is still found by its run's name.

    Raises:
        AdapterError: There is none; names the nearest.
    """
    folder = Path(name_or_dir).expanduser()
    given = [place.absolute() for place in (folder, folder / "adapter") if _holds_adapter(place)]
    if given and name_or_dir != folder.name:  # a plain name is first one of the library
        return given[0]
    known = adapters(home)
    found = [adapter.path for adapter in known if adapter.name == name_or_dir]
    of_home = (home.adapters / slug(name_or_dir), home.runs / slug(name_or_dir) / "adapter")
    found += filter(_holds_adapter, of_home)
    found += [one.path for one in known if one.passport.get("name") == name_or_dir]
    if found or given:
        return (found or given)[0]
    if folder.is_dir():
        raise AdapterError(f"{folder} is not an adapter: it has no {CONFIG}.")
    raise AdapterError(
        f'There is no adapter "{name_or_dir}".{nearest(name_or_dir, [a.name for a in known])}'
        + ("" if known else " None has been trained or imported yet.")
    )


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / CONFIG).is_file()


def _holds_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (_is_model(folder) and (folder / PASSPORT).is_file())


def _source(home: Home, folder: Path) -> Source:
    return "run" if folder.parent.parent == home.runs else "library"


def _why_no_weights(folder: Path) -> str:
    if next(folder.glob("*.bin"), None):
        return (
            f"{folder} holds pickled weights, which can run code and are never opened. If you "
            "trust them, convert them: load with PEFT and call save_pretrained."
        )
    return f"{folder} is not a whole adapter: {WEIGHTS[0]} is missing."


def _part(values: dict[str, Any], key: str) -> dict[str, Any]:
    part = values.get(key)
    return part if isinstance(part, dict) else {}


def _method_name(passport: dict[str, Any], config: dict[str, Any]) -> str:
    named = _part(_part(passport, "spec"), "method").get("name")
    if named:
        return str(named)
    if is_adapterhub(config):
        return "bottleneck"
    peft_type = str(config.get("peft_type", ""))
    for name, method in methods().items():
        if method.peft_type == peft_type:
            return name
    return peft_type.lower()


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and isfinite(value) else None


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def refuse_place(out: Path) -> None:
    """Refuse a new folder's path that exists already or cannot be created.

    Creates and removes an empty folder beside it: only the operating system knows.

    Raises:
        InputError: Something is in the way, or nothing can be written there.
    """
    if os.path.lexists(out):
        raise InputError(f"{out} exists already; give another name or folder.")
    parent = next((place for place in out.absolute().parents if os.path.lexists(place)), out)
    if not parent.is_dir():
        raise InputError(f"{parent} is a file, not a folder: choose another path than {out}.")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".tmp-{out.name}-", dir=parent))
    except (OSError, ValueError) as error:
        why = str(getattr(error, "strerror", None) or error).lower()
        raise InputError(
            f"{out} cannot be created: {parent} is not writable ({why}). Choose another path."
        ) from None


# -- names, tags, trash ----------------------------------------------------------------------------


def find(home: Home, name: str) -> StoredAdapter:
    """Return an adapter of this home by its id, name or run number.

    Raises:
        AdapterError: There is none, or it is outside the home.
    """
    known = adapters(home)
    if found := next((adapter for adapter in known if adapter.id == name), None):
        return found
    path = resolve(home, name)
    if found := next((adapter for adapter in known if adapter.path == path), None):
        return found
    raise AdapterError(f"{path} is not in this home; import it first.")


def rename(home: Home, name: str, new: str) -> StoredAdapter:
    """Rename an adapter, and its folder if it is in the library.

    Raises:
        AdapterError: The name is empty, taken, or could be read as something else.
    """
    adapter = find(home, name)
    new = new.strip()
    if why := fault(new):
        raise AdapterError(why)
    new = " ".join(new.split())
    target = adapter.path.with_name(slug(new)) if adapter.source == "library" else adapter.path
    if is_taken(home, new, apart_from=adapter.path) or (target != adapter.path and target.exists()):
        raise AdapterError(f'There is already an adapter "{new}"; choose another name.')
    _write_label(adapter, name=new)
    if target != adapter.path:
        atomic.replace(adapter.path, target)
    return describe(target, source=adapter.source)


def set_tags(home: Home, name: str, tags: Sequence[str]) -> StoredAdapter:
    """Replace an adapter's tags; an empty list removes them.

    Raises:
        AdapterError: There are too many, or one is invalid.
    """
    adapter = find(home, name)
    words = list(dict.fromkeys(" ".join(word.split()) for word in tags if word.strip()))
    if len(words) > MAX_TAGS:
        raise AdapterError(f"An adapter can have at most {MAX_TAGS} tags, got {len(words)}.")
    for word in words:
        if len(word) > MAX_TAG_CHARACTERS or "," in word or not word.isprintable():
            raise AdapterError(
                f'Invalid tag "{word[:MAX_TAG_CHARACTERS]}": use at most {MAX_TAG_CHARACTERS} '
                "characters and no commas."
            )
    _write_label(adapter, tags=words)
    return describe(adapter.path, source=adapter.source)


def delete(home: Home, name: str) -> trash.Deleted:
    """Move an adapter to the trash.

    Raises:
        AdapterError: There is no such adapter in this home.
    """
    adapter = find(home, name)
    return trash.put(home, adapter.path, adapter.name)


def deleted(home: Home) -> list[trash.Deleted]:
    """Return the adapters that can be restored, newest first."""
    return trash.listed(home, home.adapters, home.runs)


def restore(home: Home, token_or_name: str = "") -> StoredAdapter:
    """Restore the named adapter, or the one deleted last.

    Raises:
        AdapterError: There is nothing to restore, or its name or place is taken.
    """
    one = trash.find(deleted(home), token_or_name, error=AdapterError)
    trash.restore(home, one, taken=is_taken(home, one.name), error=AdapterError)
    return describe(one.path, source=_source(home, one.path))


def is_taken(home: Home, name: str, *, apart_from: Path | None = None) -> bool:
    """Return True if another adapter has the name, in any case."""
    others = (adapter for adapter in adapters(home) if adapter.path != apart_from)
    return name.casefold() in {adapter.name.casefold() for adapter in others}


def _write_label(adapter: StoredAdapter, **changes: Any) -> None:
    """Write name and tags in one rename; the adapter's own files stay as they are."""
    label: dict[str, Any] = {"tags": list(adapter.tags)}
    if adapter.name != adapter.passport.get("name"):
        label["name"] = adapter.name
    atomic.write(adapter.path / LABEL, json.dumps(label | changes, ensure_ascii=False))
