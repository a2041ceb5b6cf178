"""`studio bench chat` and `scoring`: lanes and log-likelihoods beside transformers and PEFT.

One random Llama in float32; variants are interleaved, so that a busy machine slows all alike.

Chat: one prompt, greedy, the same number of tokens for all. Measured: four LoRA lanes against one,
the first token, a switch of adapters, streaming through the chat host, the age of a token on
arrival; `generate` and PEFT's adapter switching beside them.

Scoring: log-likelihoods of labels and answers to one set of prompts. Measured: what reading a
prompt once for all its labels saves, base and three adapters in one pass against as many rows of
the base, and lm-eval through the resident base against its own `hf` backend.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from studio.adapter_stack import StackItem
from studio.backbone.composition import Stack
from studio.chat.lanes import Lane, Message, Sampling
from studio.evaluation.likelihood import Continuations, score
from studio.home import open_home
from studio.spec import ModelSource
from ui.bench.bench_figures import (
    Figure,
    figure,
    figures_text,
    interleaved,
    median_ratio,
    progress,
    round_text,
)  # fmt: skip
from ui.bench.child_processes import processor_seconds
from ui.bench.training_case import make_model

if TYPE_CHECKING:
    from studio.chat.chat_engine import ChatEngine


ADAPTERS = ("a", "b", "c", "d")
CHAT_TOKENS = 64  # of the prompt
BARS = {
    "four LoRA lanes / one": 1.6,
    "four LoRA lanes / transformers, four rows": 1.15,
    "first token of a LoRA lane / generate's": 1.3,
    "streamed by the host / in process, CPU": 1.05,
}
Variants = dict[str, Callable[[], float | None]]


@dataclass(frozen=True, slots=True)
class NumberTemplate:
    """A template of token numbers without a stop token, so that every answer has full length."""

    name: str = "numbers"
    stop_ids: tuple[int, ...] = ()

    def encode_prompt(self, messages: list[dict[str, Any]], tools: object) -> list[int]:
        """Return the numbers."""
        return [int(word) for word in messages[-1]["content"].split()]


def bench_chat(folder: Path, *, shape: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Run `studio bench chat`: return the median seconds of every variant and their ratios."""
    import torch

    prompt = [5 + i * 7 % 1000 for i in range(CHAT_TOKENS)]
    base = folder / "base"
    make_model(shape, base)
    engine = make_engine(base)
    variants = _ours(engine, prompt, tokens)
    variants |= _peers(base, attach_adapters(engine, folder), prompt, tokens)
    taken, _ = interleaved(variants, rounds, "lanes and peers")
    stream = _stream(base, folder, " ".join("7" * CHAT_TOKENS), tokens, rounds)
    return {
        "shape": shape,
        "prompt_tokens": CHAT_TOKENS,
        "new_tokens": tokens,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "device": str(engine.loaded.device),
        "seconds": {name: round(statistics.median(own), 5) for name, own in taken.items()},
        "ratios": _ratios(taken) | {"streamed by the host / in process, CPU": stream["ratio"]},
        "token_age_ms": {"median": stream["median_age_ms"], "95 %": stream["p95_age_ms"]},
        "bars": BARS,
    }


def chat_text(result: dict[str, Any]) -> str:
    """Return the figures of `studio bench chat` as text."""
    ages = [
        figure(f"age of a token on arrival, {name}", one, "ms", 100)
        for name, one in result["token_age_ms"].items()
    ]
    return _text(f"{result['prompt_tokens']} + {result['new_tokens']} tokens", result, ages)


def _text(asked: str, result: dict[str, Any], more: Sequence[Figure] = ()) -> str:
    figures = [figure(name, one, "s") for name, one in result["seconds"].items()]
    ratios, bars = result["ratios"].items(), result["bars"]
    figures += [figure(name, one, "×", bars.get(name, 0)) for name, one in ratios]
    return (
        f"{result['shape']}, {asked}, {result['device']}, {result['threads']} threads, "
        f"median of {result['rounds']}\n\n{figures_text([*figures, *more])}"
    )


def make_engine(base: Path) -> ChatEngine:
    """Return the chat engine to time, of a model whose tokens are numbers, in float32."""
    from studio.backbone import Backbone
    from studio.chat.chat_engine import ChatEngine
    from studio.models.loading import load

    loaded = load(ModelSource(path=str(base), dtype="float32"))
    numbers: Any = NumberTemplate()  # what answering asks of a template
    return ChatEngine(loaded, Backbone(loaded.model), template_for=lambda _: numbers)


