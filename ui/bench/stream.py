"""What it costs to stream an answer through the chat host, and how old a token is on arrival.

The same lane is asked in turns: of the models in this process, and of a real host in its own, over
its loopback port. The ratio is of the processor seconds of the two processes, so that others on
the machine do not change it. The host stamps each piece of text with the moment its oldest token
existed; the age is taken where a page would take it, when the line has been read and parsed.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from studio.chat.lanes import Lane, Message, Sampling
from studio.home import open_home


def measure_stream(
    base: Path, folder: Path, *, prompt_tokens: int, new_tokens: int, rounds: int
) -> dict[str, float]:
    """Return processor seconds of both ways, their ratio, and the ages of tokens in milliseconds.

    Args:
        base: A model folder without a tokenizer; it gets one of numbers.
        folder: Where a private home may be.
        prompt_tokens: Words of the prompt.
        new_tokens: Tokens of every answer.
        rounds: Counted rounds; one more warms up.
    """
    import psutil

    from jobs import chat_client
    from studio.chat.residents import ResidentModels

    _give_tokenizer(base)
    home = open_home(folder / "home")
    lane = Lane(
        model=str(base),
        messages=(Message(role="user", content=" ".join("7" * prompt_tokens)),),
        sampling=Sampling(temperature=0, max_new_tokens=new_tokens),
    )
    here = ResidentModels(home)
    alone, streamed, ages = [], [], []
    reached = chat_client.ensure_host(home)
    host = psutil.Process(reached.identity.pid)
    try:
        for number in range(rounds + 1):
            started = time.process_time()
            for _ in here.stream([lane]):
                pass
            took = time.process_time() - started
            started = _cpu_seconds(host)
            request = {"lanes": [lane.model_dump(mode="json")]}
            for event in chat_client.generate(home, request):
                if event["type"] == "delta" and number:
                    ages.append(1000 * (time.time() - event["at"]))
            if number:
                alone.append(took)
                streamed.append(_cpu_seconds(host) - started)
    finally:
        chat_client.quit_host(home)
    ages.sort()
    return {
        "alone": statistics.median(alone),
        "streamed": statistics.median(streamed),
        "ratio": statistics.median(a / b for a, b in zip(streamed, alone, strict=True)),
        "median_age_ms": statistics.median(ages),
        "p95_age_ms": ages[int(0.95 * (len(ages) - 1))],
    }


def _cpu_seconds(process: Any) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


def _give_tokenizer(base: Path) -> None:
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    size: int = json.loads((base / "config.json").read_text())["vocab_size"]
    tokenizer: Any = Tokenizer(models.WordLevel({f"{i}": i for i in range(size)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="0").save_pretrained(base)
    for name in ("config.json", "generation_config.json"):  # nothing ends an answer early
        values = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps(values | {"eos_token_id": None, "bos_token_id": None}))
