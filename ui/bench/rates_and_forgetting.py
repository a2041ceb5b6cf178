"""`studio bench rates` and `forgetting`: each method's best rate, what it learns and forgets there.

Rates: for each model, dataset, method and seed a walk over rates √10 apart starts at `auto` and
goes towards the lower held-out loss until it rises. The figures that the defaults rest on are
`learning_rates.json` beside this file.

Forgetting: for each dataset and method the best rate is found with the first seed, then the other
seeds train at that rate. Held-out loss and forgetting of each run are kept with it. The written
page holds means over seeds with 95 % intervals, and says which methods change their order between
the two. `learned_forgot.json` beside this file has the runs of `docs/methods-compared.md`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import combinations, product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from studio.errors import MethodError, StudioError
from studio.evaluation.ranking_and_intervals import half_width
from studio.methods import methods as registered
from studio.methods import named
from studio.spec import RunSpec
from ui.bench.bench_figures import progress, table_text

if TYPE_CHECKING:
    from studio.backbone import Backbone
    from studio.data.prepare_run_data import Prepared
    from studio.home import Home
    from studio.models.loading import Loaded


STEP = math.sqrt(10)
FARTHEST = 5  # steps of the walk from `auto`
RATE_COLUMNS = [
    ("model", "{model}"), ("dataset", "{data}"), ("method", "{method}"), ("seed", "{seed}"),
    ("auto", "{auto:.2g}"), ("held-out", "{auto_loss:.3f}"), ("best rate", "{best:.2g}"),
    ("held-out", "{best_loss:.3f}"), ("ratio", "{ratio:.2f}"),
]  # fmt: skip


def bench_rates(
    folder: Path, *, models: str, data: str, methods: str, steps: int, seeds: int, out: str
) -> dict[str, Any]:
    """Run `studio bench rates`: one row per case; `out` keeps rows as measured, is continued.

    `models`, `data` and `methods` are comma-separated; no methods stands for all.
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
    """Return the auto rate of a case, its best rate, their held-out losses, and all rates tried."""
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
    """Try learning rates from place 0 downhill until the held-out loss rises; return the losses."""
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
    """Return the rows of `studio bench rates` side by side."""
    return table_text(RATE_COLUMNS, result["rows"])


Row = dict[str, Any]
RATES, RUNS = (
    Path(__file__).with_name(name) for name in ("learning_rates.json", "learned_forgot.json")
)
BEGIN, END = "<!-- methods compared -->", "<!-- end methods compared -->"
HEAD = "| method | learning rate | seeds | learned: held-out loss | forgot: KL per token |"
OBSERVED_SECONDS = 1e6  # the general set as a whole, whatever it takes
COLUMNS = [
    ("dataset", "{data}"), ("method", "{method}"), ("seeds", "{seeds}"), ("rate", "{rate:.2g}"),
    ("held-out", "{eval_loss:.3f}"), ("±", "{eval_loss_interval:.3f}"),
    ("forgetting", "{forgetting:.4f}"), ("±", "{forgetting_interval:.4f}"),
]  # fmt: skip


def bench_forgetting(
    folder: Path, *, model: str, data: str, methods: str, steps: int, seeds: int, out: str,
    docs: str,
) -> dict[str, Any]:  # fmt: skip
    """Run `studio bench forgetting`: one row per dataset and method; as `bench_rates`.

    `seeds` are the runs of each method, the one that finds the rate included; `docs` is a Markdown
    page whose table is written anew.
    """
    chosen = [word for word in methods.split(",") if word] or list(registered())
    kept = Path(out) if out else folder / "runs.json"
    runs: list[Row] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else []
    bench = _Bench(folder, model, steps, runs, kept)
    for dataset, method in product(data.split(","), chosen):
        named(method)  # refuses an unknown one
        bench.measure(dataset, method, seeds)
    rows = averaged(runs)
    if docs:
        write_page(Path(docs), rows, model=model, steps=steps)
    return {"rows": rows, "runs": runs}


