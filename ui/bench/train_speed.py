"""`studio bench train`, `siblings`, `methods`: speed, memory and losses against peers of each.

Train: other trainers on the same rows. Siblings: runs of one learning-rate sweep, which one process
trains together on one base, against each alone. Methods: every one against full fine-tuning, also
in the time per token of its live stack against the bare base. All have processes of their own that
take turns round by round, so that a machine that slows down slows all.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from studio import hardware
from studio.errors import InputError, RunError, StudioError
from studio.methods import methods as registered
from studio.methods import named
from ui.bench import child_processes
from ui.bench.bench_figures import (
    differences,
    median_ratio,
    progress,
    steps_of,
    summary,
    table_text,
)
from ui.bench.child_processes import WORKER, Peer, run, take_turns
from ui.bench.training_case import (
    SIBLINGS,
    BenchCase,
    load_bare,
    own_model,
    prepare_case,
    sibling_rates,
)

LOSSES = ("loss first / last", "{first_loss:.4f} / {last_loss:.4f}")
DIFFERENCES = [("Δ loss", "{loss_difference:.1e}"), ("Δ grad norm", "{grad_norm_difference:.1e}")]
COLUMNS = [
    ("peer", "{name}"), ("tokens/s", "{tokens_per_second:,.0f}"),
    ("spread", "{slowest:,.0f} to {fastest:,.0f}"), ("ours ×", "{ours_is_faster:.2f}"),
    ("memory MB", "{memory:,.0f}"), ("ours ÷", "{ours_memory_share:.2f}"), LOSSES, *DIFFERENCES,
]  # fmt: skip
RUN_COLUMNS = [("run", "{run}"), LOSSES, ("grad norm", "{grad_norm:.4g}"), *DIFFERENCES]
SHARE_OF_PEAK = (
    "\nours reaches {share_of_peak:.0%} of this machine's peak matmul throughput ({giga:,.0f} "
    "GFLOP/s; {mega:,.0f} MFLOP per token counted)"
)
NEEDS: dict[str, tuple[str, ...]] = {
    "ours": (), "hf": ("peft",), "hf-float32": ("peft",), "trl": ("peft", "trl"),
    "trl-best": ("peft", "trl"),
}  # fmt: skip


def bench_train(folder: Path, case: BenchCase, vs: str, busy: int) -> dict[str, Any]:
    """Run `studio bench train`: the case here and on every peer, in turns; return figures.

    `vs` are names of peers; `busy` is the number of processes that compute beside them.

    Raises:
        InputError: A peer's library is not installed.
        RunError: A peer's process ended.
    """
    peers = ["ours", *[name for name in vs.split(",") if name and name != "ours"]]
    _check_installed(peers)
    if unable := [name for name in peers if case.loss != "sft" and name.startswith("hf")]:
        raise InputError(f"The peer {unable[0]} has no {case.loss}: compare with --vs trl.")
    progress("preparing model, adapter and rows")
    run(*WORKER, "prepare", str(folder), json.dumps(asdict(case)))
    progress("the largest product's speed")
    peaks = [_peak(folder)]  # before and after, while nothing trains
    with ExitStack() as stack, child_processes.busy(busy):
        running = {name: stack.enter_context(Peer(name, folder)) for name in peers}
        take_turns(running, case.rounds)
    peaks.append(_peak(folder))
    ours = running[peers[0]].rounds
    summaries = [summarise(name, peer.rounds, ours) for name, peer in running.items()]
    flops = max(one["flops_per_token"] for one in ours)
    return {
        "case": asdict(case),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "busy": busy,
        "processor": hardware.cpu_name(),
        "features": sorted(hardware.cpu_features()),
        "matmul_peak": max(peaks),
        "flops_per_token": flops,
        "share_of_peak": flops * summaries[0]["tokens_per_second"] / max(peaks),
        "peers": summaries,
    }


def _peak(folder: Path) -> float:
    return float(json.loads(run(*WORKER, "peak", str(folder)))["flops"])


def summarise(
    name: str, rounds: list[dict[str, Any]], ours: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return a peer's median training speed, its spread, and how it agrees with the first peer."""
    times = [[one["seconds"] / one["tokens"] for one in own[1:]] for own in (rounds, ours)]
    return {
        "name": name,
        **summary(rounds),
        "ours_is_faster": median_ratio(*times),
        "ours_memory_share": ours[-1]["peak_bytes"] / max(rounds[-1]["peak_bytes"], 1),
        **differences(steps_of(ours), steps_of(rounds)),
    }


