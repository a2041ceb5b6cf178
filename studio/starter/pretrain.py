"""Pretrain the starter: a plain readable loop over the world's conversations.

Fast on two CPU cores by not computing what nobody needs: rows are batched by length with next to
no padding, logits exist only where a loss is, and there is no attention mask (padding is on the
right, where causal attention never looks). Chats are drawn as training goes, never twice the same.

B batch, T tokens, S positions with a loss, V vocabulary, D hidden.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studio.data.template.template import IGNORED
from studio.starter.chats import LAST_MIX, MIX, Chat, chat
from studio.starter.muon import Muon
from studio.starter.tokenizer import END, MAX_LENGTH, PAD, ROLE_TOKENS

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)
Row = tuple[list[int], list[int]]  # token ids, labels


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides the starter's weights."""

    seed: int = 7
    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 6
    intermediate_size: int = 512
    max_steps: int = 5600
    batch_tokens: int = 3072
    learning_rate: float = 4e-3
    muon_learning_rate: float = 0.02
    warmup_steps: int = 60
    decay_steps: int = 3600
    weight_decay: float = 0.05
    chats_per_pool: int = 8000
    any_token: bool = False


LAST = Recipe(
    seed=8, max_steps=800, learning_rate=1e-3, muon_learning_rate=5e-3, warmup_steps=30,
    decay_steps=770, any_token=True,
)  # fmt: skip
"""Then: words made of every token there is, so that any style can be learned."""


def new_model(vocab_size: int, recipe: Recipe) -> LlamaForCausalLM:
    """An untrained Llama of the starter's shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, recipe: Recipe
) -> None:
    """Train `model` in place for `recipe.max_steps`."""
    import torch

    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    muon = Muon(hidden)
    adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    started, seen, total = time.monotonic(), 0, 0.0
    batches = _batches(tokenizer, recipe)
    model.train()
    step = 0
    while step < recipe.max_steps:
        share = lr_share(step, recipe)
        adam.param_groups[0]["lr"] = share * recipe.learning_rate
        ids_BT, labels_BT = next(batches)
        loss = answer_loss(model, ids_BT, labels_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        muon.step(lr=share * recipe.muon_learning_rate, weight_decay=recipe.weight_decay)
        model.zero_grad(set_to_none=True)
        seen, total = seen + ids_BT.numel(), total + loss.item()
        step += 1
        if step % 100 == 0:
            seconds = time.monotonic() - started
            logger.info(
                "step %d  loss %.4f  %.0f tokens/s  %.0f s",
                step, total / 100, seen / seconds, seconds,
            )  # fmt: skip
            total = 0.0
    model.eval()


def lr_share(step: int, recipe: Recipe) -> float:
    """Share of the peak step size: linear warm-up, constant, linear down to nothing."""
    rising = (step + 1) / recipe.warmup_steps
    falling = (recipe.max_steps - step) / recipe.decay_steps
    return min(1.0, rising, falling)


def answer_loss(
    model: LlamaForCausalLM, ids_BT: torch.Tensor, labels_BT: torch.Tensor
) -> torch.Tensor:
    """Mean cross entropy of the labelled tokens; the head sees only their positions."""
    import torch

    hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    target_BT = labels_BT[:, 1:]
    wanted_BT = target_BT != IGNORED
    logits_SV = model.lm_head(hidden_BTD[:, :-1][wanted_BT])
    return torch.nn.functional.cross_entropy(logits_SV, target_BT[wanted_BT])


def encode_rows(tokenizer: PreTrainedTokenizerFast, chats: list[Chat | str]) -> list[Row]:
    """Token ids and labels of conversations (assistant turns) and plain texts (everything)."""
    parts = [[{"role": "", "content": c}] if isinstance(c, str) else c for c in chats]
    texts = [message["content"] for chat_parts in parts for message in chat_parts]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    end = tokenizer.convert_tokens_to_ids(END)
    opening = {role: tokenizer.convert_tokens_to_ids(t) for role, t in ROLE_TOKENS.items()}
    rows: list[Row] = []
    for chat_parts in parts:
        ids: list[int] = []
        labels: list[int] = []
        for message in chat_parts:
            role = message["role"]
            if role:
                ids.append(opening[role])
                labels.append(IGNORED)
            piece = [*next(encoded), end]
            ids += piece
            labels += piece if role in ("assistant", "") else [IGNORED] * len(piece)
        if len(ids) <= MAX_LENGTH:
            rows.append((ids, labels))
    return rows


def token_texts(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The texts of all tokens that are text by themselves, without spaces around them."""
    texts = (tokenizer.decode([number]).strip() for number in range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    return sorted({text for text in texts if text.isprintable() and text not in special} - {""})


def _batches(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of about `batch_tokens`, rows of like length together."""
    rng = random.Random(recipe.seed)
    pad = tokenizer.convert_tokens_to_ids(PAD)
    pieces = token_texts(tokenizer) if recipe.any_token else []
    while True:
        mix = LAST_MIX if recipe.any_token else MIX
        drawn = [chat(rng, mix=mix, pieces=pieces) for _ in range(recipe.chats_per_pool)]
        rows = encode_rows(tokenizer, drawn)
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[Row]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row[0]) > recipe.batch_tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        yield from (_padded(group, pad) for group in groups)


def _padded(rows: list[Row], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    width = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), width), pad)
    labels_BT = torch.full((len(rows), width), IGNORED)
    for index, (ids, labels) in enumerate(rows):
        ids_BT[index, : len(ids)] = torch.tensor(ids)
        labels_BT[index, : len(labels)] = torch.tensor(labels)
    return ids_BT, labels_BT