class _Bench:
    """Runs on bases that stay in memory, and what is known of them already."""

    def __init__(self, folder: Path, model: str, steps: int, runs: list[Row], kept: Path) -> None:
        from studio.home import open_home

        self._folder, self._model, self._steps = folder, model, steps
        self._runs, self._kept = runs, kept
        self._home: Home = open_home(folder / "home")
        self._base: tuple[Loaded, Backbone] | None = None
        self._prepared: dict[tuple[str, int], Prepared] = {}

    def measure(self, dataset: str, method: str, seeds: int) -> None:
        """Find the best rate with the first seed, then train the other seeds at it."""
        from studio.models.find_model import facts
        from studio.training.steps_and_learning_rate import lr_for

        key = {"data": dataset, "method": method}
        if any(key.items() <= run.items() and "error" in run for run in self._runs):
            return
        try:
            auto = lr_for(named(method)(), facts(self._spec(dataset, method, 0).model).hidden_size)
            found = walk(lambda place: self._run(dataset, method, 0, auto * STEP**place))
            best = min(found, key=found.__getitem__)
            for seed in range(1, seeds):
                self._run(dataset, method, seed, auto * STEP**best)
        except MethodError as error:  # one that this model cannot take
            self._keep({**key, "error": error.text})

    def _spec(self, dataset: str, method: str, seed: int) -> RunSpec:
        # BitFit adds the biases that a model like Llama does not have.
        fields = named(method).model_fields
        biases = {"method.create_missing": True} if "create_missing" in fields else {}
        return RunSpec().with_values(
            {
                "model.path": self._model, "data.path": dataset, "method.name": method,
                "seed": seed, "train.max_steps": self._steps, "data.max_length": 256, **biases,
            }
        )  # fmt: skip

    def _run(self, dataset: str, method: str, seed: int, rate: float) -> float:
        """Train once, unless it is known, and return the held-out loss."""
        key = {"data": dataset, "method": method, "seed": seed, "steps": self._steps,
               "rate": float(f"{rate:.6g}")}  # fmt: skip
        known = (run for run in self._runs if key.items() <= run.items())
        if (run := next(known, None)) is None:
            progress(" · ".join(map(str, key.values())))
            spec = self._spec(dataset, method, seed).with_values({"train.learning_rate": rate})
            run = self._keep({**key, **self._trained(spec)})
        return math.inf if run["eval_loss"] is None else float(run["eval_loss"])

    def _keep(self, run: Row) -> Row:
        self._runs.append(run)
        lines = ",\n".join(json.dumps(run, ensure_ascii=False) for run in self._runs)
        self._kept.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        return run

    def _loaded(self, spec: RunSpec) -> tuple[Loaded, Backbone]:
        """Return the base, which stays in memory; a fresh one if trained or quantised."""
        from studio.backbone import Backbone
        from studio.models.loading import load
        from studio.training.starting_point import base_model

        source = base_model(spec)
        own = spec.method.trains_base or source.quantization != "none"
        if own or self._base is None:
            loaded = load(source, "cpu")
            made = loaded, Backbone(loaded.model)
            self._base = self._base if own else made
            return made
        return self._base

    def _trained(self, spec: RunSpec) -> Row:
        """Return held-out loss and forgetting of a run; None where it diverged."""
        from studio.errors import Diverged
        from studio.evaluation.forgetting import RunForgetting, general_set_of
        from studio.training.train_run import open_session, prepare_data

        loaded, backbone = self._loaded(spec)
        place = (spec.data.path, spec.seed)
        if place not in self._prepared:
            self._prepared[place] = prepare_data(spec, loaded, self._home)
        session = open_session(
            spec, loaded=loaded, prepared=self._prepared[place], backbone=backbone
        )
        session.general = general_set_of(spec, loaded, self._home)
        forgot = RunForgetting(session, self._folder, seconds=OBSERVED_SECONDS)
        try:
            for _ in range(self._steps):
                session.step()
            loss = session.evaluate().eval_loss
            found = forgot.measure()
            return {"eval_loss": loss, "forgetting": found and found["forgetting"]}
        except Diverged:
            return {"eval_loss": None, "forgetting": None}
        finally:
            backbone.eval()
            backbone.detach(session.name)


