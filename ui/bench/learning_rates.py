"""`studio bench rates`: each method's best learning rate on models and datasets, against `auto`.

For each model, dataset, method and seed a walk over rates √10 apart starts at `auto` and goes
towards the lower held-out loss until it rises. `learning_rates.json` beside this file holds
the figures that the defaults rest on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from studio.errors import StudioError
from studio.methods import methods as registered
from studio.methods import named
from studio.spec import RunSpec
from ui.bench.bench_figures import progress, table_text

STEP = math.sqrt(10)
FARTHEST = 5  # steps of the walk from `auto`
COLUMNS = [
    ("model", "{model}"), ("dataset", "{data}"), ("method", "{method}"), ("seed", "{seed}"),
    ("auto", "{auto:.2g}"), ("held-out", "{auto_loss:.3f}"), ("best rate", "{best:.2g}"),
    ("held-out", "{best_loss:.3f}"), ("ratio", "{ratio:.2f}"),
]  # fmt: skip


def bench_rates(
    folder: Path, *, models: str, data: str, methods: str, steps: int, seeds: int, out: str
) -> dict[str, Any]:
    """Return one row per case; `out` keeps rows as they are measured and is continued.

    Args:
        folder: An empty folder.
        models: Model folders or hub ids, comma-separated.
        data: Datasets, comma-separated.
        methods: Names, comma-separated; empty takes all adapters and full fine-tuning.
        steps: Optimizer steps of each run.
        seeds: Number of seeds.
        out: A JSON file for the rows; empty keeps none.
    """
    chosen = [word for word in methods.split(",") if word] or list(registered())
    kept = Path(out) if out else folder / "rates.json"
    rows: list[dict[str, Any]] = (
        json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else []
    )
    keys = ("model", "data", "method", "seed", "steps")
    done = {tuple(row[key] for key in keys) for row in rows}
    cases = product(models.split(","), data.split(","), chosen, range(seeds))
    for number, (model, dataset, method, seed) in enumerate(cases):
        key = (Path(model).name, Path(dataset).name, named(method).title, seed, steps)
        if key in done:
            continue
        progress(" · ".join(map(str, key)))
        spec = RunSpec().with_values(
            {
                "model.path": model, "data.path": dataset, "method.name": method, "seed": seed,
                "train.max_steps": steps, "train.num_samples": 0, "train.save_steps": -1,
                "train.eval_steps": steps, "train.self_test": False, "data.max_length": 256,
            }
        )  # fmt: skip
        row = dict(zip(keys, key, strict=True))
        rows.append(row | measured(spec, folder / str(number)))
        kept.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"rows": rows}


def measured(spec: RunSpec, folder: Path) -> dict[str, Any]:
    """Return the auto rate, the best one, their held-out losses, and every rate tried."""
    from studio.models.find_model import facts
    from studio.training.steps_and_learning_rate import lr_for

    try:
        width = facts(spec.model).hidden_size
        auto = lr_for(spec.method, width)
        losses = walk(lambda place: _held_out(spec, auto * STEP**place, folder / str(place)))
    except StudioError as error:
        return {"error": error.text}
    best = min(losses, key=losses.__getitem__)
    return {
        "hidden_size": width, "auto": auto, "auto_loss": losses[0], "best": auto * STEP**best,
        "best_loss": losses[best], "ratio": losses[0] / losses[best],
        "tried": {f"{auto * STEP**place:.3g}": losses[place] for place in sorted(losses)},
    }  # fmt: skip


def walk(loss: Callable[[int], float]) -> dict[int, float]:
    """Return the losses around place 0: downhill in the better direction until the loss rises."""
    losses = {place: loss(place) for place in (0, -1, 1)}
    towards = 1 if losses[1] <= losses[-1] else -1
    place = towards
    while losses[place] < losses[place - towards] and abs(place) < FARTHEST:
        place += towards
        losses[place] = loss(place)
    return losses


def _held_out(spec: RunSpec, rate: float, folder: Path) -> float:
    """Train once and return the held-out loss at the end; infinity for a run that diverged."""
    import shutil

    from studio.errors import RunError
    from studio.home import open_home
    from studio.training.train_run import train

    try:
        events = list(
            train(
                spec.with_values({"train.learning_rate": rate}), run_dir=folder,
                home=open_home(folder.parent.parent / "home"),
            )
        )  # fmt: skip
    except RunError:
        return math.inf
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = getattr(events[-1], "eval_loss", None)
    return found if found is not None and math.isfinite(found) else math.inf


def rates_text(result: dict[str, Any]) -> str:
    """Return the rows side by side."""
    return table_text(COLUMNS, result["rows"])
