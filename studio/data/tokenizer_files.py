"""Read a model's tokenizer as training loads it, also in a process without transformers.

transformers may build another tokenizer than the one in `tokenizer.json`: its class decides, the
model's type, flags of `tokenizer_config.json`. A folder of which nothing of that kind is known is
asked about once, in a process that has transformers; the answer (equal, or the tokenizer itself) is
kept in the home under a hash of the folder's files. Every run checks it again when it loads.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from studio import atomic
from studio.data.template.backend import Backend, backend_from_folder, backend_of
from studio.errors import ModelError

if TYPE_CHECKING:
    from studio.home import Home

SECONDS = 120
_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*.jinja")
_NOT_TOKENIZERS = ("model.safetensors.index.json", "generation_config.json")
_AS_IT_STANDS = ("PreTrainedTokenizerFast", "TokenizersBackend")
_PLAIN_TYPES = ("llama", "gpt2", "gpt_neox")  # transformers has no class of its own rules for them
_CHANGING = ("add_bos_token", "add_eos_token", "add_prefix_space", "fix_mistral_regex", "auto_map")
Entry = dict[str, Any]


def backend_for(folder: Path, home: Home | None = None) -> Backend:
    """Return the tokenizer of a model folder as training loads it.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    folder = folder.resolve()
    if not (folder / "tokenizer.json").is_file():
        return backend_from_folder(folder)  # says what is missing
    key = _key(folder)
    entry = _recalled(key, home)
    if entry is None and _stands_as_it_is(folder, key):
        return backend_from_folder(folder)
    if entry is None:
        entry = _resolved(str(folder))
        _remember(key, entry, home)
    return _backend(folder, entry)


def check_loaded(tokenizer: Any, home: Home | None) -> None:
    """Keep what transformers made of a model folder, so that pages read rows as the run does."""
    folder = Path(str(getattr(tokenizer, "name_or_path", "") or ""))
    if home is None or isinstance(tokenizer, Backend) or not (folder / "tokenizer.json").is_file():
        return
    key = _key(folder.resolve())
    if _recalled(key, home) is None:
        _remember(key, describe(tokenizer, folder), home)


def describe(tokenizer: Any, folder: Path) -> Entry:
    """Return `{"equal": True}` if the folder's files give this tokenizer, else the tokenizer."""
    loaded = backend_of(tokenizer)
    try:
        if backend_from_folder(folder).fingerprint() == loaded.fingerprint():
            return {"equal": True}
    except ModelError:
        pass
    return {
        "equal": False,
        "core": loaded.core.to_str(),
        "special": loaded.special,
        "chat_template": tokenizer.chat_template,
    }


def _backend(folder: Path, entry: Entry) -> Backend:
    from tokenizers import Tokenizer

    if "error" in entry:
        raise ModelError(entry["error"])
    if entry["equal"]:
        return backend_from_folder(folder)
    like_transformers = SimpleNamespace(
        backend_tokenizer=Tokenizer.from_str(entry["core"]),
        special_tokens_map=entry["special"],
        chat_template=entry["chat_template"],
        name_or_path=str(folder),
    )
    return backend_of(like_transformers)


def _key(folder: Path) -> str:
    """Return a hash of the files that decide how transformers reads a tokenizer."""
    made = hashlib.sha256(importlib.metadata.version("transformers").encode())
    files = {file for pattern in _FILES for file in folder.glob(pattern)}
    for file in sorted(files):
        if file.name not in _NOT_TOKENIZERS:
            status = file.stat()
            made.update(f"\x00{file.name}\x00".encode())
            made.update(_digest(str(file), status.st_size, status.st_mtime_ns, status.st_ino))
    return made.hexdigest()[:32]


@lru_cache(maxsize=256)
def _digest(file: str, _size: int, _changed: int, _inode: int) -> bytes:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


@lru_cache(maxsize=64)
def _stands_as_it_is(folder: Path, _key: str) -> bool:
    """Return True if transformers is known to take this `tokenizer.json` without a change."""
    config = atomic.read_object(folder / "tokenizer_config.json")
    model = atomic.read_object(folder / "config.json")
    if config.get("tokenizer_class") not in _AS_IT_STANDS:
        return False
    if model.get("model_type") not in _PLAIN_TYPES or any(name in config for name in _CHANGING):
        return False
    added = atomic.read_object(folder / "tokenizer.json").get("added_tokens") or []
    known = {t["content"]: bool(t.get("special")) for t in added}
    if (folder / "special_tokens_map.json").exists() or (folder / "added_tokens.json").exists():
        return False
    return all(known.get(text, False) for text in _token_texts(config))


def _token_texts(config: dict[str, Any]) -> list[str]:
    """Return the special tokens that a tokenizer's configuration names."""
    found: list[Any] = [v for name, v in config.items() if name.endswith("_token")]
    for name in ("extra_special_tokens", "additional_special_tokens", "added_tokens_decoder"):
        value = config.get(name) or []
        found += value.values() if isinstance(value, dict) else value
    texts = [value.get("content") if isinstance(value, dict) else value for value in found]
    return [text for text in texts if isinstance(text, str)]


_known: dict[str, Entry] = {}


def _recalled(key: str, home: Home | None) -> Entry | None:
    if key in _known:
        return _known[key]
    if home is None:
        return None
    try:
        entry = json.loads(_file(key, home).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    _known[key] = entry
    return _known[key]


def _remember(key: str, entry: Entry, home: Home | None) -> None:
    if "error" in entry:
        return  # a missing package may be installed before the next try
    _known[key] = entry
    if home is None:
        return
    file = _file(key, home)
    with contextlib.suppress(OSError):  # a full disk costs another question
        file.parent.mkdir(exist_ok=True, mode=0o700)
        atomic.write(file, json.dumps(entry))


def _file(key: str, home: Home) -> Path:
    return home.state / "tokenizers" / f"{key}.json"


def _resolved(folder: str) -> Entry:
    """Ask transformers, in this process if it is loaded already, else in one of its own."""
    if "transformers" in sys.modules:
        return _ask(folder)
    command = [sys.executable, "-m", "studio.data.tokenizer_files", folder]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
        entry: Entry = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {
            "error": f"The tokenizer in {folder} was not read within {SECONDS} s: the machine is "
            "busy. Try again when it is less so."
        }
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {"error": f"The tokenizer in {folder} cannot be read ({type(error).__name__})."}
    return entry


def _ask(folder: str) -> Entry:
    from studio.models.loading import tokenizer_at

    try:
        return describe(tokenizer_at(Path(folder)), Path(folder))
    except ModelError as error:
        return {"error": error.text}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_ask(sys.argv[1])))
