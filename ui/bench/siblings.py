"""Siblings together against each of them alone: time, memory, and the same losses and gradients.

A learning-rate sweep over one base. One process trains all of them together; each is trained alone
in a process of its own, and all processes take turns round by round. Beside the ratios stands the
arithmetic: the products of every sibling are its own, so that `n` siblings cannot take less than
`n` times the share of the machine's best product that one already reaches.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ui.bench.case import Case, Example, make_model, prepare_case
from ui.bench.turns import Peer

if TYPE_CHECKING:
    from ui.bench.worker import Turnstile

FIGURES = "siblings.json"


def bench_siblings(case: Case, count: int) -> dict[str, Any]:
    """Train a sweep of `count` runs together and apart, in turns.

    Raises:
        RunError: A process died; the end of its log says why.
    """
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        if not Path(case.model).is_dir():
            make_model(case.model, folder / "model", dtype=case.dtype)
            case = replace(case, model=str(folder / "model"))
        together = _peer(replace(case, siblings=count), "siblings", folder / "together", stack)
        apart = [
            _peer(replace(case, learning_rate=rate), "ours", folder / str(number), stack)
            for number, rate in enumerate(rates(case, count))
        ]
        for _ in range(case.rounds + 1):
            for peer in (together, *apart):
                peer.take_turn()
        told = json.loads((folder / "together" / FIGURES).read_text())
    return {"case": asdict(case), **_figures(told, together.rounds, [one.rounds for one in apart])}


def rates(case: Case, count: int) -> list[float]:
    """Return the learning rate of each sibling."""
    return [case.learning_rate * 0.5**number for number in range(count)]


def run(folder: Path, case: Case, rows: list[Example], gate: Turnstile) -> None:
    """The worker's part: all siblings on one base, a step of each in turn."""
    from studio.training.session import open_session
    from studio.training.siblings import SiblingGroup
    from ui.bench.peers import bare

    loaded = bare(case)
    group = SiblingGroup(loaded)
    prepared: Any = SimpleNamespace(train=rows, validation=[], data_hash="", template="")
    sessions = []
    for number, rate in enumerate(rates(case, case.siblings)):
        session = open_session(
            replace(case, learning_rate=rate).spec(), loaded=loaded, prepared=prepared,
            backbone=group.backbone, name=f"sibling-{number}",
        )  # fmt: skip
        session.plan = replace(session.plan, shuffled=False)
        group.join(session)
        sessions.append(session)
    told: list[list[dict[str, float]]] = [[] for _ in sessions]
    for step in range(case.steps):
        gate.before(step)
        events = [session.step() for session in sessions]
        gate.after()
        for own, event in zip(told, events, strict=True):
            own.append({"loss": event.loss, "grad_norm": event.grad_norm})
        (folder / FIGURES).write_text(json.dumps(told))
        gate.note(loss=events[0].loss, grad_norm=events[0].grad_norm)


def _peer(case: Case, name: str, folder: Path, stack: ExitStack) -> Peer:
    folder.mkdir()
    prepare_case(case, folder, adapter=False)
    peer = Peer(name, folder)
    stack.callback(peer.close)
    return peer


def _figures(
    told: list[list[dict[str, float]]],
    together: list[dict[str, Any]],
    apart: list[list[dict[str, Any]]],
) -> dict[str, Any]:
    """Join what the processes said; the first round warms up and is not timed."""
    turns = list(zip(together[1:], *(rounds[1:] for rounds in apart), strict=True))
    one = [statistics.mean(other["seconds"] for other in others) for _, *others in turns]
    ours = [own["seconds"] for own, *_ in turns]
    share = [own / alone for own, alone in zip(ours, one, strict=True)]
    last, first = together[-1], apart[0][-1]
    return {
        "siblings": len(apart),
        "seconds": statistics.median(ours),
        "seconds_of_one": statistics.median(one),
        "times_one": statistics.median(share),
        "spread": [min(share), max(share)],
        "peak_bytes": last["peak_bytes"] + last["base_bytes"],
        "peak_bytes_of_one": first["peak_bytes"] + first["base_bytes"],
        "memory_times_one": (last["peak_bytes"] + last["base_bytes"])
        / max(first["peak_bytes"] + first["base_bytes"], 1),
        "above_base_times_one": last["peak_bytes"] / max(first["peak_bytes"], 1),
        "runs": [
            _run(own, [s for taken in rounds for s in taken["losses"]],
                 [s for taken in rounds for s in taken["grad_norms"]])
            for own, rounds in zip(told, apart, strict=True)
        ],
    }  # fmt: skip


def _run(own: list[dict[str, float]], losses: list[float], norms: list[float]) -> dict[str, float]:
    pairs = list(zip(own, losses, norms, strict=True))
    return {
        "first_loss": own[0]["loss"],
        "last_loss": own[-1]["loss"],
        "grad_norm": own[-1]["grad_norm"],
        "loss_difference": max(abs(step["loss"] - loss) for step, loss, _ in pairs),
        "grad_norm_difference": max(
            abs(step["grad_norm"] - norm) / max(norm, 1e-12) for step, _, norm in pairs
        ),
    }


def table(result: dict[str, Any]) -> str:
    """Return the figures as text."""
    low, high = result["spread"]
    lines = [
        f"{result['siblings']} siblings together take {result['times_one']:.2f} times the time of "
        f"one ({low:.2f} to {high:.2f}): {result['seconds']:.3g} s a round, one alone "
        f"{result['seconds_of_one']:.3g} s",
        f"memory {result['memory_times_one']:.2f} times one's: {result['peak_bytes'] / 1e6:,.0f} "
        f"MB, one alone {result['peak_bytes_of_one'] / 1e6:,.0f} MB (above the loaded base "
        f"{result['above_base_times_one']:.2f} times)",
        "run  loss first / last   grad norm  Δ loss   Δ grad norm (to the same run alone)",
    ]
    for number, run in enumerate(result["runs"]):
        lines.append(
            f"{number:<3}  {run['first_loss']:.4f} / {run['last_loss']:.4f}   "
            f"{run['grad_norm']:<9.4g}  {run['loss_difference']:.1e}  "
            f"{run['grad_norm_difference']:.1e}"
        )
    return "\n".join(lines)
