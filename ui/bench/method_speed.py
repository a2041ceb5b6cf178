"""`studio bench methods`: time, memory and losses of every method against full fine-tuning.

Every method gets the same model, rows, steps and seed in a process of its own, and the processes
take turns round by round, so that a machine that slows down slows all. Generation is measured in
turns too: the method's live stack against the bare base, token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from studio.errors import RunError, StudioError
from studio.methods import methods as registered
from studio.methods import named
from ui.bench.bench_figures import median_ratio, progress, summary, table_text
from ui.bench.child_processes import Peer, take_turns
from ui.bench.training_case import BenchCase, load_bare, own_model, prepare_case

YARDSTICK = "full"
COLUMNS = [
    ("method", "{method}"), ("trainable", "{trainable_parameters:,}"),
    ("s/step", "{seconds_per_step:.3f}"), ("÷ full", "{step_ratio:.2f}"),
    ("memory MB", "{memory:,.0f}"), ("÷ full", "{memory_ratio:.2f}"),
    ("tokens ×", "{generation_ratio:.2f}"),
    ("loss first / last", "{first_loss:.4f} / {last_loss:.4f}"), ("grad norm", "{grad_norm:.3g}"),
]  # fmt: skip


def bench_methods(folder: Path, case: BenchCase, methods: str = "") -> dict[str, Any]:
    """Train every method in turns and return one row for each, refused ones included.

    Args:
        folder: An empty folder.
        case: Model shape or folder, rows, batch, steps and rounds; its method is replaced.
        methods: Names, comma-separated; empty takes all. Full fine-tuning always runs as well.

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
    """Return trainable parameters, and time per generated token live against the bare base."""
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
    """Return the rows side by side."""
    return table_text(COLUMNS, result["rows"])