def attach_adapters(engine: ChatEngine, folder: Path) -> dict[str, Path]:
    """Attach adapters moved by noise for the timing of chat; return their folders."""
    import torch

    from studio.methods import named

    folders = {}
    for seed, name in enumerate(ADAPTERS):
        adapter = engine.backbone.attach(name, named("lora")(), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapter.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.01
            parameter.data += noise.to(parameter.device)
        folders[name] = folder / name
        folders[name].mkdir()
        engine.backbone.save(name, folders[name])
    return folders


def _ours(engine: ChatEngine, prompt: list[int], count: int) -> Variants:
    text = " ".join(map(str, prompt))

    def lane(*stack: str) -> Lane:
        return Lane(
            stack=tuple(StackItem(name=name) for name in stack),
            messages=(Message(role="user", content=text),),
            sampling=Sampling(temperature=0, max_new_tokens=count),
        )

    def answer(lanes: Iterable[Lane]) -> None:
        for _ in engine.stream(list(lanes)):
            pass

    def first() -> float:
        stream = engine.stream([lane("a")])
        started = time.perf_counter()
        next(stream)
        return time.perf_counter() - started

    return {
        "studio: base": lambda: answer([lane()]),
        "studio: one LoRA lane": lambda: answer([lane("a")]),
        "studio: four LoRA lanes together": lambda: answer(lane(n) for n in ADAPTERS),
        "studio: four LoRA lanes and the base": lambda: answer(
            [lane(), *(lane(name) for name in ADAPTERS)]
        ),
        "studio: first token of one LoRA lane": first,
        "studio: switch the stack": lambda: engine.backbone.use([("b", 0.5)]),
    }


def _peers(base: Path, adapters: dict[str, Path], prompt: list[int], count: int) -> Variants:
    import torch
    from transformers import AutoModelForCausalLM

    from studio.models.loading import default_device

    def generate(model: Any, rows: int, tokens: int, **options: Any) -> None:
        ids = torch.tensor([prompt] * rows, device=model.device)
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
            min_new_tokens=tokens, do_sample=False, pad_token_id=0, **options,
        )  # fmt: skip

    plain = AutoModelForCausalLM.from_pretrained(base).to(default_device())
    variants: Variants = {
        "transformers: base": lambda: generate(plain, 1, count),
        "transformers: first token of the base": lambda: generate(plain, 1, 1),
        "transformers: base, four rows": lambda: generate(plain, 4, count),
    }
    if find_spec("peft") is None:
        return variants
    from peft import PeftModel

    # A base of its own: PEFT replaces the modules of the model it is given.
    under = AutoModelForCausalLM.from_pretrained(base).to(default_device())
    tuned = PeftModel.from_pretrained(under, adapters["a"], adapter_name="a")
    for name in ADAPTERS[1:]:
        tuned.load_adapter(adapters[name], adapter_name=name)
    tuned.eval()

    def one_after_another() -> None:
        for name in ADAPTERS:
            tuned.set_adapter(name)
            generate(tuned, 1, count)

    def first(name: str, tokens: int) -> None:
        tuned.set_adapter(name)
        generate(tuned, 1, tokens)

    return variants | {
        "peft: one LoRA": lambda: first("a", count),
        "peft: first token of one LoRA": lambda: first("a", 1),
        "peft: four LoRA, switched one after another": one_after_another,
        "peft: four LoRA in one mixed batch": lambda: generate(
            tuned, 4, count, adapter_names=list(ADAPTERS)
        ),
        "peft: switch the adapter": lambda: tuned.set_adapter("b"),
    }


def _ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    # Within each round, so that a machine that gets busy does not change them.
    pairs = {
        "four LoRA lanes / one": (
            "studio: four LoRA lanes together", "studio: one LoRA lane"),
        "four LoRA lanes / transformers, four rows": (
            "studio: four LoRA lanes together", "transformers: base, four rows"),
        "base / transformers generate": ("studio: base", "transformers: base"),
        "first token of a LoRA lane / generate's": (
            "studio: first token of one LoRA lane", "transformers: first token of the base"),
        "four LoRA lanes / peft switched": (
            "studio: four LoRA lanes together", "peft: four LoRA, switched one after another"),
        "five lanes / one": (
            "studio: four LoRA lanes and the base", "studio: one LoRA lane"),
        "four LoRA lanes / peft mixed": (
            "studio: four LoRA lanes together", "peft: four LoRA in one mixed batch"),
    }  # fmt: skip
    return {
        name: round(median_ratio(seconds[one], seconds[other]), 3)
        for name, (one, other) in pairs.items()
        if one in seconds and other in seconds
    }


