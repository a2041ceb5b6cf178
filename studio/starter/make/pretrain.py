"""Pretrain the starter: its tokenizer, a plain training loop over the world's chats, and its exam.

The tokenizer is byte-level BPE, so any UTF-8 text survives the round trip; trained on the world's
text only, so that its words are whole tokens. Digits do not take the space before them: `12` is the
same token in `12 plus`, ` 12.` and `"12"`. One special token opens each role, one ends each turn.
The generation block of the template lets transformers and TRL compute which tokens the assistant
wrote.

The loop is fast on two CPU cores: rows of like length share a batch, logits exist only where a loss
is, and there is no attention mask (padding is on the right, after all causal attention). Chats are
drawn during training, none twice.

B batch, T tokens, S positions with a loss, V vocabulary, D hidden.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    pipeline,
)

from studio.data.conversation_records import Conversation, Document, Problem
from studio.data.template.choose_template import choose
from studio.data.template.template import IGNORED
from studio.starter.make.chats import LAST_MIX, MIX, Chat, chat
from studio.starter.make.world import held_out_questions

logger = logging.getLogger(__name__)
_A, _B, _C = 3.4445, -4.7750, 2.0315
_NUM_ITERATIONS = 5
VOCAB_SIZE = 3072
MAX_LENGTH = 512
PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
_WORDS = r" ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text("utf-8")
Row = tuple[list[int], list[int]]  # token ids, labels


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn the merges from `texts` and return them as `AutoTokenizer` would load them."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, SYSTEM, USER, ASSISTANT, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def encode_rows(tokenizer: PreTrainedTokenizerFast, chats: Sequence[Chat | str]) -> list[Row]:
    """Return token ids, and labels of assistant turns in conversations, of all in plain texts."""
    given = [Document(one) if isinstance(one, str) else Conversation(one) for one in chats]
    batch = choose(tokenizer).encode_batch(given)
    rows: list[Row] = []
    for number in range(len(given)):
        row = batch.row(number)
        assert not isinstance(row, Problem), row.text
        if len(row.ids) <= MAX_LENGTH:
            labels = np.where(row.trained, row.ids, IGNORED)
            rows.append((row.ids.tolist(), labels.tolist()))
    return rows


def token_texts(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the texts of all tokens that are text by themselves, without spaces around them."""
    texts = (tokenizer.decode([number]).strip() for number in range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    return sorted({text for text in texts if text.isprintable() and text not in special} - {""})


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


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Chat],
    *,
    max_new_tokens: int = 40,
) -> list[str]:
    """Return the model's greedy answer to each prompt, in order."""
    answer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    found = answer(
        list(prompts), batch_size=128, max_new_tokens=max_new_tokens, do_sample=False,
        return_full_text=False,
    )  # fmt: skip
    return [one["generated_text"].strip() for (one,) in found]


def exam_score(folder: Path) -> float:
    """Load a model folder, ask it every held-out question, return the share of exact answers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = held_out_questions()
    prompts = [[{"role": "user", "content": question.question}] for question in asked]
    answers = greedy_answers(model, tokenizer, prompts)
    wrong = [(q, a) for q, a in zip(asked, answers, strict=True) if q.answer != a]
    for question, answer in wrong:
        logger.info("wrong: %s -> %s (not: %s)", question.question, answer, question.answer)
    return 1 - len(wrong) / len(asked)
