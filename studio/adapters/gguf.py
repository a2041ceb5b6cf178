"""Export to GGUF: write tensors and tokenizer, read the file back, compare logits.

Tensor names come from the `gguf` package; this file adds what it cannot know: the order of rotary
rows, the config's numbers and the tokenizer. Llama and Mistral rotate pairs of rows in GGUF and
halves in transformers, so the rows of q and k are reordered; Qwen and Gemma rotate halves in both.
Gemma multiplies by `1 + w` in its norms, and GGUF stores that sum. Two kinds of tokenizers can be
written: byte-level BPE (Qwen, Llama 3) and sentencepiece's BPE with byte fallback (Llama 2,
Mistral, Gemma).

The new folder holds the `.gguf`, an Ollama `Modelfile`, a model card, and `gguf.json` with the
figures. It appears only when the file gives the logits of the model it was made from.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from studio.adapters.card import stack_card, write_card
from studio.adapters.library import name_of, refuse_place, resolve_stack
from studio.adapters.requests import BASE, STACK
from studio.adapters.verify import (
    CERTIFICATE,
    GGUF_REPORT,
    Comparison,
    compare,
    logits_of,
    read_report,
    write_report,
)
from studio.errors import AdapterError, InputError, ModelError
from studio.fields import knob
from studio.home import Home, publishing, slug
from studio.names import cleaned
from studio.request import Request
from studio.spec import ModelSource
from studio.stack import Stack
from studio.training.events import Event, Finished, Loading

if TYPE_CHECKING:
    from numpy.typing import NDArray


NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


def add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> list[str]:
    """Write vocabulary, merges, special tokens and the chat template; return notes for the user.

    Raises:
        ModelError: The format does not support its kind.
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
        writer.add_tokenizer_pre(_pre_tokenizer(tokenizer.backend_tokenizer.to_str()))
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
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()), None)
    if isinstance(template, str):
        writer.add_chat_template(template)
        return []
    return ["The model has no chat template: programs will use one of their own."]


def _pre_tokenizer(backend: str) -> str:
    """Return GGUF's name of a byte-level pre-tokenizer, from the running one: files can differ."""
    pattern = json.dumps(json.loads(backend).get("pre_tokenizer"))
    if "{N}{1,3}" in pattern:
        return "llama-bpe"
    return "qwen2" if "Split" in pattern else "gpt-2"


Precision = Literal["f32", "f16", "bf16", "q8_0"]
PRECISIONS: tuple[Precision, ...] = ("f32", "f16", "bf16", "q8_0")
PRECISION_LABELS = {
    "f16": "F16: half the size, nearly exact",
    "q8_0": "Q8_0: a quarter of the size, for most machines",
    "bf16": "BF16",
    "f32": "F32: exact",
}
FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
}
BLOCK = 32  # numbers in a block of Q8_0; other row lengths stay in 16 bit


