"""Measure a model: greedy answers to prompts, and the score on the held-out questions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from studio.starter.make.chats import Chat
from studio.starter.make.world import held_out_questions

logger = logging.getLogger(__name__)


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Chat],
    *,
    max_new_tokens: int = 40,
    batch_size: int = 128,
) -> list[str]:
    """Return the model's greedy answer to each prompt, in order."""
    order = sorted(range(len(prompts)), key=lambda i: sum(len(m["content"]) for m in prompts[i]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer.apply_chat_template(
            [prompts[i] for i in chosen],
            add_generation_prompt=True,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            out = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        new_tokens = out[:, batch["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text.strip()
    return answers


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
