"""Pretrain the starter: a plain training loop over the world's conversations.

Fast on two CPU cores: rows of like length share a batch, logits exist only where a loss is, and
there is no attention mask (padding is on the right, after all causal attention). Chats are drawn
during training, none twice.

B batch, T tokens, S positions with a loss, V vocabulary, D hidden.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from studio.data.template.template import IGNORED
from studio.starter.make.chats import LAST_MIX, MIX, chat
from studio.starter.make.tokenizer import MAX_LENGTH, PAD, Row, encode_rows, token_texts

logger = logging.getLogger(__name__)
_A, _B, _C = 3.4445, -4.7750, 2.0315
_NUM_ITERATIONS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All settings that determine the starter's weights."""

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
    biases: bool = False


LAST = Recipe(
    seed=8, max_steps=800, learning_rate=1e-3, muon_learning_rate=5e-3, warmup_steps=30,
    decay_steps=770, any_token=True,
)  # fmt: skip
"""The last part: words made of all tokens, so that any style can be learned."""


def new_model(vocab_size: int, recipe: Recipe) -> LlamaForCausalLM:
    """Return an untrained Llama of the starter's shape."""
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
        attention_bias=recipe.biases,
        mlp_bias=recipe.biases,
    )
    return LlamaForCausalLM(config)


def pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, recipe: Recipe
) -> None:
    """Train `model` in place for `recipe.max_steps`."""
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
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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
    """Return the share of the peak learning rate: linear warm-up, constant, linear decay to 0."""
    rising = (step + 1) / recipe.warmup_steps
    falling = (recipe.max_steps - step) / recipe.decay_steps
    return min(1.0, rising, falling)


def answer_loss(model: LlamaForCausalLM, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Return the mean cross entropy of the labelled tokens; the head sees only their positions."""
    hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    target_BT = labels_BT[:, 1:]
    wanted_BT = target_BT != IGNORED
    logits_SV = model.lm_head(hidden_BTD[:, :-1][wanted_BT])
    return nn.functional.cross_entropy(logits_SV, target_BT[wanted_BT])


def _batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of about `batch_tokens` without end, rows of like length together."""
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


def _padded(rows: list[Row], pad: int) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), width), pad)
    labels_BT = torch.full((len(rows), width), IGNORED)
    for index, (ids, labels) in enumerate(rows):
        ids_BT[index, : len(ids)] = torch.tensor(ids)
        labels_BT[index, : len(labels)] = torch.tensor(labels)
    return ids_BT, labels_BT


class Muon:
    """Momentum whose matrix updates are orthogonalised, in float32 and batched by shape.

    For the hidden matrices only; it learns rare facts sooner than AdamW. `torch.optim.Muon` works
    in bfloat16: other results, and slow on processors that lack it.

    Source: Muon as scaled in arXiv 2502.16982; the polynomial is Keller Jordan's.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, momentum: float = 0.95) -> None:
        self.momentum = momentum
        self._by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in parameters:
            rows, columns = parameter.shape
            self._by_shape.setdefault((rows, columns), []).append(parameter)
        self._velocity = {
            shape: torch.zeros(len(members), *shape) for shape, members in self._by_shape.items()
        }

    def step(self, *, lr: float, weight_decay: float) -> None:
        """Move every matrix by `lr` along its orthogonalised Nesterov momentum."""
        with torch.no_grad():
            for (rows, columns), members in self._by_shape.items():
                gradient = torch.stack([p.grad for p in members if p.grad is not None])
                velocity = self._velocity[rows, columns]
                velocity.lerp_(gradient, 1 - self.momentum)
                update = orthogonal(gradient.lerp_(velocity, self.momentum))
                scale = lr * max(1.0, rows / columns) ** 0.5
                for parameter, direction in zip(members, update, strict=True):
                    parameter.mul_(1 - lr * weight_decay).sub_(direction, alpha=scale)


def orthogonal(matrices_NRC: Tensor) -> Tensor:
    """Return the nearest (nearly) orthogonal matrix to each: all singular values about one."""
    wide = matrices_NRC.shape[1] <= matrices_NRC.shape[2]
    x = matrices_NRC if wide else matrices_NRC.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x if wide else x.mT
