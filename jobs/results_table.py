"""The table of results: a row per adapter and base, a column per figure that was measured of it.

Figures come from where they are: passports (held-out loss, forgetting), evaluations and suites of
the queue, votes. A newer evaluation of the same rows replaces an older one, and what was measured
before an adapter had its weights (a promoted checkpoint, a name that is used again) does not count.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from jobs import suite_results
from jobs.compare_tables import Votes
from jobs.job_queue import JobStore
from jobs.job_record import Job
from studio import atomic
from studio.adapter_stack import lane_note, read_lane
from studio.adapters import library
from studio.adapters.adapter_lineage import frozen_below
from studio.adapters.library import StoredAdapter
from studio.errors import AdapterError
from studio.evaluation.evaluate_on_dataset import REPORT
from studio.evaluation.html_and_csv_exports import text_of
from studio.evaluation.ranking_and_intervals import Match, leaderboard
from studio.goals import LEAST_HELD_OUT
from studio.home import Home
from studio.methods import methods
from studio.spec import DataSource
from studio.train_args import LOSSES, TrainArgs

Form = Literal["json", "csv", "markdown"]
Place = tuple[str, ...] | None
RUN_REPORT = "report.json"
LACKS = {"eval_loss": "no held-out SFT loss", "forgetting": "forgetting was not measured"}
FIXED = {
    "eval_loss": ("Held-out loss", "min"), "reward_accuracy": ("Reward accuracy", "max"),
    "reward": ("Reward", "max"), "forgetting": ("Forgetting", "min"),
    "win_rate": ("Win rate", "max"), "size_bytes": ("Bytes", "min"),
}  # fmt: skip
HELD_OUT = ("eval_loss", "reward_accuracy", "reward")
EMBEDDED = "embedded"
ALIKE = {**dict.fromkeys(HELD_OUT, "how"), "win_rate": "group"}
"""Column: what rows must have in common, beside the base, so that their figures are compared."""
SCORED = {"max_new_tokens": 128, "pattern": "", "json_schema": ""}
MEASURED = {
    "accuracy": ("accuracy", "max"), "macro_f1": ("macro F1", "max"), "eval_loss": ("loss", "min"),
    "token_accuracy": ("token accuracy", "max"), "exact_match": ("exact match", "max"),
    "rouge_l": ("ROUGE-L", "max"), "pattern": ("pattern", "max"), "json": ("JSON", "max"),
    "regex": ("regex", "max"), "judged": ("judged", "max"), "mae": ("mean absolute error", "min"),
    "pearson": ("correlation", "max"),
}  # fmt: skip


def table(store: JobStore) -> dict[str, Any]:
    """Return the table of results: columns as key, title, best and job, and rows by key."""
    found = _Table(store)
    jobs = store.list()[::-1]
    reports = {
        job.id: report for job in jobs
        if job.kind == "evaluate"
        and (report := atomic.read_object(store.home.run(job.id) / REPORT))
    }  # fmt: skip
    about = _abouts({job.id: job.spec for job in jobs if job.id in reports})
    times = {job.id: job.started or job.created for job in jobs}
    for job in jobs:
        at = times[job.id]
        if job.id in reports:
            report, model, stack = reports[job.id], job.spec["model"]["path"], job.spec.get("stack")
            row = found.row(_place(store.home, model, stack or ()), at)
            figures = {**report, **(report.get("scores") or {})}
            found.put(row, about[job.id], figures, job.id)
            if figures.get("forgetting") is not None:
                general = (report.get("general") or {}).get("set", EMBEDDED)
                row.setdefault("forgot", {})[general] = figures["forgetting"]
        elif job.kind == "tasks":
            _put_tasks(found, job, at)
        elif job.kind == suite_results.KIND:
            suite = suite_results.table(store, job.id)
            for lane, means in zip(suite["lanes"], suite["means"], strict=True):
                found.put(found.of_lane(lane, at), job.name, means, job.id)
        elif (
            job.kind == suite_results.JUDGE
            and (judged := suite_results.judgement(store, job.id))["evidence"]
        ):
            answered = times.get(judged["suite"], at)
            for one in judged["standings"]:
                rate = {"judged": one["rate"]}
                found.put(found.of_lane(one["lane"], answered), job.name, rate, job.id)
    _put_forgetting(found)
    _put_votes(found)
    _mark(found)
    used = [key for key in found.columns if any(row.get(key) is not None for row in found.shown)]
    return {
        "columns": [{"key": key, **found.columns[key]} for key in used],
        "rows": [{"key": key, **row} for key, row in found.rows.items()],
    }


class _Table:
    """Rows by adapter or base, columns by figure, and since when an adapter has its weights."""

    def __init__(self, store: JobStore) -> None:
        self.home, self.database = store.home, store.database
        self.rows: dict[str, dict[str, Any]] = {}
        self._since: dict[str, float] = {}
        self._keys: dict[tuple[str, ...], str] = {}
        self._places: dict[str, Place] = {}
        for one in library.adapters(self.home):
            known = methods().get(one.method)
            report = atomic.read_object(one.path.parent / RUN_REPORT) if one.source == "run" else {}
            held_out = (report.get("rows") or {}).get("validation_examples") or 0
            self.rows[str(one.path)] = {
                "name": one.name, "id": one.id, "method": known.title if known else one.method,
                "base": one.base, "data": one.data_path, **_held_out(one),
                "forgot": {one.section("forgetting").get("set", EMBEDDED): one.forgetting},
                "size_bytes": one.size_bytes,
                "few": held_out if held_out < LEAST_HELD_OUT else 0,
            }  # fmt: skip
            made = (one.created, str(one.passport.get("imported", "")))
            self._since[str(one.path)] = max(seconds(moment) or 0.0 for moment in made)
        self.columns: dict[str, dict[str, Any]] = {
            key: {"title": title, "best": best} for key, (title, best) in FIXED.items()
        } | {f"{loss}_loss": {"title": f"Held-out loss ({loss})", "best": None} for loss in LOSSES}

    @property
    def shown(self) -> Iterable[dict[str, Any]]:
        """Return the rows."""
        return self.rows.values()

    def key(self, place: Place, at: float) -> str | None:
        """Return the key of the row of an adapter, or of the base; the row is made if missing.

        A stack of several has none, nor has an adapter whose weights were replaced after `at`.
        """
        if place is None:
            return None
        model, adapter = (*place, "")[:2]
        if place not in self._keys:
            found = adapter or (model if model in self.rows else f"base {model}")  # a whole model
            with suppress(AdapterError):
                found = str(library.resolve(self.home, adapter)) if adapter else found
            self._keys[place] = found
        key = self._keys[place]
        if at < self._since.get(key, 0.0):
            return None
        fresh = {"name": Path(adapter or model).name, "id": "", "base": model, "data": ""}
        self.rows.setdefault(key, fresh | {"method": "" if adapter else "Base"})
        return key

    def row(self, place: Place, at: float) -> dict[str, Any]:
        """Return the row of `key`; what is put into the row of none is not shown."""
        key = self.key(place, at)
        return {} if key is None else self.rows[key]

    def of_lane(self, lane: str, at: float) -> dict[str, Any]:
        """Return the row of a lane."""
        return self.row(self.place(lane), at)

    def place(self, lane: str) -> Place:
        """Return the place of a lane; one with settings of its own has none."""
        if lane not in self._places:
            read, own = read_lane(lane), lane_note(lane)
            self._places[lane] = None if own else _place(self.home, read["model"], read["stack"])
        return self._places[lane]

    def put(
        self, row: dict[str, Any], about: str, figures: Mapping[str, Any], job: int,
        measured: Mapping[str, tuple[str, str | None]] = MEASURED,
    ) -> None:  # fmt: skip
        """Put the figures of a job into a row, and their columns into the table."""
        for key, (title, best) in measured.items():
            if figures.get(key) is not None:
                name = f"{about} {key}"
                self.columns[name] = {"title": f"{about}: {title}", "best": best, "job": job}
                row[name] = figures[key]
                row.setdefault("jobs", {})[name] = job


def _abouts(specs: Mapping[int, dict[str, Any]]) -> dict[int, str]:
    """Return what each evaluation measured: its file, and settings in which others differ.

    Only those of evaluations of the same file name are compared.
    """
    asked, values = {}, defaultdict[tuple[str, str], set[str]](set)
    for job, spec in specs.items():
        held, most = spec.get("rows") == "held_out", spec.get("max_rows", 0)
        one = DataSource().model_dump(mode="json") | spec["data"] | {
            "rows": spec.get("rows", "all"), "max_rows": most,
            "seed": spec.get("seed", 0) if held or most else 0,
            "learned": spec.get("learned", "answers") if held else "answers",
        }  # fmt: skip
        if spec.get("scores"):
            one |= {key: spec.get(key, default) for key, default in SCORED.items()}
        asked[job] = {key: str(value) for key, value in one.items()
                      if held or not key.startswith("validation_")}  # fmt: skip
        for key, value in asked[job].items():
            values[Path(one["path"]).name, key].add(value)
    found = {}
    for job, one in asked.items():
        name = Path(one["path"]).name
        how = [f"{key} {_short(value)}" for key, value in one.items() if len(values[name, key]) > 1]
        found[job] = f"{name} ({', '.join(how)})" if how else name
    return found


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:40]}… {zlib.crc32(text.encode()):08x}"


def measured_alike(one: StoredAdapter) -> int:
    """Return a number that adapters share whose held-out losses can be compared."""
    return zlib.crc32(f"{one.base} {_held_out(one)['how']}".encode())


def _held_out(one: StoredAdapter) -> dict[str, Any]:
    """Return what a run measured on held-out rows, and how: only equal ways are compared."""
    train = TrainArgs().model_dump() | one.section("spec", "train")
    data = DataSource().model_dump(mode="json") | one.section("spec", "data")
    settings = ("loss", "rewards", "reward_pattern", "reward_json_schema", "max_completion_length")
    rows = one.section("data", "evaluated").get("hash")  # which earlier versions did not write
    every = train["eval_steps"]
    evaluates = isinstance(every, int) and every > 0
    rows = rows or (data | {"path": one.data_path}, one.section("spec").get("seed", 0), evaluates)
    how = (rows, [train[key] for key in settings])
    if (loss := str(train["loss"])) == "sft":
        return {"eval_loss": one.eval_loss, "how": str(how)}
    score = "reward" if loss == "grpo" else "reward_accuracy"
    found = {f"{loss}_loss": one.eval_loss, score: one.passport.get("eval_score")}
    return {"eval_loss": None, "how": str(how), **found}


def _put_forgetting(found: _Table) -> None:
    """Put the forgetting on each general set; the set of most rows has the column of that name."""
    forgot = [(row, row.pop("forgot", {})) for row in found.shown]
    sets = Counter(name for _, own in forgot for name, value in own.items() if value is not None)
    usual = sets.most_common(1)[0][0] if sets else EMBEDDED
    for row, own in forgot:
        row["forgetting"] = own.pop(usual, None)
        for name, value in own.items():
            key = f"forgetting {name}"
            found.columns[key] = {"title": f"Forgetting ({Path(name).name})", "best": "min"}
            row[key] = value


def _put_votes(found: _Table) -> None:
    """Put the share of its games that each row won: lanes of the same adapter count together.

    A vote is a game of the winner against each other lane, as in the ranking.
    """
    matches = []
    for vote in Votes(found.database).list():
        at = vote["created"]
        places = [found.place(lane) for lane in vote["lanes"]]
        keys = [found.key(place, at) for place in places]
        if not any(place and key is None for place, key in zip(places, keys, strict=True)):
            lanes = tuple(key or lane for key, lane in zip(keys, vote["lanes"], strict=True))
            matches.append(Match(lanes=lanes, winner=vote["winner"]))
    for one in leaderboard(matches):
        if one.lane in found.rows:
            found.rows[one.lane] |= {"win_rate": one.rate, "group": one.group}


def _mark(found: _Table) -> None:
    """Put the columns in which a row is the best of its base, and what the picture of it lacks.

    A held-out loss on a few rows is no evidence.
    """
    rows = [*found.shown]
    for row in rows:
        row["best"] = []
        lacks = [words for key, words in LACKS.items() if row.get(key) is None]
        row["lacks"] = None if row["method"] == "Base" else lacks
    for key, column in found.columns.items():
        groups = defaultdict[tuple[Any, ...], list[dict[str, Any]]](list)
        for row in rows:
            if row.get(key) is not None and not (key in HELD_OUT and row.get("few")):
                groups[row["base"], row.get(ALIKE.get(key, ""))].append(row)
        if not column["best"]:
            continue
        pick = min if column["best"] == "min" else max
        for group in groups.values():
            best = pick(row[key] for row in group)
            for row in group if len(group) > 1 else ():
                row["best"] += [key] if row[key] == best else []
    for row in rows:
        for key in {*ALIKE.values()}:
            row.pop(key, None)


def seconds(moment: str) -> float | None:
    """Return an ISO time of a result in seconds since 1970, None if it is none."""
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return None


def _put_tasks(found: _Table, job: Job, at: float) -> None:
    """Put what a job measured on standard tasks into the rows of its lanes.

    Figures of other prompts or documents than the task's own have columns of their own.
    """
    report, spec = atomic.read_object(found.home.run(job.id) / REPORT), job.spec
    shots, limit = spec.get("num_fewshot", -1), spec.get("limit")
    ways = (shots >= 0 and f"{shots}-shot", limit and f"first {limit}", spec.get("chat") and "chat")
    how = ", ".join(way for way in ways if way)
    for number, lane in enumerate(report.get("lanes", ())):
        row = found.of_lane(lane, at)
        for one in report["tasks"]:
            known = {one["metric"]: (one["metric"], one["best"] or None)}
            figures = {one["metric"]: one["values"][number]}
            about = f"{one['task']} ({how})" if how else one["task"]
            found.put(row, about, figures, job.id, known)


def _place(home: Home, model: str, stack: Sequence[Mapping[str, Any]]) -> Place:
    """Return a lane's model and adapter; None for a stack of several, or at another weight than 1.

    A stack that is an adapter and what it was trained on top of counts as that adapter.
    """
    if any(item.get("weight", 1) != 1 for item in stack):
        return None
    if len(stack) < 2:
        return (model, *(str(item["name"]) for item in stack))
    with suppress(AdapterError):  # one of them is gone
        folders = [library.resolve(home, str(item["name"])) for item in stack]
        for top in folders:
            below = {one.path for one in frozen_below(library.describe(top))}
            if below == {*folders} - {top}:
                return model, str(top)
    return None


def written(found: dict[str, Any], form: Form) -> str:
    """Return the table of results as CSV or Markdown, in which the best of a column is bold."""
    from studio.data.readers.tables import csv_text

    heads = ["Name", "Method", "Base", *(column["title"] for column in found["columns"])]
    keys = [column["key"] for column in found["columns"]]
    named = [
        (row, [str(row[key] or "") for key in ("name", "method", "base")]) for row in found["rows"]
    ]
    if form == "csv":
        return csv_text([heads, *([*words, *map(row.get, keys)] for row, words in named)])
    lines = [heads, ["---"] * 3 + ["---:"] * len(keys)]
    for row, words in named:
        cells = [word.replace("|", "\\|").replace("\n", " ") for word in words]
        for key, value in zip(keys, map(row.get, keys), strict=True):
            shown = text_of(value) if value is None or isinstance(value, float) else value
            cells.append(f"**{shown}**" if key in row["best"] else str(shown))
        lines.append(cells)
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