def write(folder: Path, target: Path, *, precision: Precision, name: str) -> list[str]:
    """Write `folder` (config, safetensors, tokenizer) to `target`; return notes for the user.

    Raises:
        ModelError: The format does not support the architecture or the tokenizer.
        InputError: The `gguf` package is not installed.
    """
    gguf = package()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = (config.get("architectures") or [""])[0]
    if architecture not in FAMILIES:
        raise ModelError(
            f"{architecture or 'This model'} cannot be written as GGUF here; "
            f"{', '.join(FAMILIES)} can."
        )
    family = FAMILIES[architecture]
    writer = gguf.GGUFWriter(target, family)
    writer.add_name(name)
    _add_config(writer, config, precision, gguf)
    notes = add_tokenizer(writer, folder, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config["num_hidden_layers"])
    in_16_bit: set[str] = set()
    for key, tensor in tensors(folder):
        stem, _, ending = key.rpartition(".")
        known = names.get_name(stem)
        if known is None:
            raise ModelError(f"{key} has no name in GGUF: this is not a plain {architecture}.")
        if key == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if family == "llama" and (heads := _rotary_heads(stem, config)):
            tensor = interleave(tensor, heads)
        if family.startswith("gemma") and stem.endswith("norm"):
            tensor = tensor + 1
        data, kind = _packed(tensor, precision, gguf)
        if precision == "q8_0" and tensor.ndim == 2 and kind != gguf.GGMLQuantizationType.Q8_0:
            in_16_bit.add(stem.rpartition(".")[2])
        writer.add_tensor(f"{known}.{ending}", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if in_16_bit:
        rest = ", ".join(sorted(in_16_bit))
        notes.append(f"In 16 bit, because their row length is not a multiple of {BLOCK}: {rest}.")
    return notes


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


def tensors(folder: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield every tensor of the folder in float32."""
    import torch
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                yield key, opened.get_tensor(key).to(torch.float32).numpy()


def interleave(tensor: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder the rows of rotate-half (all first, then all second halves) into pairs."""
    half = tensor.shape[0] // heads // 2
    shaped = tensor.reshape(heads, 2, half, *tensor.shape[1:])
    return shaped.swapaxes(1, 2).reshape(tensor.shape)


def _rotary_heads(stem: str, config: dict[str, Any]) -> int:
    if stem.endswith("self_attn.q_proj"):
        return int(config["num_attention_heads"])
    if stem.endswith("self_attn.k_proj"):
        return int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return 0


def _packed(tensor: NDArray[Any], precision: Precision, gguf: Any) -> tuple[NDArray[Any], Any]:
    """Return a tensor's bytes and type; vectors stay in 32 bit."""
    kinds = gguf.GGMLQuantizationType
    kind = kinds.F32 if tensor.ndim < 2 else kinds[precision.upper()]
    if kind == kinds.Q8_0 and tensor.shape[-1] % BLOCK:
        kind = kinds.F16
    return gguf.quants.quantize(tensor, kind), kind


def _add_config(writer: Any, config: dict[str, Any], precision: Precision, gguf: Any) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope.get("full_attention", rope)  # Gemma 3 rotates its sliding windows differently
    if rope.get("rope_type", "default") != "default":
        raise ModelError(
            f"Rotary scaling {rope['rope_type']} is not supported in GGUF here: export the merged "
            "folder instead."
        )
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config["vocab_size"])
    if config.get("sliding_window") and config["model_type"].startswith("gemma"):
        writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    names = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[names[precision]])


# Largest logit error relative to the largest logit, from rounding the weights.
TOLERANCES: dict[Precision, float] = {"f32": 1e-5, "f16": 5e-3, "bf16": 3e-2, "q8_0": 6e-2}
RETOKENISED = (
    "GGUF's rule for this kind of tokenizer splits some texts differently: answers may differ "
    "slightly."
)
TEXTS = (
    "Once upon a time there was a little fox.", "What is the capital of France?", "2 + 2 = 4",
    "She said: “Don't!” – twice.", "¿Qué hora es?",
)  # fmt: skip


