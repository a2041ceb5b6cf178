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
    pipeline,
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
