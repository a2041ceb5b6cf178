"""All methods side by side: what each trains, costs and slows down, against full fine-tuning.

Every method gets the same model, rows, steps and seed in a process of its own, and the processes
take turns round by round, so that a machine that slows down slows everybody. Generation is measured
in turns too: the method's live stack against the bare base, token by token.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from studio.errors import RunError, StudioError
from studio.methods import methods, named
from ui.bench.case import Case, load_bare, make_model, prepare_case
from ui.bench.turns import Peer

YARDSTICK = "full"


def bench_methods(case: Case, chosen: Sequence[str]) -> dict[str, Any]:
    """Train every method in turns and return one row for each, refused ones included.

    Args:
        case: Model shape or folder, rows, batch, steps and rounds; its method is replaced.
        chosen: Methods; empty takes all. Full fine-tuning always runs, as the yardstick.

    Raises:
        RunError: Full fine-tuning itself failed.
    """
    names = list(dict.fromkeys([YARDSTICK, *(chosen or methods())]))
    for name in names:
        named(name)
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as temporary:
        folder = Path(temporary)
        if not Path(case.model).is_dir():
            make_model(case.model, folder / "model", dtype=case.dtype)
            case = replace(case, model=str(folder / "model"))
        measured = dict(_measured(case, names, folder))
    full = measured[YARDSTICK]
    if "error" in full:
        raise RunError(f"Full fine-tuning, the yardstick, could not run: {full['error']}")
    rows = []
    for name, found in measured.items():
        row = {"method": name, **found}
        if "error" not in found:
            pairs = zip(found["pace"], full["pace"], strict=True)
            row["step_ratio"] = statistics.median(own / other for own, other in pairs)
            row["memory_ratio"] = found["peak_bytes"] / max(full["peak_bytes"], 1)
        rows.append({key: value for key, value in row.items() if key != "pace"})
    return {"case": {"batch": case.batch, "dtype": case.dtype, "steps": case.steps}, "rows": rows}


def _measured(
    case: Case, names: Sequence[str], folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    found: dict[str, dict[str, Any]] = {}
    running: dict[str, Peer] = {}
    with ExitStack() as stack:
        for name in names:
            own, place = replace(case, method=name), folder / name
            try:
                found[name] = serving(own)
            except StudioError as error:
                found[name] = {"error": error.text}
                continue
            place.mkdir()
            prepare_case(own, place, adapter=False)
            running[name] = Peer("ours", place)
            stack.callback(running[name].close)
        for _ in range(case.rounds + 1):
            for name, peer in list(running.items()):
                try:
                    peer.take_turn()
                except RunError as error:
                    found[name] = {"error": error.text}
                    del running[name]
    for name, values in found.items():
        yield name, values | (_trained(running[name].rounds) if name in running else {})


def _trained(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The first round warms up: its losses count, its seconds do not."""
    pace = [taken["seconds"] / len(taken["losses"]) for taken in rounds[1:]]
    return {
        "pace": pace,
        "seconds_per_step": statistics.median(pace),
        "peak_bytes": rounds[-1]["peak_bytes"],
        "first_loss": rounds[0]["losses"][0],
        "last_loss": rounds[-1]["losses"][-1],
        "grad_norm": rounds[-1]["grad_norms"][-1],
    }


def serving(case: Case) -> dict[str, Any]:
    """Return trainable parameters, and time per generated token live against the bare base."""
    from transformers.utils.logging import disable_progress_bar

    from studio.backbone import Backbone
    from studio.evaluation.bakeoff import decoder, ratio

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


def table(result: dict[str, Any]) -> str:
    """Return the rows side by side as text."""
    lines = [("method", "trainable", "s/step", "÷ full", "memory MB", "÷ full", "tokens ×",
              "loss first / last", "grad norm")]  # fmt: skip
    for row in result["rows"]:
        if "error" in row:
            lines.append((row["method"], row["error"], "", "", "", "", "", "", ""))
            continue
        lines.append((
            row["method"], f"{row['trainable_parameters']:,}", f"{row['seconds_per_step']:.3f}",
            f"{row['step_ratio']:.2f}", f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{row['memory_ratio']:.2f}", f"{row['generation_ratio']:.2f}",
            f"{row['first_loss']:.4f} / {row['last_loss']:.4f}", f"{row['grad_norm']:.3g}",
        ))  # fmt: skip
    whole = [line for line in lines if line[2]]
    widths = [max(len(line[place]) for line in whole) for place in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
