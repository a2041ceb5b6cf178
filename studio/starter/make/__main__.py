"""Make the starter from a seed: `python -m studio.starter.make --out DIR`.

Writes `DIR/data` (the demo datasets) and `DIR/model` (tokenizer, then weights), then prints how
many held-out questions the saved model answers exactly. Two CPU cores, under an hour.

Models of other widths, which `studio bench rates` calibrates on, come from the same script, as with
`--hidden-size 256 --layers 2 --max-steps 300 --last-steps 120` (11 minutes on one core), and with
`--biases` models that BitFit can train.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from studio.starter.make.chats import chat
from studio.starter.make.demos import write_demos
from studio.starter.make.pretrain import (
    LAST,
    Recipe,
    exam_score,
    new_model,
    pretrain,
    train_tokenizer,
)
from studio.starter.make.world import capitalised, questions

logger = logging.getLogger(__name__)
NUM_TOKENIZER_CHATS = 30_000
NUM_WORD_REPEATS = 200


def make(out: Path, *, recipe: Recipe, last: Recipe = LAST) -> float:
    """Make everything under `out`; return the share of exact held-out answers."""
    write_demos(out / "data", seed=recipe.seed)
    tokenizer = make_tokenizer(recipe.seed)
    model = new_model(len(tokenizer), recipe)
    logger.info("%d parameters, %d tokens", model.num_parameters(), len(tokenizer))
    pretrain(model, tokenizer, recipe=recipe)
    model.bfloat16().float()  # as stored, so that the last part can also start from a folder
    pretrain(model, tokenizer, recipe=last)
    save(model, tokenizer, out / "model")
    return exam_score(out / "model")


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on a sample of the world."""
    rng = random.Random(seed)
    drawn = [chat(rng) for _ in range(NUM_TOKENIZER_CHATS)]
    texts = [
        text
        for one in drawn
        for text in ([one] if isinstance(one, str) else [message["content"] for message in one])
    ]
    # Whole tokens for the words that answers are about: after a space, after a quote, at the start.
    words = sorted({question.content for question in questions()})
    forms = [f'{word}"{word}"{capitalised(word)}' for word in words]
    return train_tokenizer([*texts, *(" " + " ".join(forms) for _ in range(NUM_WORD_REPEATS))])


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bf16 with its tokenizer, as any published model folder looks."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.config.eos_token_id, model.config.pad_token_id = end, pad
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and make the starter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--max-steps", type=int, default=Recipe().max_steps)
    parser.add_argument("--last-steps", type=int, default=LAST.max_steps)
    parser.add_argument("--hidden-size", type=int, default=Recipe().hidden_size)
    parser.add_argument("--layers", type=int, default=Recipe().num_layers)
    parser.add_argument("--biases", action="store_true", help="biases in every linear layer")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    torch.set_num_threads(2)
    started = time.monotonic()
    recipe = Recipe(
        seed=args.seed, max_steps=args.max_steps, hidden_size=args.hidden_size,
        decay_steps=args.max_steps * Recipe().decay_steps // Recipe().max_steps,
        num_layers=args.layers, intermediate_size=8 * args.hidden_size // 3,
        num_heads=args.hidden_size // 32, biases=args.biases,
    )  # fmt: skip
    falling = args.last_steps - LAST.warmup_steps
    last = replace(LAST, max_steps=args.last_steps, decay_steps=falling)
    score = 100 * make(args.out, recipe=recipe, last=last)
    minutes = (time.monotonic() - started) / 60
    logger.info("%.1f %% of the held-out questions exact, made in %.0f minutes", score, minutes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
