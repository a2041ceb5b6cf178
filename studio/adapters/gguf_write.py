"""Write a model folder with its tokenizer, or a LoRA, as one GGUF file; read its tensors back.

The `gguf` package writes and quantises. Vectors, convolutions and routers stay in 32 bit, rows that
a block does not divide in 16.

GGUF stores a byte-level tokenizer's rule for splitting texts as a name. The name is found by
splitting difficult texts with each known rule and with the tokenizer itself; class names and
vocabularies do not decide it, because files of one class differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from studio.adapters.gguf_families import family_of, numbers_of, rope_factors, write_numbers
from studio.adapters.gguf_tensors import Place, Places, placed
from studio.errors import AdapterError, InputError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


Precision = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q4_0"]
PRECISION_LABELS: dict[str, str] = {
    "f16": "F16: half the size, nearly exact",
    "q8_0": "Q8_0: a quarter of the size, for most machines",
    "q5_1": "Q5_1: a fifth of the size, a little less exact",
    "q4_0": "Q4_0: a seventh of the size, for small machines",
    "bf16": "BF16",
    "f32": "F32: exact",
}
BLOCKS = ("q8_0", "q5_1", "q4_0")  # quantised in blocks of 32 numbers
BLOCK = 32
EXACT = ("conv", "ffn_gate_inp", "ssm_", "altup_", "_norm", "rope_")  # never quantised

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


def package() -> Any:
    """Import `gguf`.

    Raises:
        InputError: It is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise InputError(
            'The GGUF export needs the gguf package: pip install "adapter-studio[gguf]".'
        ) from None
    return gguf


def write(folder: Path, target: Path, *, precision: Precision, name: str) -> list[str]:
    """Write `folder` (config, safetensors, tokenizer) to `target`; return notes for the user.

    Raises:
        ModelError: The format does not support the architecture or the tokenizer.
        InputError: The `gguf` package is not installed.
    """
    gguf = package()
    numbers = numbers_of(folder)
    family = family_of(numbers["architecture"])
    writer = gguf.GGUFWriter(target, family.arch)
    writer.add_name(name)
    most = "ALL" if precision == "f32" else "MOSTLY"
    writer.add_file_type(gguf.LlamaFileType[f"{most}_{precision.upper()}"])
    write_numbers(writer, numbers, family)
    notes = add_tokenizer(writer, folder, numbers["vocab_size"], family.arch)
    in_16_bit: set[str] = set()
    for key, tensor in stored(folder):
        data, kind = packed(key, tensor, precision)
        if precision in BLOCKS and kind == gguf.GGMLQuantizationType.F16:
            in_16_bit.add(key.split(".")[-2])
        writer.add_tensor(key, data, raw_dtype=kind)
    _close(writer)
    if in_16_bit:
        rest = ", ".join(sorted(in_16_bit))
        notes.append(f"In 16 bit, because their row length is not a multiple of {BLOCK}: {rest}.")
    if numbers["architecture"].endswith("ForConditionalGeneration"):
        notes.append("The file holds the text model; its vision tower needs an mmproj file.")
    return notes


def stored(folder: Path) -> Iterator[tuple[str, Array]]:
    """Yield every tensor of the file by GGUF's name, in float32.

    Raises:
        ModelError: The architecture has no entry, or a tensor no name.
    """
    import numpy as np

    places = Places(numbers_of(folder))
    for key, factors in rope_factors(places.numbers).items():
        yield f"{key}.weight", np.array(factors, dtype=np.float32)
    yield from placed(folder, places)


def packed(key: str, tensor: Array, precision: Precision) -> tuple[Array, Any]:
    """Return a tensor's bytes and type."""
    gguf = package()
    kinds = gguf.GGMLQuantizationType
    small = tensor.ndim < 2 or key.endswith(".bias") or any(part in key for part in EXACT)
    kind = kinds.F32 if small else kinds[precision.upper()]
    if kind in {kinds[name.upper()] for name in BLOCKS} and tensor.shape[-1] % BLOCK:
        kind = kinds.F16
    return gguf.quants.quantize(tensor, kind), kind


def read_tensors(file: Path) -> dict[str, Array]:
    """Return every tensor of a GGUF file in float32."""
    gguf = package()
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(file).tensors
    }


def verify_tensors(file: Path, folder: Path, precision: Precision) -> None:
    """Compare every tensor of the file with the folder's, rounded alike.

    Raises:
        AdapterError: One is missing, too many, or differs.
    """
    import numpy as np

    gguf = package()
    there = read_tensors(file)
    for key, tensor in stored(folder):
        data, kind = packed(key, tensor, precision)
        wanted = gguf.quants.dequantize(data, kind)
        found = there.pop(key, None)
        if found is None or not np.array_equal(found.reshape(wanted.shape), wanted):
            raise AdapterError(f"{key} of the written file differs from the model's: not kept.")
    if there:
        raise AdapterError(f"The written file holds {min(there)}, which the model has not.")


def write_adapter(
    folder: Path, target: Path, halves: Mapping[str, tuple[Array, Array]], *, alpha: float,
    name: str,
) -> None:  # fmt: skip
    """Write a LoRA for a base folder as llama.cpp's `--lora` and Ollama's `ADAPTER` read it.

    `halves` are `A` `(…, r, inputs)` and `B` `(…, outputs, r)` by the base tensor's key, and the
    change is `alpha / r · B A`.

    Raises:
        ModelError: The architecture has no entry, a tensor has no name, or the file's tensor is
            not its matrix alone.
    """
    gguf = package()
    family = family_of(numbers_of(folder)["architecture"])
    writer = gguf.GGUFWriter(target, family.arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    writer.add_name(name)
    for key, (down, up) in placed_halves(folder, halves).items():
        writer.add_tensor(f"{key}.lora_a", down)
        writer.add_tensor(f"{key}.lora_b", up)
    _close(writer)


def placed_halves(
    folder: Path, halves: Mapping[str, tuple[Array, Array]]
) -> dict[str, tuple[Array, Array]]:
    """Return the halves of a LoRA by GGUF's name, in GGUF's order."""
    places = Places(numbers_of(folder))
    found: dict[str, tuple[Array, Array]] = {}
    for key, (down, up) in halves.items():
        shape = (*up.shape[:-1], down.shape[-1])
        for place in places.of(key, shape):
            found[place.name] = _ordered(place, down, up)
    return found


def _ordered(place: Place, down: Array, up: Array) -> tuple[Array, Array]:
    import numpy as np

    if place.values is not None or place.stack is not None:
        raise ModelError(f"GGUF adapters cannot change {place.name}: merge the adapter instead.")
    if place.turned:
        down, up = up.swapaxes(-1, -2), down.swapaxes(-1, -2)
    if place.rows is not None:
        up = up.take(place.rows, axis=-2)
    if place.columns is not None:
        down = down.take(place.columns, axis=-1)
    return np.ascontiguousarray(down), np.ascontiguousarray(up)


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pre_tokenizer(tokenizer_json: dict[str, Any]) -> tuple[str, int]:
    """Return the name of the rule that splits most texts alike, and how many it splits otherwise.

    It takes the content of a `tokenizer.json`.
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

    `count` is the number of rows of the embeddings.

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