def _stream(
    base: Path, folder: Path, prompt: str, new_tokens: int, rounds: int
) -> dict[str, float]:
    """Ask one lane of the models in this process and of a real host, in turns.

    The ratio is of the processor seconds of the two processes, so that others on the machine do not
    change it. The host stamps each piece of text with the creation time of its oldest token; the
    age is taken where a page would take it, when the line has been read and parsed.
    """
    import psutil

    from jobs import chat_client
    from studio.chat.resident_models import ResidentModels

    home = open_home(folder / "home")
    lane = Lane(
        model=str(base),
        messages=(Message(role="user", content=prompt),),
        sampling=Sampling(temperature=0, max_new_tokens=new_tokens),
    )
    request = {"lanes": [lane.model_dump(mode="json")]}
    here = ResidentModels(home)
    alone, streamed, ages = [], [], []
    host = psutil.Process(chat_client.ensure_host(home).identity.pid)
    try:
        for number in range(rounds + 1):
            progress(round_text("streaming", number, rounds))
            started = time.process_time()
            for _ in here.stream([lane]):
                pass
            took = time.process_time() - started
            before = processor_seconds(host)
            for event in chat_client.generate(home, request):
                if event["type"] == "delta" and number:
                    ages.append(1000 * (time.time() - event["at"]))
            if number:
                alone.append(took)
                streamed.append(processor_seconds(host) - before)
    finally:
        chat_client.quit_host(home)
    ages.sort()
    return {
        "ratio": median_ratio(streamed, alone),
        "median_age_ms": statistics.median(ages),
        "p95_age_ms": ages[int(0.95 * (len(ages) - 1))],
    }


NUM_ADAPTERS, PEER_ROWS = 3, 32
PROMPT_TOKENS, LABEL_TOKENS = (20, 60), (3, 8)
STACKS: list[Stack] = [(), *(((name, 1.0),) for name in ADAPTERS[:NUM_ADAPTERS])]
SHARED, APART = "studio: labels after one prompt", "studio: labels, each with its prompt"
ALL, PLAIN = "studio: base and three LoRA in one pass", "transformers: base, as many rows"
OURS, THEIRS = "studio: lm-eval, base and LoRA", "lm-eval's hf backend: base, then PEFT"
SAVED = "labels: saved in time / saved in tokens"
SCORING_BARS = {
    SAVED: 0.8, "base and three LoRA / transformers, as many rows": 1.1,
    "lm-eval: studio / hf backend": 1.0,
}  # fmt: skip


def bench_scoring(
    folder: Path, *, shape: str, rows: int, labels: int, rounds: int
) -> dict[str, Any]:
    """Run `studio bench scoring`: return median seconds, ratios and the largest error.

    There are as many prompts as `rows`, and each is scored with `labels` labels.
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
    variants = _scoring_ours(engine, prompts, texts, answers)
    variants |= _scoring_peers(base, answers)
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
        "ratios": _scoring_ratios(taken, whole / once), "bars": SCORING_BARS,
        "largest_difference": {
            f"{one} / {other}": _difference(found[one], found[other])
            for one, other in ((SHARED, APART), (ALL, PLAIN), (OURS, THEIRS)) if other in found
        },
    }  # fmt: skip


def scoring_text(result: dict[str, Any]) -> str:
    """Return the figures of `studio bench scoring` as text."""
    apart = "\n".join(f"{name}: {one:.1e}" for name, one in result["largest_difference"].items())
    figures = _text(f"{result['rows']} prompts, {result['labels']} labels", result)
    return f"{figures}\n\nlargest difference of a log-likelihood\n{apart}"


def _scoring_ours(
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


def _scoring_peers(base: Path, answers: Sequence[Continuations]) -> dict[str, Callable[[], Any]]:
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


def _scoring_ratios(taken: dict[str, list[float]], tokens: float) -> dict[str, float]:
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
