"""`studio bench`: parse, run, print. The figures come from the files beside this one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from studio.errors import InputError
from studio.fields import parse_assignment
from ui.bench.case import SHAPES, SYNTHETIC, Case

Told = tuple[Any, str]  # the result for --json, and as a person reads it


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"studio bench: {message}.")


def bench(arguments: Sequence[str]) -> int:
    """Run one `studio bench` command and return its exit code."""
    options = _parser().parse_args(list(arguments))
    result, text = _RUN[options.what](options)
    print(json.dumps(result) if options.json else text)
    return 0


def shown(figures: Sequence[Mapping[str, Any]]) -> str:
    """Return figures (name, value, unit, bar, and their best of several where known) as lines."""
    lines = []
    for figure in figures:
        best = f"  best {figure['best']:.2f}" if "best" in figure else ""
        bar = f"  (bar {figure['bar']:g})" if figure["bar"] else ""
        lines.append(f"{figure['name']:<44} {figure['value']:>9.2f} {figure['unit']:<5}{best}{bar}")
    return "\n".join(line.rstrip() for line in lines)


def _startup(options: argparse.Namespace) -> Told:
    from ui.bench.startup import startup

    figures = startup(options.rounds)
    return figures, shown(figures)


def _data(options: argparse.Namespace) -> Told:
    from ui.bench.data import bench_data

    figures = bench_data(
        file=options.file,
        model=options.model,
        template=options.chat_template,
        megabytes=options.megabytes,
    )
    return figures, shown(figures)


def _queue(options: argparse.Namespace) -> Told:
    from ui.bench.queue import bench_queue

    figures = bench_queue()
    return figures, shown(figures)


def _idle(options: argparse.Namespace) -> Told:
    from ui.bench.idle import bench_idle

    figures = bench_idle(options.seconds)
    return figures, shown(figures)


def _chat(options: argparse.Namespace) -> Told:
    from ui.bench.chat import measure, table

    result = measure(shape=options.shape, new_tokens=options.tokens, rounds=options.rounds)
    return result, table(result)


def _methods(options: argparse.Namespace) -> Told:
    from ui.bench.methods import bench_methods, table

    chosen = [word for word in options.methods.split(",") if word]
    result = bench_methods(_case(options, SYNTHETIC, "lora"), chosen)
    return result, table(result)


def _siblings(options: argparse.Namespace) -> Told:
    from ui.bench.siblings import bench_siblings, table

    result = bench_siblings(_case(options, options.data, options.method), options.count)
    return result, table(result)


def _train(options: argparse.Namespace) -> Told:
    from ui.bench.turns import compare, table

    peers = ["ours", *[name for name in options.vs.split(",") if name and name != "ours"]]
    result = compare(_case(options, options.data, options.method), peers)
    return result, table(result)


_RUN: dict[str, Callable[[argparse.Namespace], Told]] = {
    "startup": _startup, "data": _data, "chat": _chat, "methods": _methods,
    "siblings": _siblings, "train": _train, "queue": _queue,
    "idle": _idle,
}  # fmt: skip


def _case(options: argparse.Namespace, data: str, method: str) -> Case:
    """What `_add_case` asked for."""
    case = Case(
        model=options.model, data=data, method=method, dtype=options.dtype,
        batch=options.batch, steps_per_round=options.steps, rounds=options.rounds,
        learning_rate=options.learning_rate,
        settings=dict(map(parse_assignment, options.set)),
    )  # fmt: skip
    case.spec()  # a setting that is none is refused before anything is measured
    return case


def _add_case(parser: argparse.ArgumentParser, *, model: str, rounds: int = 3) -> None:
    shapes = ", ".join(SHAPES)
    parser.add_argument("--model", default=model, help=f"a folder, or a shape: {shapes}")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE",
        help="a setting of the studio alone, such as train.attn_implementation=sdpa",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="studio bench", description="Measure this studio and its peers.")
    kinds = parser.add_subparsers(dest="what", required=True)
    start = kinds.add_parser("startup", help="page and first loss")
    start.add_argument("--rounds", type=int, default=3)
    start.add_argument("--json", action="store_true")
    data = kinds.add_parser("data", help="check, tokenise and import")
    data.add_argument("--file", default="", help="a jsonl file; made rows when absent")
    data.add_argument("--model", default="starter", help="whose tokenizer")
    data.add_argument("--chat-template", default="auto")
    data.add_argument("--megabytes", type=int, default=32)
    data.add_argument("--json", action="store_true")
    queue = kinds.add_parser("queue", help="claims, queries and curves of a full queue")
    queue.add_argument("--json", action="store_true")
    idle = kinds.add_parser("idle", help="wake-ups and processor share while nothing runs")
    idle.add_argument("--seconds", type=float, default=20.0, help="length of each measurement")
    idle.add_argument("--json", action="store_true")
    chat = kinds.add_parser("chat", help="lanes together against generate and PEFT's switching")
    chat.add_argument("--shape", default="llama-30m", choices=sorted(SHAPES))
    chat.add_argument("--tokens", type=int, default=64)
    chat.add_argument("--rounds", type=int, default=5)
    chat.add_argument("--json", action="store_true")
    every = kinds.add_parser("methods", help="every method against full fine-tuning")
    every.add_argument("--methods", default="", help="comma-separated; all when empty")
    _add_case(every, model="llama-tiny")
    kin = kinds.add_parser("siblings", help="a sweep on one base against each run alone")
    kin.add_argument("--count", type=int, default=4, help="runs that train together")
    _add_case(kin, model="llama-30m", rounds=5)
    train = kinds.add_parser("train", help="real tokens per second against peers")
    train.add_argument("--vs", default="hf", help="peers: hf, hf-float32, trl, trl-best")
    _add_case(train, model="llama-30m")
    for one in (kin, train):
        one.add_argument("--data", default=SYNTHETIC, help=f"a data file, or {SYNTHETIC}")
        one.add_argument("--method", default="lora")
    return parser
