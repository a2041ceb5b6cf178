"""The tokenizer of a model as training loads it, from its files or from transformers' object.

Reading the files needs neither transformers nor torch, so the page can show an X-ray without them.
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
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import atomic
from studio.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from studio.home import Home


_SPECIAL_NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_LOOKS_SPECIAL = re.compile(r"<\|.*\|>|\[/?INST\]|</?s>|<(start|end)_of_turn>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Backend:
    """A tokenizer: its fast core, its special tokens, its chat template.

    `prefix` are the ids it puts before any text by itself, such as `<s>`.
    """

    core: Tokenizer
    special: dict[str, str]
    controls: tuple[str, ...]
    chat_template: str | None
    prefix: tuple[int, ...]
    tool_template: str | None = None  # for rows with tools, where it is another one
    name: str = ""  # the model's, for messages

    @property
    def eos(self) -> str:
        """The text of the end-of-sequence token, "" when there is none."""
        return self.special.get("eos_token", "")

    def token_id(self, text: str) -> int | None:
        """Return the id of a token that is in the vocabulary as a whole."""
        found = self.core.token_to_id(text)
        return None if found is None else int(found)

    def token_ids(self, *texts: str) -> list[int]:
        """Return the ids of those texts that are in the vocabulary as a whole."""
        found = [self.token_id(text) for text in texts if text]
        return [token for token in found if token is not None]

    def fingerprint(self) -> str:
        """Return a hash of everything that decides what text becomes."""
        parts = [self.core.to_str(), json.dumps(self.special), self.chat_template or ""]
        parts += [self.tool_template] if self.tool_template else []
        return hashlib.sha256("\x00".join(parts).encode("utf-8", "replace")).hexdigest()


def backend_of(tokenizer: Any) -> Backend:
    """Read transformers' tokenizer.

    Raises:
        ModelError: It has no fast core, so it cannot tell which characters a token covers.
    """
    if isinstance(tokenizer, Backend):
        return tokenizer
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None or not hasattr(core, "encode_batch"):
        raise ModelError(
            "The model's tokenizer has no fast form (tokenizer.json), which the loss mask needs. "
            "Convert it with transformers' AutoTokenizer and save it again."
        )
    special = {
        name: str(value)
        for name, value in tokenizer.special_tokens_map.items()
        if isinstance(value, str) or hasattr(value, "content")
    }
    name = model_name(getattr(tokenizer, "name_or_path", ""))
    return backend_from_core(core, special, tokenizer.chat_template, name)


def backend_from_folder(folder: Path) -> Backend:
    """Read `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` of a model folder.

    Raises:
        ModelError: There is no readable `tokenizer.json`.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(f"{folder} has no tokenizer.json.")
    try:
        core = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises plain Exception
        raise ModelError(f"{file} cannot be read ({str(error)[:120]}).") from None
    config = atomic.read_object(folder / "tokenizer_config.json")
    special = {name: text for name in _SPECIAL_NAMES if (text := _content(config.get(name)))}
    try:
        templates = _templates(folder, config.get("chat_template"))
    except UnicodeDecodeError:
        raise ModelError(f"A chat template of {folder} is not UTF-8: save it again.") from None
    return backend_from_core(core, special, templates, model_name(str(folder)))


