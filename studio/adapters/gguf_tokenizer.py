"""Write a tokenizer into a GGUF file: vocabulary, merges, kinds of tokens, chat template.

Two kinds have a place there: byte-level BPE (Qwen, Llama 3) and sentencepiece's BPE with bytes to
fall back on (Llama 2, Mistral, Gemma).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from studio.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


def add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> list[str]:
    """Write vocabulary, merges, special tokens and the chat template; returns what to know.

    Raises:
        ModelError: It is of a kind that has no place in the format.
    """
    from transformers import AutoTokenizer

    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = raw["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"A {model.get('type')} tokenizer cannot be written as GGUF here.")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    bytewise = not model.get("byte_fallback")
    special = {t["id"]: t for t in raw.get("added_tokens", [])}
    words = {index: word for word, index in model["vocab"].items()}
    words |= {index: token["content"] for index, token in special.items()}
    count = config["vocab_size"]
    tokens = [words.get(i, f"[UNUSED{i}]") for i in range(count)]
    unknown = model.get("unk_token")

    def kind(index: int) -> int:
        if index not in words:
            return NORMAL + 4  # unused
        if index in special:
            control = special[index].get("special")
            return UNKNOWN if tokens[index] == unknown else CONTROL if control else USER
        return BYTE if not bytewise and tokens[index].startswith("<0x") else NORMAL

    writer.add_tokenizer_model("gpt2" if bytewise else "llama")
    writer.add_token_list(tokens)
    writer.add_token_types([kind(i) for i in range(count)])
    writer.add_token_merges(merges)
    if bytewise:
        writer.add_tokenizer_pre(_splitting(tokenizer.backend_tokenizer.to_str()))
    else:
        # In sentencepiece's order the earlier merge has the higher score.
        rank = {merge.replace(" ", ""): -float(i) for i, merge in reversed([*enumerate(merges)])}
        writer.add_token_scores([rank.get(token, -1e6) for token in tokens])
        writer.add_add_space_prefix(tokenizer.tokenize("a")[-1:] == ["\u2581a"])
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id", None)
        if index is not None and index < count:
            getattr(writer, f"add_{name}_token_id")(index)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(bool(begins and tokenizer.bos_token_id is not None))
    template = tokenizer.chat_template
    if isinstance(template, str):
        writer.add_chat_template(template)
        return []
    return ["The model has no chat template: programs will use one of their own."]


def _splitting(backend: str) -> str:
    """Return GGUF's name for how a byte-level tokenizer cuts text before it merges.

    Asked of the tokenizer that runs: some models' classes cut otherwise than their file says.
    """
    pattern = json.dumps(json.loads(backend).get("pre_tokenizer"))
    if "{N}{1,3}" in pattern:
        return "llama-bpe"
    return "qwen2" if "Split" in pattern else "gpt-2"
