"""The tokenizer as templates need it, from transformers' object or from its files alone.

Reading the files needs neither transformers nor torch, so the page can show an X-ray without them.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import atomic
from studio.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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
    return replace(backend_from_core(core, special, tokenizer.chat_template), name=name)


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
    special = {
        name: value["content"] if isinstance(value, dict) else str(value)
        for name in _SPECIAL_NAMES
        if (value := config.get(name))
    }
    made = backend_from_core(core, special, _templates(folder, config.get("chat_template")))
    return replace(made, name=model_name(str(folder)))


def model_name(path: str) -> str:
    """Return a model's name from its folder, also in the hub library's cache."""
    cached = re.search(r"models--([^/]+)", path)
    return cached[1].replace("--", "/") if cached else Path(path).name


def _templates(folder: Path, configured: Any) -> dict[str, str]:
    """Read the chat templates of a model folder by name, as transformers finds them."""
    named: dict[str, str] = {}
    if isinstance(configured, list):
        named = {t["name"]: t["template"] for t in configured if {"name", "template"} <= {*t}}
    elif isinstance(configured, str):
        named["default"] = configured
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        named["default"] = jinja.read_text(encoding="utf-8")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[file.stem] = file.read_text(encoding="utf-8")
    return named


def backend_from_core(
    core: Tokenizer, special: dict[str, str], template: str | dict[str, str] | None
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
    return Backend(core, special, controls, template or None, tuple(prefix), tool_use)
