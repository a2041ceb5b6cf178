"""`studio bench`: parse, run, print. The figures come from `turns.py` and `startup.py`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from studio.bench.case import SHAPES, SYNTHETIC, Case
from studio.errors import InputError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"studio bench: {message}.")


def bench(arguments: Sequence[str]) -> int:
    """Run `studio bench startup|data|chat|methods|siblings|train`; returns the exit code."""
    options = _parser().parse_args(list(arguments))
    if options.what == "startup":
        return _startup(options)
    if options.what == "data":
        return _data(options)
    if options.what == "chat":
        return _chat(options)
    if options.what == "methods":
        return _methods(options)
    if options.what == "siblings":
        return _siblings(options)
    return _train(options)


def _siblings(options: argparse.Namespace) -> int:
    from studio.bench.siblings import bench_siblings, table

    result = bench_siblings(_case(options, options.data, options.method), options.count)
    print(json.dumps(result) if options.json else table(result))
    return 0


def _methods(options: argparse.Namespace) -> int:
    from studio.bench.methods import bench_methods, table

    chosen = [word for word in options.methods.split(",") if word]
    result = bench_methods(_case(options, SYNTHETIC, "lora"), chosen)
    print(json.dumps(result) if options.json else table(result))
    return 0


def _data(options: argparse.Namespace) -> int:
    from studio.bench.data import bench_data

    figures = bench_data(
        file=options.file,
        model=options.model,
        template=options.chat_template,
        megabytes=options.megabytes,
    )
    if options.json:
        print(json.dumps(figures))
        return 0
    for figure in figures:
        bar = f"  (bar {figure['bar']:g})" if figure["bar"] else ""
        print(f"{figure['name']:<36} {figure['value']:>8.2f} {figure['unit']}{bar}")
    return 0


def _chat(options: argparse.Namespace) -> int:
    from studio.bench.chat import measure, table

    result = measure(shape=options.shape, new_tokens=options.tokens, rounds=options.rounds)
    print(json.dumps(result) if options.json else table(result))
    return 0


def _startup(options: argparse.Namespace) -> int:
    from studio.bench.startup import startup

    figures = startup(options.rounds)
    if options.json:
        print(json.dumps(figures))
        return 0
    for figure in figures:
        bar = f"  (bar {figure['bar']:g})" if figure["bar"] else ""
        print(
            f"{figure['name']:<36} {figure['median']:>8.2f} {figure['unit']:<3}"
            f" best {figure['best']:.2f}{bar}"
        )
    return 0


def _train(options: argparse.Namespace) -> int:
    from studio.bench.turns import compare, table

    peers = ["ours", *[name for name in options.vs.split(",") if name and name != "ours"]]
    result = compare(_case(options, options.data, options.method), peers)
    print(json.dumps(result) if options.json else table(result))
    return 0


def _case(options: argparse.Namespace, data: str, method: str) -> Case:
    """What `_add_case` asked for."""
    return Case(
        model=options.model, data=data, method=method, dtype=options.dtype,
        batch=options.batch, steps_per_round=options.steps, rounds=options.rounds,
        learning_rate=options.learning_rate,
    )  # fmt: skip


def _add_case(parser: argparse.ArgumentParser, *, model: str, rounds: int = 3) -> None:
    shapes = ", ".join(SHAPES)
    parser.add_argument("--model", default=model, help=f"a folder, or a shape: {shapes}")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
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
    train.add_argument("--vs", default="hf", help="peers: hf, trl, trl-best")
    _add_case(train, model="llama-30m")
    for one in (kin, train):
        one.add_argument("--data", default=SYNTHETIC, help=f"a data file, or {SYNTHETIC}")
        one.add_argument("--method", default="lora")
    return parser