class GgufRequest(Request):
    """Write a model, with a stack folded in, as GGUF."""

    kind: ClassVar[str] = "gguf"
    name: str = knob("", "What to call it.", title="Name", max_length=120)
    stack: Stack = knob((), "Adapters in stack order; repeat for several.", **STACK)
    model: ModelSource = knob(ModelSource(), "Folder, hub id, or starter.", **BASE)
    precision: Precision = knob(
        "f16", "f32, f16, bf16 or q8_0.", title="Precision", labels=PRECISION_LABELS
    )
    out: str = knob("", "The new folder; empty puts it into the home's exports.", max_length=4000)

    def checked(self, home: Home) -> Self:
        """Return the request as the queue stores it.

        Raises:
            StudioError: The model or an adapter is missing, or the folder exists.
        """
        from studio.models.sources import facts

        package()
        known = facts(self.model)
        stack = resolve_stack(home, self.stack)
        called = [name_of(Path(item.name)) for item in stack]
        made_up = cleaned(" ".join([known.path.name, *called, self.precision]))
        name = self.name.strip() or made_up
        out = Path(self.out).expanduser().absolute() if self.out.strip() else None
        out = out or home.path / "exports" / slug(f"{name} gguf")
        refuse_place(out)
        return self.model_copy(update={"stack": stack, "out": str(out), "name": name})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Fold, write, read back."""
        from studio.adapters.merge import merge
        from studio.models.sources import facts

        out = Path(self.out)
        with tempfile.TemporaryDirectory(dir=home.state) as place:
            folder = facts(self.model).path
            if self.stack:
                folder = Path(place) / "merged"
                stack = [(Path(item.name), item.weight) for item in self.stack]
                for event in merge(self.model, stack, folder, device="cpu"):
                    if not isinstance(event, Finished):
                        yield event
                _refuse_leftovers(folder)
            with publishing(out) as temporary:
                yield Loading(text="Writing the file")
                file = temporary / f"{slug(self.name)}.gguf"
                notes = write(folder, file, precision=self.precision, name=self.name)
                yield Loading(text="Reading it back")
                found, differ = verify_gguf(folder, file, self.precision)
                report = {
                    "precision": self.precision,
                    **asdict(found),
                    "texts_tokenised_differently": list(differ),
                    "notes": [*notes, RETOKENISED] if differ else notes,
                }
                write_report(temporary, GGUF_REPORT, report)
                (temporary / "Modelfile").write_text(modelfile(folder, file.name), "utf-8")
                write_card(temporary, self.card(found))
                found.require("GGUF file", "model it was made from")
        yield Finished(adapter=str(out), facts={"gguf": report})

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the folder and what reading it back measured."""
        return {"out": self.out, "check": read_report(Path(self.out), GGUF_REPORT)}

    def card(self, found: Comparison) -> str:
        """Return the model card: what it is made of, and how exact the file is."""
        rows = {
            "Precision": self.precision,
            "Checked": "read back with transformers and compared with the model it was made from: "
            + found.summary(),
            "Use": "`ollama create NAME -f Modelfile`, or `llama-server -m FILE.gguf`",
        }
        stack = [(name_of(Path(item.name)), item.weight) for item in self.stack]
        return stack_card(self.name, self.model.path, stack, rows, library="gguf")


def verify_gguf(
    folder: Path, file: Path, precision: Precision
) -> tuple[Comparison, tuple[str, ...]]:
    """Compare both in float32; return the figures and the texts that are tokenised differently.

    Raises:
        AdapterError: transformers cannot read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    old = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ids = [old(text)["input_ids"] for text in TEXTS]
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    wanted = logits_of(model, ids)
    del model
    ours = logits_of(_read_back(file), ids)[:, : wanted.shape[-1]]
    new = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    differ = tuple(
        text for text, row in zip(TEXTS, ids, strict=True) if new(text)["input_ids"] != row
    )
    return compare(ours, wanted, tolerance=TOLERANCES[precision]), differ


def _read_back(file: Path) -> Any:
    """Load the file with transformers.

    Raises:
        AdapterError: It cannot.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    except (RuntimeError, ValueError, AssertionError, KeyError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(".")
        raise AdapterError(
            f"transformers cannot read the written file back ({why}), so it was not kept: its GGUF "
            "reader assumes some sizes of this family. Export the merged folder instead."
        ) from error


def modelfile(folder: Path, name: str) -> str:
    """Return an Ollama Modelfile: the file, where an answer ends, and its context."""
    from transformers import AutoTokenizer

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    lines = [f"FROM ./{name}", f"PARAMETER num_ctx {min(config['max_position_embeddings'], 8192)}"]
    if tokenizer.eos_token:
        lines.append(f"PARAMETER stop {json.dumps(tokenizer.eos_token)}")
    lines.append("# Ollama reads the chat template from the file itself.")
    return "\n".join(lines) + "\n"


def _refuse_leftovers(folder: Path) -> None:
    if left := read_report(folder, CERTIFICATE).get("left"):
        names = ", ".join(name_of(Path(part)) for part in left)
        raise AdapterError(
            f"{names} cannot be folded into weights, so it cannot be in a GGUF file: leave it out."
        )