def train_text(result: dict[str, Any]) -> str:
    """Return the figures of `studio bench train` side by side."""
    machine = "\n{processor} ({features}), {threads} threads, {busy} busy processes beside".format(
        **{**result, "features": ", ".join(result["features"]), "threads": hardware.threads()}
    )
    return (
        table_text(COLUMNS, result["peers"])
        + machine
        + SHARE_OF_PEAK.format(
            **result, giga=result["matmul_peak"] / 1e9, mega=result["flops_per_token"] / 1e6
        )
    )


def _check_installed(peers: Sequence[str]) -> None:
    for name in peers:
        if name not in NEEDS:
            raise InputError(f'Unknown peer "{name}". Choose from {", ".join(NEEDS)}.')
        for library in NEEDS[name]:
            if find_spec(library) is None:
                raise InputError(
                    f"The peer {name} needs {library}: `pip install 'adapter-studio[bench]'`."
                )


def bench_siblings(folder: Path, case: BenchCase, count: int) -> dict[str, Any]:
    """Run `studio bench siblings`: train a sweep of `count` runs together and apart, in turns.

    Raises:
        RunError: A process ended.
    """
    with ExitStack() as stack:
        case = own_model(case, folder)
        cases = {"together": ("siblings", replace(case, siblings=count))}
        for number, rate in enumerate(sibling_rates(case, count)):
            cases[f"run {number} alone"] = ("ours", replace(case, learning_rate=rate))
        running = {}
        for name, (peer, own) in cases.items():
            prepare_case(own, folder / name, adapter=False)
            running[name] = stack.enter_context(Peer(peer, folder / name))
        take_turns(running, case.rounds)
        steps = json.loads((folder / "together" / SIBLINGS).read_text(encoding="utf-8"))
    together, *apart = (peer.rounds for peer in running.values())
    return {"case": asdict(case), **_sibling_figures(steps, together, apart)}


def _sibling_figures(
    steps: list[list[dict[str, float]]],
    together: list[dict[str, Any]],
    apart: list[list[dict[str, Any]]],
) -> dict[str, Any]:
    turns = list(zip(*(rounds[1:] for rounds in apart), strict=True))
    one = [statistics.mean(taken["seconds"] for taken in turn) for turn in turns]
    ours = [taken["seconds"] for taken in together[1:]]
    share = [own / alone for own, alone in zip(ours, one, strict=True)]
    last, first = together[-1], apart[0][-1]
    whole, whole_of_one = (r["peak_bytes"] + r["base_bytes"] for r in (last, first))
    return {
        "siblings": len(apart),
        "seconds": statistics.median(ours),
        "seconds_of_one": statistics.median(one),
        "times_one": statistics.median(share),
        "spread": [min(share), max(share)],
        "peak_bytes": whole,
        "peak_bytes_of_one": whole_of_one,
        "memory_times_one": whole / max(whole_of_one, 1),
        "above_base_times_one": last["peak_bytes"] / max(first["peak_bytes"], 1),
        "runs": [
            {
                "first_loss": own[0]["loss"],
                "last_loss": own[-1]["loss"],
                "grad_norm": own[-1]["grad_norm"],
                **differences(own, steps_of(rounds)),
            }
            for own, rounds in zip(steps, apart, strict=True)
        ],
    }


