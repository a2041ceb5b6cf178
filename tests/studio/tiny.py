"""Tiny random models made in memory, one of each shape that people use."""

import contextlib
import copy
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from studio.adapters import merge, verify_logits
from studio.spec import RunSpec

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}  # fmt: skip

CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "gpt2": GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    ),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "gemma": GemmaConfig(**{**SIZES, "head_dim": 8, "num_key_value_heads": 1}),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, query_pre_attn_scalar=8, sliding_window=8),
    "mistral": MistralConfig(**SIZES, sliding_window=8),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
}  # fmt: skip


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """Return a random float32 model of this shape whose weights are large enough to matter."""
    torch.manual_seed(seed)
    how = "eager" if name == "gemma2" else None  # older transformers drop its soft-capping else
    model = AutoModelForCausalLM.from_config(
        copy.deepcopy(CONFIGS[name]), dtype=torch.float32, attn_implementation=how
    )
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.add_(noise * (0.15 if parameter.dim() > 1 else 0.1))
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single characters with 64 entries: pad 0, eos 1, unknown 2."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,?!:+=\n"
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    for letter in letters[:61]:
        vocabulary[letter] = len(vocabulary)
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny_folder(path: Path, name: str = "llama", seed: int = 0) -> Path:
    """Write a tiny model with its tokenizer as a person's model folder."""
    tiny_model(name, seed).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@contextlib.contextmanager
def started_here(module: ModuleType, main: Callable[..., None]) -> Iterator[None]:
    """Run the program that a module starts in this process: a fresh one imports torch again."""

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            main(*command[command.index("-m") + 2 :])
        return SimpleNamespace(stdout=out.getvalue(), stderr="", returncode=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "subprocess", SimpleNamespace(run=run))
        yield


def verifying_here() -> contextlib.AbstractContextManager[None]:
    """Verify merged models in this process."""
    return started_here(merge, verify_logits.main)


ROWS = [{"question": f"say {word}", "answer": word * 2} for word in "abcdefghijklmnopqrstuvwx"]


def tiny_spec(folder: Path, **values: Any) -> RunSpec:
    """Write a tiny Llama and a file of rows into a folder; return a run on them.

    Args:
        folder: Gets `model` and `rows.jsonl`.
        values: Fields of the spec; `__` stands for the dot in their names.
    """
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    own = {"model.path": str(tiny_folder(folder / "model")), "data.path": str(rows),
           "data.chat_template": "plain", "train.measure_forgetting": False}  # fmt: skip
    return RunSpec().with_values(own | {k.replace("__", "."): v for k, v in values.items()})
