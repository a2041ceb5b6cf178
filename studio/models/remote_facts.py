"""Read a hub model's facts before its download: configuration, tokenizer and weight headers only.

They are kept in a folder that reads like the model's own, whose weight files end after their
headers. So estimates, the X-ray and the form work on it as on a model that is here; `sizes.json`
gives `headers.read_header` the lengths of the files.
"""

import contextlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub

from studio import atomic
from studio.errors import InputError, ModelError, Unreached
from studio.home import Home
from studio.models.hub_models import (
    ANSWER_SECONDS,
    WEIGHTS,
    RemoteFile,
    Repository,
    endpoint,
    headers,
    look_up,
    refused,
)
from studio.models.safetensors_headers import SIZES
from studio.spec import ModelSource

FRESH_SECONDS = 86_400
MOST_BYTES = 64 << 20  # of configuration and tokenizer
WORKERS = 8  # headers at once
_failures: dict[tuple[str, str], tuple[float, InputError]] = {}  # by hub and model, or hub and ""


def known(source: ModelSource, home: Home) -> Path | None:
    """Return the folder of a model that was looked at before, without asking the hub."""
    folder = _folder(source, home)
    return folder if (folder / SIZES).is_file() else None


def look(source: ModelSource, home: Home) -> Path:
    """Return the folder with a model's facts; the hub is asked at most once a day.

    Raises:
        ModelError: The hub does not have it, refuses it, or it cannot be trained here.
        Unreached: The hub does not answer.
    """
    from filelock import FileLock

    folder, hub = _folder(source, home), endpoint()
    if _fresh(folder):
        return folder
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):  # one looks, the others wait for it
        if _fresh(folder):
            return folder
        for when, failure in (_failures.get((hub, key), (0.0, None)) for key in ("", folder.name)):
            if failure is not None and time.monotonic() - when < ANSWER_SECONDS:
                raise failure
        try:
            found = look_up(source.path, source.revision)
            if found.why_not:
                raise ModelError(found.why_not)
            _write(found, folder)
        except InputError as error:
            key = "" if isinstance(error, Unreached) else folder.name
            _failures[hub, key] = (time.monotonic(), error)
            raise
    return folder


def _fresh(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # it was never looked at
        return time.time() - (folder / SIZES).stat().st_mtime < FRESH_SECONDS
    return False


def _folder(source: ModelSource, home: Home) -> Path:
    name = f"{source.path}@{source.revision or 'main'}".replace("/", "--").replace("\\", "--")
    return home.state / "looked-at" / name


def _write(found: Repository, folder: Path) -> None:
    """Fetch the small files and the headers, then publish the folder."""
    small = [file for file in found.files if not file.name.endswith(WEIGHTS)]
    if sum(file.size for file in small) > MOST_BYTES:
        raise ModelError(f"The configuration and tokenizer of {found.id} are unusually large.")
    made, before = (folder.with_name(f"{folder.name}.{end}") for end in ("new", "old"))
    for left in (made, before):
        shutil.rmtree(left, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda file: _fetch(found, file, made), found.files))
    except Exception as error:  # the library raises dozens of kinds
        raise refused(found.id, error, found.branch) from None
    sizes = {file.name: file.size for file in found.files if file.name.endswith(WEIGHTS)}
    atomic.write(made / SIZES, json.dumps(sizes))
    if folder.exists():
        atomic.replace(folder, before)
    atomic.replace(made, folder)
    shutil.rmtree(before, ignore_errors=True)


def _fetch(found: Repository, file: RemoteFile, folder: Path) -> None:
    if file.name.endswith(WEIGHTS):
        read = huggingface_hub.HfApi().parse_safetensors_file_metadata(
            found.id, file.name, revision=found.revision, timeout=ANSWER_SECONDS
        )
        table = {
            name: {"dtype": one.dtype, "shape": one.shape, "data_offsets": one.data_offsets}
            for name, one in read.tensors.items()
        }
        end = max((one.data_offsets[1] for one in read.tensors.values()), default=0)
        header = json.dumps(table, separators=(",", ":")).encode().ljust(file.size - 8 - end)
        (folder / file.name).write_bytes(len(header).to_bytes(8, "little") + header)
        return
    answer = huggingface_hub.get_session().get(
        huggingface_hub.hf_hub_url(found.id, file.name, revision=found.revision), headers=headers(),
        timeout=ANSWER_SECONDS, follow_redirects=True,
    )  # fmt: skip
    huggingface_hub.hf_raise_for_status(answer)
    (folder / file.name).write_bytes(answer.content)
