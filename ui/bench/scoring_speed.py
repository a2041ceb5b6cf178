"""`studio bench scoring`: log-likelihoods of labels and of answers, beside plain transformers.

One random Llama in float32 on one set of prompts; variants take turns within each round. Measured:
what reading a prompt once for all its labels saves, base and three adapters in one pass against as
many rows of the base, and lm-eval through the resident base against its own `hf` backend.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from studio.evaluation.likelihood import Continuations, Stack, score
from ui.bench.bench_figures import Figure, figure, figures_text, interleaved, median_ratio
from ui.bench.chat_speed import ADAPTERS, attach_adapters, make_engine
from ui.bench.training_case import make_model

if TYPE_CHECKING:
    from studio.chat.chat_engine import ChatEngine

NUM_ADAPTERS, PEER_ROWS = 3, 32
PROMPT_TOKENS, LABEL_TOKENS = (20, 60), (3, 8)
STACKS: list[Stack] = [(), *(((name, 1.0),) for name in ADAPTERS[:NUM_ADAPTERS])]
SHARED, APART = "studio: labels after one prompt", "studio: labels, each with its prompt"
ALL, PLAIN = "studio: base and three LoRA in one pass", "transformers: base, as many rows"
OURS, THEIRS = "studio: lm-eval, base and LoRA", "lm-eval's hf backend: base, then PEFT"
SAVED = "labels: saved in time / saved in tokens"
BARS = {
    SAVED: 0.8, "base and three LoRA / transformers, as many rows": 1.1,
    "lm-eval: studio / hf backend": 1.0,
}  # fmt: skip


def bench_scoring(
    folder: Path, *, shape: str = "llama-30m", rows: int = 64, labels: int = 77, rounds: int = 3
) -> dict[str, Any]:
    """Run every variant `rounds` times; return seconds (median), ratios and the largest error.

    Args:
        folder: An empty folder.
        shape: Shape of the model.
        rows: Prompts.
        labels: Labels that each prompt is scored with.
        rounds: Rounds that are timed.
    """
    import torch

    base = folder / "base"
    make_model(shape, base)
    engine = make_engine(base)
    adapters = attach_adapters(engine, folder)
    rng = np.random.default_rng(0)

    def draw(sizes: tuple[int, int], count: int) -> list[list[int]]:
        return [rng.integers(1, 1000, size).tolist() for size in rng.integers(*sizes, count)]

    prompts, texts = draw(PROMPT_TOKENS, rows), draw(LABEL_TOKENS, labels)
    answers = [
        Continuations(one, [text]) for one, text in zip(prompts, draw((8, 40), rows), strict=True)
    ]
    variants = _ours(engine, prompts, texts, answers)
    variants |= _peers(base, answers)
    if find_spec("lm_eval") and find_spec("peft"):
        variants |= _lm_eval(engine, base, adapters, answers, folder)
    taken, found = interleaved(variants, rounds, "scoring")
    whole = sum(len(prompt) + len(text) for prompt in prompts for text in texts)
    once = sum(map(len, prompts)) + rows * sum(map(len, texts))
    return {
        "shape": shape, "rows": rows, "labels": labels, "rounds": rounds,
        "threads": torch.get_num_threads(), "device": str(engine.loaded.device),
        "tokens": {SHARED: once, APART: whole},
        "seconds": {name: round(statistics.median(own), 4) for name, own in taken.items()},
        "ratios": _ratios(taken, whole / once), "bars": BARS,
        "largest_difference": {
            f"{one} / {other}": _difference(found[one], found[other])
            for one, other in ((SHARED, APART), (ALL, PLAIN), (OURS, THEIRS)) if other in found
        },
    }  # fmt: skip


def scoring_text(result: dict[str, Any]) -> str:
    """Return the figures as text."""
    figures: list[Figure] = [figure(name, one, "s") for name, one in result["seconds"].items()]
    figures += [figure(name, one, "×", BARS.get(name, 0)) for name, one in result["ratios"].items()]
    apart = "\n".join(f"{name}: {one:.1e}" for name, one in result["largest_difference"].items())
    return (
        f"{result['shape']}, {result['rows']} prompts, {result['labels']} labels, "
        f"{result['device']}, {result['threads']} threads, median of {result['rounds']}\n\n"
        f"{figures_text(figures)}\n\nlargest difference of a log-likelihood\n{apart}"
    )


def _ours(
    engine: ChatEngine, prompts: Sequence[list[int]], texts: list[list[int]],
    answers: Sequence[Continuations],
) -> dict[str, Callable[[], Any]]:  # fmt: skip
    def sums(asked: Sequence[Continuations], stacks: Sequence[Stack]) -> list[list[float]]:
        scored = sorted(score(engine.loaded, engine.backbone, asked, stacks))
        return [[total for total, _ in own] for _, lanes in scored for own in lanes]

    together = [Continuations(prompt, texts) for prompt in prompts]
    apart = [Continuations(prompt, [text]) for prompt in prompts for text in texts]
    return {
        SHARED: lambda: sums(together, [()]),
        APART: lambda: np.reshape(sums(apart, [()]), (len(prompts), len(texts))).tolist(),
        ALL: lambda: np.reshape(sums(answers, STACKS), (-1, len(STACKS)))[:, :1].tolist(),
    }


def _peers(base: Path, answers: Sequence[Continuations]) -> dict[str, Callable[[], Any]]:
    """Score the answers with the plain base, once for each stack, in padded batches by length."""
    import torch
    from transformers import AutoModelForCausalLM

    from studio.models.loading import default_device

    device = default_device()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(device).eval()
    order = sorted(
        range(len(answers)), key=lambda at: -len(answers[at][0]) - len(answers[at][1][0])
    )

    def plain() -> list[list[float]]:
        found = [[0.0] for _ in answers]
        every = [at for at in order for _ in STACKS]
        for start in range(0, len(every), PEER_ROWS):
            part = every[start : start + PEER_ROWS]
            rows = [[*answers[at][0], *answers[at][1][0]] for at in part]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
            mask = torch.tensor(
                [[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device
            )
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
            for at, row, own in zip(part, rows, logits, strict=True):
                first = len(answers[at][0])
                wanted = torch.tensor(row[first:], device=device)[:, None]
                found[at] = [float(own[first - 1 : len(row) - 1].gather(-1, wanted).sum())]
        return found

    return {PLAIN: plain}


def _lm_eval(
    engine: ChatEngine, base: Path, adapters: dict[str, Path], answers: Sequence[Continuations],
    folder: Path,
) -> dict[str, Callable[[], Any]]:  # fmt: skip
    """Score the answers as requests of lm-eval, for the base and one adapter."""
    from itertools import count

    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from studio.evaluation.lm_eval_model import Answers, LaneModel

    asked = [
        Instance(
            request_type="loglikelihood", doc={}, idx=place, arguments=tuple(
                (" " * part + " ".join(map(str, ids)))
                for part, ids in enumerate((one.context, one.continuations[0]))
            ),
        )
        for place, one in enumerate(answers)
    ]  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(base, eos_token="0")  # which no text begins with
    first, second = (
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval() for _ in range(2)
    )
    tuned = PeftModel.from_pretrained(second, adapters[ADAPTERS[0]]).eval()
    peers = [
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=PEER_ROWS)
        for model in (first, tuned)
    ]
    numbers = count()

    def ours() -> list[list[float]]:
        kept = Answers(folder / f"answers-{next(numbers)}.jsonl")
        model = LaneModel(engine.loaded, engine.backbone, STACKS[:2], kept)
        lanes = []
        for model.lane in range(2):
            lanes.append([total for total, _ in model.loglikelihood(asked)])
        return lanes

    def theirs() -> list[list[float]]:
        return [
            [total for total, _ in one.loglikelihood(asked, disable_tqdm=True)] for one in peers
        ]

    return {OURS: ours, THEIRS: theirs}


def _ratios(taken: dict[str, list[float]], tokens: float) -> dict[str, float]:
    saved = median_ratio(taken[APART], taken[SHARED])
    ratios = {
        "labels: time apart / together": saved, "labels: tokens apart / together": tokens,
        SAVED: saved / tokens,
        "base and three LoRA / transformers, as many rows": median_ratio(taken[ALL], taken[PLAIN]),
    }  # fmt: skip
    if OURS in taken:
        ratios["lm-eval: studio / hf backend"] = median_ratio(taken[OURS], taken[THEIRS])
    return {name: round(one, 3) for name, one in ratios.items()}


def _difference(ones: Any, others: Any) -> float:
    return float(np.abs(np.asarray(ones) - np.asarray(others)).max())