def _content(token: Any) -> str:
    """Return the text of a token, given as text or as an object; "" of anything else."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def model_name(path: str) -> str:
    """Return a model's name from its folder, also in the hub library's cache."""
    cached = re.search(r"models--([^/]+)", path)
    return cached[1].replace("--", "/") if cached else Path(path).name


def _templates(folder: Path, configured: Any) -> dict[str, str]:
    """Read the chat templates of a model folder by name, as transformers finds them."""
    named: dict[str, str] = {}
    if isinstance(configured, list):
        found = [t for t in configured if isinstance(t, dict) and {"name", "template"} <= {*t}]
        named = {str(t["name"]): str(t["template"]) for t in found}
    elif isinstance(configured, str):
        named["default"] = configured
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        named["default"] = jinja.read_text(encoding="utf-8")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[file.stem] = file.read_text(encoding="utf-8")
    return named


def backend_from_core(
    core: Tokenizer, special: dict[str, str], template: str | dict[str, str] | None, name: str = ""
) -> Backend:
    """Gather what templates need from a fast tokenizer and its settings.

    Of several templates `default` is used, and `tool_use` for rows with tools.
    """
    named = template if isinstance(template, dict) else {}
    tool_use = named.get("tool_use")
    if isinstance(template, dict):
        template = named.get("default") or next(iter(named.values()), None)
    if core.padding is not None or core.truncation is not None:
        # Settings that an earlier call left in the shared object would reach into our rows.
        core = type(core).from_str(core.to_str())
        core.no_padding()
        core.no_truncation()
    added = [
        token.content
        for token in core.get_added_tokens_decoder().values()
        if token.special or _LOOKS_SPECIAL.fullmatch(token.content)
    ]
    controls = tuple(dict.fromkeys([*added, *special.values()]))
    encoded = core.encode("a", add_special_tokens=True)
    prefix = []
    for token_id, is_special in zip(encoded.ids, encoded.special_tokens_mask, strict=True):
        if not is_special:
            break
        prefix.append(token_id)
    tool_use = tool_use if tool_use != template else None
    return Backend(core, special, controls, template or None, tuple(prefix), tool_use, name)


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
    core, name = Tokenizer.from_str(entry["core"]), model_name(str(folder))
    return backend_from_core(core, entry["special"], entry["chat_template"], name)


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
    if (folder / "special_tokens_map.json").exists() or (folder / "added_tokens.json").exists():
        return False
    added = atomic.read_object(folder / "tokenizer.json").get("added_tokens") or []
    try:
        known = {t["content"]: bool(t.get("special")) for t in added}
        return all(known.get(text, False) for text in _token_texts(config))
    except (AttributeError, KeyError, TypeError):
        return False  # transformers decides what becomes of it


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
    if key not in _known and home is not None and (entry := atomic.read_object(_file(key, home))):
        _known[key] = entry
    return _known.get(key)


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
    command = [sys.executable, "-m", "studio.data.model_tokenizer", folder]
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


INCOMPLETE = "\ufffd"
CONTEXT_TOKENS = 6
MAX_PENDING = 8  # no character has more bytes: more pending tokens are not text


class Detokenizer:
    """The text of growing tokens; the end of the prompt decides about its first space.

    A token may be a part of a character (byte-level and byte-fallback vocabularies) or owe its
    leading space to the token before it (sentencepiece), so it is decoded together with the one
    before, and text that ends in an incomplete character waits for the next token.
    """

    def __init__(
        self, tokenizer: Any, prompt: Sequence[int] = (), kept: Mapping[int, str] | None = None
    ) -> None:
        self._tokenizer, self._kept = tokenizer, kept or {}
        self._shown = list(prompt[-CONTEXT_TOKENS:])
        self._pending: list[int] = []

    def add(self, token_id: int) -> str:
        """Add a token and return the text that is complete now, often empty.

        Control tokens have no text, except the `kept` ones.
        """
        if token_id in self._kept:
            return self.flush() + self._kept[token_id]
        self._pending.append(token_id)
        text = self._fresh()
        if not text or (text.endswith(INCOMPLETE) and len(self._pending) < MAX_PENDING):
            return ""
        self._advance()
        return text

    def flush(self) -> str:
        """Return the rest at the end, an incomplete character included."""
        text = self._fresh()
        self._advance()
        return text

    def _fresh(self) -> str:
        before = self._decode(self._shown)
        after = self._decode(self._shown + self._pending)
        if after.startswith(before):
            return after[len(before) :]
        return self._decode(self._pending)  # incomplete bytes changed the text before them

    def _advance(self) -> None:
        if self._pending:
            self._shown, self._pending = self._pending, []

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_ask(sys.argv[1])))