def averaged(runs: Sequence[Row]) -> list[Row]:
    """Return means of loss and forgetting of methods at their best rates, with 95 % intervals."""
    rows = []
    for data, method in dict.fromkeys((run["data"], run["method"]) for run in runs):
        own = [run for run in runs if (run["data"], run["method"]) == (data, method)]
        row: Row = {"data": data, "method": named(method).title}
        if failed := [run for run in own if "error" in run]:
            rows.append(row | {"error": failed[0]["error"]})
            continue
        tried = [run for run in own if run["seed"] == 0 and run["eval_loss"] is not None]
        rate = min(tried, key=lambda run: run["eval_loss"])["rate"]
        best = [run for run in own if run["rate"] == rate and run["eval_loss"] is not None]
        row |= {"rate": rate, "seeds": len(best)}
        for key in ("eval_loss", "forgetting"):
            values = [run[key] for run in best]
            row |= {key: fmean(values), f"{key}_interval": half_width(values) or 0.0}
        rows.append(row)
    return rows


def swaps(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the pairs of methods of which one learned more and the other forgot less.

    Only pairs whose 95 % intervals are apart on both axes count.
    """
    found = []
    for one, other in combinations([row for row in rows if "error" not in row], 2):
        learned, forgot = (_ahead(one, other, key) for key in ("eval_loss", "forgetting"))
        if learned and forgot and learned != forgot:
            pair = (one, other) if learned < 0 else (other, one)
            found.append((pair[0]["method"], pair[1]["method"]))
    return found


def _ahead(one: Row, other: Row, key: str) -> int:
    """Return -1 if the first is lower, 1 if the second is, 0 if their intervals overlap."""
    apart = abs(one[key] - other[key]) > one[f"{key}_interval"] + other[f"{key}_interval"]
    return 0 if not apart else -1 if one[key] < other[key] else 1


def write_page(page: Path, rows: Sequence[Row], *, model: str, steps: int) -> None:
    """Write the tables of forgetting between the page's marks, keeping its other text."""
    old = page.read_text(encoding="utf-8") if page.is_file() else f"{BEGIN}\n{END}\n"
    head, _, rest = old.partition(BEGIN)
    text = page_text(rows, model=model, steps=steps)
    page.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def page_text(rows: Sequence[Row], *, model: str, steps: int) -> str:
    """Return one table of forgetting for each dataset, lowest loss first, and who changes order.

    A dataset on which some methods are missing, because the bench was stopped, is only named.
    """
    parts = [f"Model `{model}`, {steps} steps, each method at its best learning rate."]
    sets = {data: [r for r in rows if r["data"] == data] for data in (r["data"] for r in rows)}
    most = max(map(len, sets.values()), default=0)
    for data, own in sets.items():
        if len(own) < most:
            parts.append(f"Of `{data}` {len(own)} of {most} methods are measured so far.")
            continue
        able = sorted((r for r in own if "error" not in r), key=lambda row: row["eval_loss"])
        lines = [HEAD, "|---|---:|---:|---:|---:|"]
        best = {key: min((row[key] for row in able), default=None)
                for key in ("eval_loss", "forgetting")}  # fmt: skip
        for row in able:
            cells = [_cell(row, key, mark=row[key] == best[key]) for key in best]
            lines.append(
                f"| {row['method']} | {row['rate']:.2g} | {row['seeds']} | {' | '.join(cells)} |"
            )
        lines += [
            f"| {row['method']} | – | – | {row['error']} | – |" for row in own if "error" in row
        ]
        parts += [f"### {data}", "\n".join(lines), swap_text(swaps(able))]
    return "\n\n".join(parts)


def _cell(row: Row, key: str, *, mark: bool) -> str:
    digits = 3 if key == "eval_loss" else 4
    text = f"{row[key]:.{digits}f}"
    interval = row[f"{key}_interval"]
    return (f"**{text}**" if mark else text) + (f" ± {interval:.{digits}f}" if interval else "")


def swap_text(pairs: Sequence[tuple[str, str]]) -> str:
    """Return the sentence on pairs of methods that change their order between the axes."""
    if not pairs:
        return "No pair of methods changes its order between the two beyond its intervals."
    names = "; ".join(f"{more} before {less}" for more, less in pairs)
    many = (
        f"{len(pairs)} pairs of methods change their"
        if len(pairs) > 1
        else ("One pair of methods changes its")
    )
    return (
        f"{many} order beyond the intervals (the first of each learned more, the second forgot "
        f"less): {names}."
    )


def forgetting_text(result: dict[str, Any]) -> str:
    """Return the rows of `studio bench forgetting` side by side."""
    return table_text(COLUMNS, result["rows"])
