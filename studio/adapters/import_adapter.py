"""Import adapters into the library: PEFT and AdapterHub folders, told apart by content.

An import copies only the two files it understands, after reading them as strictly as a load would;
the adapter appears in the library only when everything is valid.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Self

from studio import atomic, names
from studio.adapters.library import (
    PASSPORT,
    WEIGHTS,
    StoredAdapter,
    adapters,
    describe,
    write_passport,
)
from studio.errors import AdapterError, Unreached, is_transient
from studio.fields import knob
from studio.home import Home, publishing, slug
from studio.job_request import Request
from studio.methods.method_of_config import CONFIG, is_adapterhub, read_json, read_method
from studio.models.find_model import facts
from studio.names import readable
from studio.spec import ModelSource
from studio.training.training_events import Event, Finished, Loading

MAX_BYTES = 64 * 2**30


class ImportAdapterRequest(Request):
    """Copy a PEFT or AdapterHub adapter into the library."""

    kind: ClassVar[str] = "import_adapter"
    adapter: str = knob(
        "", "Its name in the library; its folder's name when empty.", max_length=120
    )
    source: str = knob("", "Folder, or a hub id such as org/name.", max_length=4000)
    model: ModelSource | None = knob(None, "The base to check it against.")

    def checked(self, home: Home) -> Self:
        """Return it with its folder found, which the job reads."""
        source, _ = locate(home, self.source.strip(), self.adapter)
        if self.model is not None:
            facts(self.model)
        return self.model_copy(update={"source": source})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Check it, try it on its base, copy it."""
        yield Loading(text="Reading the adapter")
        found = import_adapter(home, self.source, name=self.adapter, model=self.model)
        yield Finished(adapter=str(found.path))

    def target(self, home: Home) -> Path | None:
        """Return the folder in the library, if the name was given."""
        return home.adapters / slug(self.adapter) if self.adapter else None

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the adapter that was imported."""
        if not result.get("adapter"):
            return {"name": self.adapter, "path": None, "method": ""}  # it was deleted
        found = describe(Path(result["adapter"]))
        return {"name": found.name, "path": str(found.path), "method": found.method}


def import_adapter(
    home: Home, source: str, *, name: str = "", model: ModelSource | None = None
) -> StoredAdapter:
    """Copy a folder, or a hub id such as `org/name`, into the library.

    An empty name takes the folder's. With a model, both are loaded to check one against the other.

    Raises:
        AdapterError: It is unsafe, broken, for another base, or the name exists.
    """
    from studio.backbone import Backbone
    from studio.models.loading import load

    source, target = locate(home, source, name)
    folder = _fetched(source)
    weights = _checked_files(folder)
    if model is not None:  # the error names the shape, module or vocabulary that does not match
        Backbone(load(model, "cpu").model).load("candidate", folder)
    with publishing(target) as temporary:
        for file in (folder / CONFIG, weights):
            shutil.copyfile(file, temporary / file.name)  # links of the hub's cache as files
        brought = folder / PASSPORT
        small = brought.is_file() and brought.stat().st_size < 1_000_000
        now = datetime.now(UTC).isoformat(timespec="seconds")
        passport: dict[str, Any] = {
            "created": now, "ended": "imported",
            **(atomic.read_object(brought) if small else {}),
            "name": target.name, "imported_from": source, "imported": now,
        }  # fmt: skip
        if model is not None:
            passport["base"] = {
                "path": model.path, "revision": model.revision,
                "fingerprint": facts(model).fingerprint,
            }  # fmt: skip
        write_passport(temporary, passport)
    return describe(target, source="library")


def locate(home: Home, source: str, name: str = "") -> tuple[str, Path]:
    """Return a source's full path or hub id, and its folder in the library.

    Raises:
        AdapterError: There is no such folder, or the name exists.
    """
    kind, folder = names.locate(source)
    if kind == "folder":
        source = str(folder.absolute())
    elif kind == "file":
        raise AdapterError(f"{folder} is a file; give the folder that holds {CONFIG}.")
    elif kind != "hub" or "/" not in source:
        raise AdapterError(f"There is no adapter folder {source}.")
    target = home.adapters / slug(name or Path(source).name)
    taken = {adapter.name.casefold() for adapter in adapters(home)}
    if target.exists() or {target.name, name.casefold()} & taken:
        raise AdapterError(
            f'There is already an adapter "{name or target.name}" in the library; import it under '
            "another name."
        )
    return source, target


def _fetched(source: str) -> Path:
    if Path(source).is_absolute():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG, *WEIGHTS]))
    except Exception as error:
        if is_transient(error):
            raise Unreached(
                f"{source} is not a local folder, not downloaded, and the hub cannot be reached: "
                "check the spelling or the connection."
            ) from None
        raise AdapterError(
            f"{source} is not a local folder and cannot be downloaded from the hub. Download it "
            "and give the folder."
        ) from error


def _checked_files(folder: Path) -> Path:
    """Return the weights file; reads config and tensors as strictly as a load."""
    from studio.backbone import adapter_files

    for file in (folder / CONFIG, *(folder / w for w in WEIGHTS)):
        if file.is_symlink() and not file.resolve().is_file():
            raise AdapterError(f"{file} is a link to nothing.")
        if file.exists() and (not file.is_file() or file.stat().st_size > MAX_BYTES):
            raise AdapterError(f"{file} is not a regular file of at most {readable(MAX_BYTES)}.")
    config = read_json(folder / CONFIG)
    theirs = is_adapterhub(config)
    if not theirs:
        read_method(config)
    name = adapter_files.ADAPTERHUB_WEIGHTS if theirs else adapter_files.WEIGHTS
    adapter_files.read_tensors(folder, name)
    return folder / name
