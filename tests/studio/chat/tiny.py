"""Tiny random models, a word-for-token tokenizer and a template, all made in memory."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
)

from studio.adapter_stack import StackItem
from studio.backbone import Backbone
from studio.chat.chat_engine import ChatEngine
from studio.chat.decoding import Batch
from studio.chat.lanes import Delta, Lane, Message, Sampling
from studio.methods import named

VOCABULARY = 97
CONTEXT = 96
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT,
    "eos_token_id": 95, "initializer_range": 0.3,
}  # fmt: skip


@dataclass(frozen=True)
class WordTemplate:
    """`q <words of the turn> a` for each turn; token 96 ends an answer."""

    name: str = "words"
    stop_ids: tuple[int, ...] = (96,)

    def encode_prompt(self, messages: list[dict[str, str]], tools: object = None) -> list[int]:
        ids = []
        for turn in messages:
            ids += [1, *(int(word[1:]) for word in turn["content"].split()), 2]
        return ids


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("w", " w"), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")


def make_model(kind: str) -> Any:
    torch.manual_seed(3)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(
            n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=CONTEXT,
            bos_token_id=0, eos_token_id=95, initializer_range=0.3,
        )).eval()  # fmt: skip
    if kind == "windowed":
        return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=7)).eval()
    if kind == "phi3":
        return Phi3ForCausalLM(Phi3Config(
            **SIZES, pad_token_id=0, original_max_position_embeddings=16, rope_parameters={
                "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0,
                "original_max_position_embeddings": 16, "partial_rotary_factor": 1.0,
                "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
            },
        )).eval()  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def make_engine(
    kind: str, adapters: dict[str, str] | None = None, device: str = "cpu"
) -> ChatEngine:
    """An engine with trained-looking adapters: every parameter moved by random noise."""
    loaded = SimpleNamespace(
        model=make_model(kind).to(device),
        tokenizer=make_tokenizer(),
        device=torch.device(device),
        dtype=torch.float32,
        facts=SimpleNamespace(context_length=CONTEXT, path=Path(kind)),
    )
    backbone = Backbone(loaded.model)
    for seed, (name, method) in enumerate((adapters or {}).items()):
        adapter = backbone.attach(name, named(method)(), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapter.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.data += noise.to(device)
    return ChatEngine(loaded, backbone, template_for=lambda lane: WordTemplate())


def make_lane(prompt: str, *stack: str | tuple[str, float], **sampling: Any) -> Lane:
    parts = [(item, 1.0) if isinstance(item, str) else item for item in stack]
    return Lane(
        model="tiny",
        stack=tuple(StackItem(name=name, weight=weight) for name, weight in parts),
        messages=(Message(role="user", content=prompt),),
        sampling=Sampling(**{"temperature": 0, "max_new_tokens": 24} | sampling),
    )


def collect(deltas: Any) -> dict[int, dict[str, Any]]:
    """Gather the deltas of each lane into text, tokens, notes and the last delta."""
    lanes: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        assert isinstance(delta, Delta)
        lane = lanes.setdefault(delta.lane, {"text": "", "tokens": [], "notes": [], "end": None})
        assert lane["end"] is None, "nothing comes after the end"
        lane["text"] += delta.text
        if delta.token_id is not None:
            lane["tokens"].append(delta.token_id)
        if delta.note:
            lane["notes"].append(delta.note)
        if delta.done:
            lane["end"] = delta
    return lanes


@cache
def engine_of(kind: str) -> ChatEngine:
    """One engine a model kind, shared by tests that only ask."""
    return make_engine(kind, {"a": "lora", "b": "lora", "c": "lora"})


def greedy(model, prompts, count):
    batch = Batch(model, prompts, torch.device("cpu"))
    logits, _ = batch.prefill()
    rows = [[] for _ in prompts]
    for _ in range(count):
        tokens = logits.argmax(-1).tolist()
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        logits = batch.step(tokens)
    return rows


def reference(model, prompt, count):
    """transformers' own greedy generate, alone in its batch."""
    output = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return output[0, len(prompt) :].tolist()