def siblings_text(result: dict[str, Any]) -> str:
    """Return the figures of `studio bench siblings` as text."""
    low, high = result["spread"]
    return (
        f"{result['siblings']} siblings together take {result['times_one']:.2f} times the time of "
        f"one ({low:.2f} to {high:.2f}): {result['seconds']:.3g} s per round, one alone "
        f"{result['seconds_of_one']:.3g} s\n"
        f"memory {result['memory_times_one']:.2f} times one's: {result['peak_bytes'] / 1e6:,.0f} "
        f"MB, one alone {result['peak_bytes_of_one'] / 1e6:,.0f} MB (above the loaded base "
        f"{result['above_base_times_one']:.2f} times)\n"
        + table_text(RUN_COLUMNS, [{"run": n, **run} for n, run in enumerate(result["runs"])])
        + "\nΔ: to the same run alone"
    )


YARDSTICK = "full"
METHOD_COLUMNS = [
    ("method", "{method}"), ("trainable", "{trainable_parameters:,}"),
    ("s/step", "{seconds_per_step:.3f}"), ("÷ full", "{step_ratio:.2f}"),
    ("memory MB", "{memory:,.0f}"), ("÷ full", "{memory_ratio:.2f}"),
    ("tokens ×", "{generation_ratio:.2f}"),
    ("loss first / last", "{first_loss:.4f} / {last_loss:.4f}"), ("grad norm", "{grad_norm:.3g}"),
]  # fmt: skip


def bench_methods(folder: Path, case: BenchCase, methods: str = "") -> dict[str, Any]:
    """Run `studio bench methods`: all in turns, one row for each, refused ones included.

    `methods` are comma-separated, and empty takes all. Full fine-tuning always runs as well.

    Raises:
        RunError: Full fine-tuning itself failed.
    """
    chosen = [word for word in methods.split(",") if word] or registered()
    names = list(dict.fromkeys([YARDSTICK, *chosen]))
    for name in names:
        named(name)
    measured = _measured(own_model(case, folder), names, folder)
    full = measured[YARDSTICK]
    if "error" in full:
        raise RunError(f"Full fine-tuning, the yardstick, could not run: {full['error']}")
    rows = []
    for name, found in measured.items():
        row = {"method": name, **found}
        if "error" not in found:
            row["step_ratio"] = median_ratio(found["seconds"], full["seconds"])
            row["memory_ratio"] = found["peak_bytes"] / max(full["peak_bytes"], 1)
        rows.append({key: value for key, value in row.items() if key != "seconds"})
    return {"case": {"batch": case.batch, "dtype": case.dtype, "steps": case.steps}, "rows": rows}


def _measured(case: BenchCase, names: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    running: dict[str, Peer] = {}
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        for name in names:
            progress(f"{name}, generation")
            own = replace(case, method=name)
            try:
                found[name] = serving(own)
            except StudioError as error:
                found[name] = {"error": error.text}
                continue
            prepare_case(own, folder / name, adapter=False)
            running[name] = stack.enter_context(Peer("ours", folder / name))
        take_turns(running, case.rounds, failures)
    found |= {name: {"error": text} for name, text in failures.items()}
    return {
        name: values | (_trained(running[name]) if name in running else {})
        for name, values in found.items()
    }


def _trained(peer: Peer) -> dict[str, Any]:
    return {**summary(peer.rounds), "seconds": [one["seconds"] for one in peer.rounds[1:]]}


def serving(case: BenchCase) -> dict[str, Any]:
    """Return a trained method's parameters, and its time per generated token against the base."""
    from transformers.utils.logging import disable_progress_bar

    from studio.backbone import Backbone
    from studio.evaluation.bakeoff_measurements import decoder, ratio

    disable_progress_bar()  # one bar for each method would hide the table
    backbone = Backbone(load_bare(Path(case.model), case.dtype))
    if case.method == YARDSTICK:
        whole = sum(values.numel() for values in backbone.model.parameters())
        return {"trainable_parameters": whole, "generation_ratio": 1.0}
    adapter = backbone.attach("bench", case.spec().method, seed=0)
    count = sum(values.numel() for params in adapter.params.values() for values in params.values())
    return {
        "trainable_parameters": count,
        "generation_ratio": ratio(decoder(backbone), decoder(backbone, (("bench", 1.0),))),
    }


def methods_text(result: dict[str, Any]) -> str:
    """Return the rows of `studio bench methods` side by side."""
    return table_text(METHOD_COLUMNS, result["rows"])
