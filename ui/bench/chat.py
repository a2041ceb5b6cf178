"""How fast lanes answer, beside plain transformers `generate` and PEFT's own adapter switching.

One random 30 M-parameter Llama, one prompt, greedy, the same number of tokens for everybody; the
variants are interleaved, so that a busy machine slows all alike. The questions: what do four
LoRA lanes cost together against one, when comes the first token, what does a switch cost, what
does streaming through the host add, and how old is a token when it arrives.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from studio.chat.lanes import Lane, Message, Sampling
from studio.stack import StackItem
from ui.bench.case import SHAPES, make_model
from ui.bench.stream import measure_stream

if TYPE_CHECKING:
    from studio.chat.engine import ChatEngine

ADAPTERS = ("a", "b", "c", "d")
BARS = {
    "four LoRA lanes / one": 1.6,
    "first token of a LoRA lane / generate's": 1.3,
    "streamed by the host / in process, CPU": 1.05,
}


@dataclass(frozen=True, slots=True)
class NumberTemplate:
    """The prompt is token numbers; nothing ends an answer before its length."""

    name: str = "numbers"
    stop_ids: tuple[int, ...] = ()

    def encode_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the numbers."""
        return [int(word) for word in messages[-1]["content"].split()]


def measure(
    *, shape: str = "llama-30m", prompt_tokens: int = 64, new_tokens: int = 64, rounds: int = 5
) -> dict[str, Any]:
    """Run every variant `rounds` times and return seconds (median) and the ratios that matter."""
    import torch

    prompt = [5 + i * 7 % 1000 for i in range(prompt_tokens)]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        make_model(shape, base)
        engine = _engine(base, SHAPES[shape]["vocab_size"])
        adapters = _trained(engine, Path(folder))
        variants = _ours(engine, prompt, new_tokens)
        variants |= _peers(base, adapters, prompt, new_tokens)
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for round_number in range(rounds + 1):
            for name, run in variants.items():
                took = _timed(run)
                if round_number:  # the first warms caches up
                    seconds[name].append(took)
        stream = measure_stream(
            base, Path(folder), prompt_tokens=prompt_tokens, new_tokens=new_tokens, rounds=rounds
        )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "shape": shape,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "device": str(engine.loaded.device),
        "seconds": {name: round(value, 5) for name, value in medians.items()},
        "ratios": _ratios(seconds) | {"streamed by the host / in process, CPU": stream["ratio"]},
        "token_age_ms": {"median": stream["median_age_ms"], "95 %": stream["p95_age_ms"]},
        "bars": BARS,
    }


def table(result: dict[str, Any]) -> str:
    """Return the figures as text for a terminal."""
    heads = (
        f"{result['shape']}, {result['prompt_tokens']} + {result['new_tokens']} tokens, "
        f"{result['device']}, {result['threads']} threads, median of {result['rounds']}"
    )
    lines = [heads, ""]
    lines += [f"  {name:<44} {value:>9.4f} s" for name, value in result["seconds"].items()]
    lines.append("")
    for name, value in result["ratios"].items():
        bar = f"   (bar {BARS[name]:g})" if name in BARS else ""
        lines.append(f"  {name:<44} {value:>9.2f}{bar}")
    for name, value in result["token_age_ms"].items():
        lines.append(f"  {'age of a token on arrival, ' + name:<44} {value:>9.0f} ms   (bar 100)")
    return "\n".join(lines)


def _engine(base: Path, vocab_size: int) -> ChatEngine:
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from studio.backbone import Backbone
    from studio.chat.engine import ChatEngine
    from studio.models.loading import Loaded, default_device

    words = {f"{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    model = AutoModelForCausalLM.from_pretrained(base).to(default_device())
    facts: Any = SimpleNamespace(context_length=model.config.max_position_embeddings)
    loaded = Loaded(
        model=model,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer),
        device=model.device,
        dtype=model.dtype,
        facts=facts,
    )
    model.generation_config.eos_token_id = None
    return ChatEngine(loaded, Backbone(model), template_for=lambda lane: NumberTemplate())


def _trained(engine: ChatEngine, folder: Path) -> dict[str, Path]:
    """Adapters moved by noise, in the backbone and on disk for PEFT."""
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


def _ours(
    engine: ChatEngine, prompt: list[int], count: int
) -> dict[str, Callable[[], float | None]]:
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


def _peers(
    base: Path, adapters: dict[str, Path], prompt: list[int], count: int
) -> dict[str, Callable[[], float | None]]:
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
    variants: dict[str, Callable[[], float | None]] = {
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


def _timed(run: Callable[[], float | None]) -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    own = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return own if own is not None else time.perf_counter() - started


def _ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    # Within each round, so that a machine that gets busy does not change them.
    pairs = {
        "four LoRA lanes / one": (
            "studio: four LoRA lanes together", "studio: one LoRA lane"),
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
        name: round(
            statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True)), 3
        )
        for name, (one, other) in pairs.items()
        if one in seconds and other in seconds
    }
