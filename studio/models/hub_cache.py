"""Models in the hub's own cache: which are whole, how large they are, and how they are removed.

Layout (the hub library's): `models--OWNER--NAME/{blobs/ETAG, refs/BRANCH, snapshots/COMMIT/FILE}`,
where the files of a snapshot are links to blobs. Nothing here imports that library.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path

from studio.errors import ModelError
from studio.models.safetensors_headers import weight_files

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
PARTIAL = ".studio.incomplete"  # ending of a blob that has arrived in part
_COMMIT = re.compile(r"[0-9a-f]{40}")


def cache_folder() -> Path:
    """Return the hub's cache as its library finds it (`huggingface_hub.constants`)."""
    given = os.environ.get
    home = given("HF_HOME", os.path.join(given("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    place = given("HF_HUB_CACHE", given("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub")))
    return Path(os.path.expandvars(os.path.expanduser(place)))


def repository_folder(name: str, kind: str = "model") -> Path:
    """Return the folder of a model, or of another kind of repository, in the cache."""
    return cache_folder() / f"{kind}s--{name.replace('/', '--')}"


def ref_file(name: str, branch: str, kind: str = "model") -> Path:
    """Return the file that notes the commit of a branch or tag.

    Raises:
        ModelError: The name leads out of the model's folder.
    """
    if not branch or re.search(r"[\\\0:]", branch) or {"", ".", ".."} & set(branch.split("/")):
        raise ModelError(f'"{branch[:80]}" is not a revision: give a branch, tag or commit.')
    return repository_folder(name, kind) / "refs" / branch


def linking_mark(name: str, commit: str, kind: str = "model") -> Path:
    """Return the file that is there while a snapshot's links are made, and after a kill then."""
    return cache_folder() / ".locks" / repository_folder(name, kind).name / f"{commit}.linking"


def cached(name: str, revision: str = "") -> Path | None:
    """Return the snapshot of a model if all of it is here, without asking the hub."""
    folder = repository_folder(name)
    commit = revision if _COMMIT.fullmatch(revision) else ""
    if not commit:
        with contextlib.suppress(OSError, ValueError, ModelError):
            commit = ref_file(name, revision or "main").read_text(encoding="utf-8").strip()
    found = [folder / "snapshots" / commit] if commit else []
    if not commit and not revision:  # fetched by commit only: the newest
        found = sorted((folder / "snapshots").glob("*"), key=lambda p: p.stat().st_mtime)
    if not found or linking_mark(name, found[-1].name).exists():
        return None
    return found[-1] if is_whole(found[-1]) else None


def is_whole(snapshot: Path) -> bool:
    """Return True if configuration, tokenizer and every weight file of a model are there."""
    if not any((snapshot / name).is_file() for name in TOKENIZER_FILES):
        return False
    try:
        return (snapshot / "config.json").is_file() and bool(weight_files(snapshot))
    except ModelError:
        return False


def size_on_disk(name: str) -> int:
    """Return the bytes of a model's blobs, of those in part, and of copies where links fail."""
    folder = repository_folder(name)
    with contextlib.suppress(OSError):
        found = [*(folder / "blobs").glob("*"), *(folder / "snapshots").rglob("*")]
        return sum(one.stat().st_size for one in found if one.is_file() and not one.is_symlink())
    return 0


def remove(name: str) -> int:
    """Delete a model from the cache, every revision of it; return the bytes that are free again.

    Raises:
        ModelError: It is not in the cache, or cannot be deleted.
    """
    folder = repository_folder(name)
    if not folder.is_dir():
        raise ModelError(f'"{name}" is not in the hub\'s cache: `studio models` lists what is.')
    size = size_on_disk(name)
    try:
        shutil.rmtree(folder)
        for mark in linking_mark(name, "x").parent.glob("*.linking"):
            mark.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or "it is a link"
        raise ModelError(f'"{name}" cannot be deleted from {folder} ({why}).') from None
    return size
