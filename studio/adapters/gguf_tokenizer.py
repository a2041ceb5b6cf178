"""Write a tokenizer into a GGUF file, with the name of the pre-tokenizer that splits texts alike.

GGUF stores a byte-level tokenizer's rule for splitting texts as a name. The name is found by
splitting difficult texts with each known rule and with the tokenizer itself; class names and
vocabularies do not decide it, because files of one class differ.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from studio.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LINES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATHS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_ASCII = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_CUTS = r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
RULES: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _LINES,),
    "qwen2": (_SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _LINES,),
    "qwen35": (
        _SHORT + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "tekken": (f"{_LOWER}|{_UPPER}" + r"|\p{N}" + _PATHS,),
    "gpt-4o": (f"{_LOWER}{_SHORT}?|{_UPPER}{_SHORT}?" + r"|\p{N}{1,3}" + _PATHS,),
    "deepseek-v3": (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _ASCII + _CUTS),
}
"""Each rule as the patterns that cut a text one after the other.

Source: the rules that llama.cpp implements under these names.
"""
KEEPS_MERGES = {"llama-bpe": "dbrx"}
"""The name of the same rule where a whole word in the vocabulary does not skip the merges."""
TEXTS = (
    "She said: “Don't!” – twice, they'LL go; I'M, we'Ve.", "1234567 and 3.14159 in 2026, x12y345",
    "def add(a, b):\n    return a + b  # sum\n\n\n\tif x:\r\n", "  two  spaces   and trailing   ",
    "HelloWorld camelCaseWords HTTPServer XMLHttpRequest iPhone", "path/to/file.txt http://a.b/c?d",
    "¿Qué hora es? Ça va, naïve café – über", "你好，世界！こんにちは世界 123 안녕하세요",
    "नमस्ते दुनिया हिन्दी", "👋🏽 🇩🇪 ½ ²³ Ⅷ", "a\n \n  b\n\n   c", "!!!???... --- ***bold*** ~tilde~",
)  # fmt: skip
UNKNOWN_RULE = (
    "GGUF has no rule that splits all texts as this tokenizer does: the file can be used, but "
    "answers to texts that are split otherwise may be worse."
)


def pre_tokenizer(tokenizer_json: dict[str, Any]) -> tuple[str, int]:
    """Return the name of the rule that splits most texts alike, and how many it splits otherwise.

    Args:
        tokenizer_json: The content of the tokenizer's `tokenizer.json`.
    """
    own = [_split_with(tokenizer_json, text) for text in TEXTS]
    wrong = {
        name: sum(mine != theirs for mine, theirs in zip(own, _known_splits(name), strict=True))
        for name in RULES
    }
    best = min(wrong, key=lambda name: wrong[name])
    count = wrong[best]
    if not tokenizer_json["model"].get("ignore_merges"):
        best = KEEPS_MERGES.get(best, best)
    return best, count


def _split_with(tokenizer_json: dict[str, Any], text: str) -> list[str]:
    """Return the pieces between which no merge can happen, as the tokenizer itself cuts them."""
    import tokenizers

    inner = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json))
    rule, normalizer = inner.pre_tokenizer, inner.normalizer
    text = normalizer.normalize_str(text) if normalizer else text
    pieces = rule.pre_tokenize_str(text) if rule else [(text, (0, len(text)))]
    return [piece for piece, _ in pieces]


@cache
def _known_splits(name: str) -> tuple[list[str], ...]:
    from tokenizers import Regex, pre_tokenizers

    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in RULES[name]]
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rule = pre_tokenizers.Sequence([*cuts, bytewise])
    return tuple([piece for piece, _ in rule.pre_tokenize_str(text)] for text in TEXTS)


def add_tokenizer(writer: Any, folder: Path, count: int, arch: str) -> list[str]:
    """Write vocabulary, merges, special tokens and the chat template; return notes for the user.

    Args:
        writer: The `GGUFWriter`.
        folder: The model folder.
        count: Rows of the embeddings.
        arch: GGUF's name of the architecture.

    Raises:
        ModelError: The format does not support its kind.
    """
    from transformers import AutoTokenizer

    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if raw["model"].get("type") != "BPE":
        raise ModelError(f"A {raw['model'].get('type')} tokenizer cannot be written as GGUF here.")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    bytewise = not raw["model"].get("byte_fallback")
    notes = []
    if bytewise:
        # The running tokenizer decides: transformers changes some rules while it loads a file.
        name, otherwise = pre_tokenizer(json.loads(tokenizer.backend_tokenizer.to_str()))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        notes += [UNKNOWN_RULE] if otherwise else []
    else:
        writer.add_tokenizer_model("gemma4" if arch == "gemma4" else "llama")
    merges = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    tokens = _add_tokens(writer, raw, count, bytewise=bytewise)
    writer.add_token_merges(merges)
    if not bytewise:
        # In sentencepiece's order the earlier merge has the higher score.
        rank = {merge.replace(" ", ""): -float(i) for i, merge in reversed([*enumerate(merges)])}
        writer.add_token_scores([rank.get(token, -1e6) for token in tokens])
        writer.add_add_space_prefix(tokenizer.tokenize("a")[-1:] == ["\u2581a"])
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id", None)
        if index is not None and index < count:
            getattr(writer, f"add_{name}_token_id")(index)
    ends = [one for one in end_ids(folder, tokenizer) if one != tokenizer.eos_token_id]
    if ends:  # of an answer, not of a text
        writer.add_eot_token_id(ends[0])
    writer.add_add_bos_token(begins_with_bos(tokenizer))
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()), None)
    if isinstance(template, str):
        writer.add_chat_template(template)
        return notes
    return [*notes, "The model has no chat template: programs will use one of their own."]


def begins_with_bos(tokenizer: Any) -> bool:
    """Return True if the tokenizer puts its first token before every text."""
    begin = tokenizer.bos_token_id
    return bool(begin is not None and tokenizer("a")["input_ids"][:1] == [begin])


def end_ids(folder: Path, tokenizer: Any) -> list[int]:
    """Return every token that ends an answer: the tokenizer's and the generation config's."""
    path = folder / "generation_config.json"
    given = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    more = given.get("eos_token_id")
    ids = [tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])]
    return list(dict.fromkeys(index for index in ids if index is not None))


def _add_tokens(writer: Any, raw: dict[str, Any], count: int, *, bytewise: bool) -> list[str]:
    special = {token["id"]: token for token in raw.get("added_tokens", [])}
    words = {index: word for word, index in raw["model"]["vocab"].items()}
    words |= {index: token["content"] for index, token in special.items()}
    tokens = [words.get(i, f"[UNUSED{i}]") for i in range(count)]
    unknown = raw["model"].get("unk_token")

    def kind(index: int) -> int:
        if index not in words:
            return UNUSED
        if index in special:
            control = special[index].get("special")
            return UNKNOWN if tokens[index] == unknown else CONTROL if control else USER
        return BYTE if not bytewise and tokens[index].startswith("<0x") else NORMAL

    writer.add_token_list(tokens)
    writer.add_token_types([kind(i) for i in range(count)])
    return tokens
