"""`studio bench`: parse, measure, print. The figures come from the files beside this one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from studio.errors import InputError
from studio.fields import parse_assignment
from ui.bench.bench_figures import figures_text
from ui.bench.training_case import SHAPES, SYNTHETIC, BenchCase

# The module of each bench: `bench_NAME` measures; `NAME_text` prints what is not a list of figures.
MODULES = {
    "startup": "app_speed", "data": "data_speed", "queue": "app_speed", "idle": "app_speed",
    "chat": "inference_speed", "methods": "train_speed", "siblings": "train_speed",
    "train": "train_speed", "rates": "rates_and_forgetting", "gpu-check": "gpu_check",
    "forgetting": "rates_and_forgetting", "scoring": "inference_speed",
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"studio bench: {message}.")


def bench(arguments: Sequence[str]) -> int:
    """Run one `studio bench` command and return its exit code."""
    options = vars(_parser().parse_args(list(arguments)))
    what, as_json = options.pop("what"), options.pop("json")
    module = import_module(f"ui.bench.{MODULES[what]}")
    with TemporaryDirectory(prefix="studio-bench-", ignore_cleanup_errors=True) as folder:
        name = what.replace("-", "_")
        result = getattr(module, f"bench_{name}")(Path(folder), **_with_case(options))
    print(json.dumps(result) if as_json else getattr(module, f"{name}_text", figures_text)(result))
    return int(isinstance(result, dict) and bool(result.get("failed")))


def _with_case(options: dict[str, Any]) -> dict[str, Any]:
    """Gather the options of a training bench into one `BenchCase`."""
    if "learning_rate" not in options:
        return options
    case = BenchCase(
        **{name: options.pop(name) for name in ("model", "dtype", "batch", "rounds")},
        steps_per_round=options.pop("steps"),
        learning_rate=options.pop("learning_rate"),
        data=options.pop("data", SYNTHETIC),
        method=options.pop("method", "lora"),
        loss=options.pop("loss", "sft"),
        settings=dict(map(parse_assignment, options.pop("set"))),
    )
    case.spec()  # refuses an unknown setting before anything is measured
    return {"case": case, **options}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="studio bench", description="Measure this studio and its peers.")
    kinds = parser.add_subparsers(dest="what", required=True)

    def command(name: str, help: str, **options: Any) -> argparse.ArgumentParser:
        made = kinds.add_parser(name, help=help)
        for option, default in options.items():
            flag = f"--{option.replace('_', '-')}"
            made.add_argument(flag, type=type(default), default=default, help=_HELP.get(option))
        made.add_argument("--json", action="store_true")
        return made

    def training(name: str, help: str, *, model: str, rounds: int, **options: Any) -> None:
        made = command(
            name, help, model=model, batch=8, steps=3, rounds=rounds, learning_rate=1e-3, **options
        )
        made.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
        made.add_argument(
            "--set", action="append", default=[], metavar="FIELD=VALUE",
            help="a setting of this studio alone, such as train.attn_implementation=sdpa",
        )  # fmt: skip

    command("startup", "page and first loss", rounds=3)
    command(
        "data", "check, tokenise and import",
        file="", model="starter", chat_template="auto", megabytes=32,
    )  # fmt: skip
    command("queue", "claims, queries and curves of a full queue")
    command("idle", "wake-ups and processor share while nothing runs", seconds=20.0)
    answers = [
        command("chat", "lanes together against generate and PEFT's switching",
                tokens=64, rounds=5),
        command("scoring", "log-likelihoods of labels and answers against plain transformers",
                rows=64, labels=77, rounds=3),
    ]  # fmt: skip
    for made in answers:
        made.add_argument("--shape", default="llama-30m", choices=sorted(SHAPES))
    check = command("gpu-check", "what only a real GPU can say", seconds=300.0, out="")
    check.add_argument("--tiny", action="store_true", help="small shapes, on the CPU")
    command("rates", "the best learning rate of every method, against auto", models="starter",
            data="starter:pirate,starter:json", methods="", steps=60, seeds=1, out="")  # fmt: skip
    command("forgetting", "what every method learns and forgets, each at its best rate",
            model="starter", data="starter:pirate,starter:json,starter:terse,starter:butler",
            methods="", steps=60, seeds=3, out="", docs="")  # fmt: skip
    training("methods", "every method against full fine-tuning",
             model="llama-tiny", rounds=3, methods="")  # fmt: skip
    training("siblings", "a sweep on one base against each run alone",
             model="llama-30m", rounds=5, count=4, data=SYNTHETIC, method="lora")  # fmt: skip
    training("train", "real tokens per second against peers", model="llama-30m", rounds=3,
             vs="hf", busy=0, data=SYNTHETIC, method="lora", loss="sft")  # fmt: skip
    return parser


_HELP = {
    "model": f"a model folder, or a shape: {', '.join(SHAPES)}",
    "steps": "steps per round",
    "rounds": "rounds that are timed",
    "file": "a jsonl file; generated rows when absent",
    "megabytes": "size of the generated rows",
    "seconds": "length of each measurement",
    "tokens": "tokens of every answer",
    "rows": "prompts that are scored",
    "labels": "labels that each prompt is scored with",
    "methods": "comma-separated; all when empty",
    "models": "model folders, comma-separated",
    "seeds": "seeds of each case",
    "out": "a JSON file that keeps the rows, and is continued",
    "docs": "a Markdown page whose tables are written",
    "count": "runs that train together",
    "busy": "processes that keep a core busy each while the peers train",
    "loss": "sft, or dpo on synthetic pairs (batch counts pairs)",
    "vs": "peers: hf, hf-float32, trl, trl-best",
    "data": f"a data file, or {SYNTHETIC}",
}
