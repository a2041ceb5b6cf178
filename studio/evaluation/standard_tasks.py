"""Measure stacks on standard tasks with lm-eval: base and several adapters in one pass.

A stack is one lane; with `each`, the base and every adapter of the stack, on top of what it was
trained on, are lanes of their own. What was answered is kept in the run's folder, so a stopped or
killed job goes on from there.

Names and files of tasks are checked here without loading lm-eval. A task of one's own is a YAML
file in its format beside its rows. Only its data counts: a file that names Python code
(`!function`) is refused, paths of rows are relative to the file. Tasks by name are those that
lm-eval brings; their rows are downloaded from the hub.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import yaml

from studio.adapter_stack import MAX_LANES, Stack, write_lane
from studio.adapters.adapter_lineage import resolve_stack
from studio.adapters.library import describe
from studio.errors import AdapterError, DataError, InputError, nearest
from studio.evaluation.evaluate_on_dataset import REPORT
from studio.evaluation.scores_and_gates import bounds, check_gate
from studio.fields import knob
from studio.home import Home
from studio.job_request import Control, Request
from studio.models.find_model import facts
from studio.spec import ModelSource
from studio.training.training_events import Event, Finished, Loading, Working

if TYPE_CHECKING:
    from studio.backbone.composition import Stack as Weighted

ANSWERS, EVENT_SECONDS = "answers.jsonl", 0.5
LOCAL = ("json", "csv", "parquet", "text", "arrow")
NAME = re.compile(r"^(?:task|group): *[\"']?([^\s\"'#]+)", re.MULTILINE)


class TasksRequest(Request):
    """Measure a stack, or the base and each adapter, on standard tasks."""

    kind: ClassVar[str] = "tasks"
    report: ClassVar[str] = REPORT
    model: ModelSource = ModelSource()
    stack: Stack = ()
    each: bool = knob(False, "Measure the base and each adapter alone, in one pass.")
    tasks: tuple[str, ...] = knob((), "Task names, files, or folders of files.", min_length=1)
    limit: int = knob(0, "Documents of each task; 0 uses all.", ge=0)
    num_fewshot: int = knob(-1, "Examples in each prompt; -1 uses the task's own.", ge=-1, le=64)
    chat: bool = knob(False, "Write prompts with the base's chat template.")
    seed: int = knob(1234, "Seed of the choice of examples.", ge=0, le=2**31 - 1)
    min: tuple[str, ...] = knob((), "Fail below this, as in arc_easy:acc=0.5.")
    max: tuple[str, ...] = knob((), "Fail above this, as in wikitext:word_perplexity=30.")
    device: str = knob("auto", "auto, cpu, cuda:0 …", advanced=True)

    def checked(self, home: Home) -> Self:
        """Return it with adapters and files found; lm-eval must be installed."""
        facts(self.model)
        bounds((*self.min, *self.max))
        stack, model = resolve_stack(home, self.stack, or_model=not self.each), self.model
        if self.each:  # what an adapter was trained on top of is found again for its own lane
            stack = tuple(resolve_stack(home, (item,))[-1] for item in self.stack)
        elif stack and describe(Path(stack[0].name)).is_model:
            model, stack = model.model_copy(update={"path": stack[0].name}), ()
        if self.each and len(stack) >= MAX_LANES:
            raise AdapterError(f"One pass measures the base and up to {MAX_LANES - 1} adapters.")
        tasks = resolve_tasks(self.tasks)
        return self.model_copy(update={"stack": stack, "model": model, "tasks": tasks})

    def stacks(self, home: Home) -> list[Stack]:
        """Return the stack of each lane."""
        if not self.each:
            return [self.stack]
        return [(), *(resolve_stack(home, (item,)) for item in self.stack)]

    def perform(
        self, home: Home, run_dir: Path, control: Control = lambda: None
    ) -> Iterator[Event]:
        """Answer task by task, and write `evaluation.json` after each."""
        yield Loading(text="Loading lm-eval")
        lanes = self.stacks(home)
        from studio.backbone import Backbone
        from studio.evaluation import lm_eval_model, lm_eval_tasks
        from studio.models.loading import load

        loaded_tasks = []
        for task in self.tasks:
            yield Loading(text=_reading(task))
            source = source_of(task)
            loaded_tasks.append(
                lm_eval_tasks.load(task, source, num_fewshot=self.num_fewshot, seed=self.seed)
            )
        yield Loading(text="Loading the base")
        loaded = load(self.model, self.device)
        backbone = Backbone(loaded.model)
        folders = dict.fromkeys(item.name for lane in lanes for item in lane)
        names = {folder: f"adapter-{place}" for place, folder in enumerate(folders)}
        for folder, name in names.items():
            backbone.load(name, Path(folder))
        stacks: list[Weighted] = [tuple((names[i.name], i.weight) for i in lane) for lane in lanes]
        run_dir.mkdir(parents=True, exist_ok=True)
        answers = lm_eval_model.Answers(run_dir / ANSWERS)
        model = lm_eval_model.LaneModel(loaded, backbone, stacks, answers)
        asked = [
            lm_eval_tasks.requests_of(one, model, limit=self.limit, chat=self.chat)
            for one in loaded_tasks
        ]
        total = sum(len(own) for kinds in asked for own in kinds.values())
        report: dict[str, Any] = {
            "lanes": [write_lane(self.model.path, lane) for lane in lanes],
            "names": [self._name(lane) for lane in lanes], "tasks": [], "examples": [],
        }  # fmt: skip
        before, due = 0, 0.0
        for name, found, kinds in zip(self.tasks, loaded_tasks, asked, strict=True):
            for kind, requests in kinds.items():
                for done in model.answer(kind, requests):
                    if done == len(requests) or time.monotonic() > due:
                        due = time.monotonic() + EVENT_SECONDS
                        text = f"{Path(name).stem}: request {done:,} of {len(requests):,}"
                        yield Working(step=before + done, total_steps=total, text=text)
                    if control() == "stop":
                        yield Finished(step=before + done, reason="stopped")
                        return
                before += len(requests)
            measured = list(
                lm_eval_tasks.measure(found, model, len(stacks), limit=self.limit, chat=self.chat)
            )
            report["tasks"] += lm_eval_tasks.figures(found, measured)
            report["examples"] += lm_eval_tasks.examples(found, measured)
            text = json.dumps(report, ensure_ascii=False, indent=1)
            (run_dir / REPORT).write_text(text, encoding="utf-8")
        self._check(report)
        yield Finished(step=total, facts={key: report[key] for key in ("lanes", "names", "tasks")})

    def _name(self, lane: Stack) -> str:
        """Return a lane's name as users read it."""
        named = [item.model_copy(update={"name": describe(Path(item.name)).name}) for item in lane]
        return " + ".join(map(str, named)) or Path(self.model.path).name

    def _check(self, report: dict[str, Any]) -> None:
        """Check every lane but the base beside others against the bounds."""
        for place, lane in enumerate(report["names"]):
            if place or len(report["names"]) == 1:
                own = {f"{r['task']}:{r['metric']}": r["values"][place] for r in report["tasks"]}
                check_gate(own, self.min, self.max, lane)


def _reading(task: str) -> str:
    if Path(task).is_absolute():
        return f"Reading {Path(task).name}"
    return f"Reading the documents of {task}; what is not here is downloaded from the hub"


# -- files of tasks --------------------------------------------------------------------------------


def tasks_folder() -> Path:
    """Return the folder of the tasks that lm-eval brings.

    Raises:
        InputError: lm-eval is not installed.
    """
    found = find_spec("lm_eval")
    if found is None or found.origin is None:
        raise InputError("Standard tasks need lm-eval: pip install 'adapter-studio[eval]'.")
    return Path(found.origin).parent / "tasks"


def resolve_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    """Return task names and absolute paths of task files; a folder stands for its tasks.

    Raises:
        InputError: lm-eval is not installed.
        DataError: A task does not exist, or its file cannot be used.
    """
    tasks_folder()
    found: list[str] = []
    for text in (part.strip() for one in tasks for part in one.split(",") if part.strip()):
        place = Path(text).expanduser()
        if not (place.exists() or place.suffix in (".yaml", ".yml") or "/" in text):
            _check_name(text)
            found.append(text)
            continue
        files = sorted(place.glob("*.y*ml")) if place.is_dir() else [place]
        own = [file for file in files if not place.is_dir() or "task" in read_yaml(file)]
        if not own:
            raise DataError(f"{place} holds no task: write one as a YAML file with a task name.")
        for file in own:
            read_task(file)
            found.append(str(file.absolute()))
    if not found:
        raise DataError("Name at least one task, as in --tasks arc_easy,gsm8k.")
    return tuple(dict.fromkeys(found))


def read_task(file: Path) -> dict[str, Any]:
    """Return the configuration of a task file, with the files it includes and absolute paths.

    Raises:
        DataError: It cannot be read, names code, or its rows are missing.
    """
    values = read_yaml(file)
    if not isinstance(values.get("task"), str):
        raise DataError(f"{file} names no task: add a line such as `task: my_task`.")
    if any(metric.get("hf_evaluate") for metric in values.get("metric_list") or ()):
        raise DataError(f"{file} loads a metric from the hub (hf_evaluate), which runs code.")
    if values.get("unsafe_code") or "class" in values:
        raise DataError(f"{file} runs code (unsafe_code, class), which is refused.")
    if values.get("dataset_path") not in LOCAL:
        return values
    given = dict(values.get("dataset_kwargs") or {})
    if not given.get("data_files"):
        raise DataError(
            f"{file} names no rows: add dataset_kwargs, data_files, as in `test: rows.jsonl`."
        )
    given["data_files"] = _placed(file, given["data_files"])
    return values | {"dataset_kwargs": given}


def _placed(file: Path, rows: Any) -> Any:
    """Return paths of rows as absolute ones."""
    if isinstance(rows, Mapping):
        return {split: _placed(file, part) for split, part in rows.items()}
    if isinstance(rows, list):
        return [_placed(file, part) for part in rows]
    place = file.absolute().parent / str(rows)
    if not place.is_file():
        raise DataError(f"{file} names the rows {rows}, but there is no file {place}.")
    return str(place)


def read_yaml(file: Path, *, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the plain values of a YAML file, those of included files first.

    Raises:
        DataError: It cannot be read, is not a mapping, or names code.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"There is no task or file {file} ({error.strerror}).") from None
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DataError(
            f"{file} names code at line {line}, which is not run: use templates and built-in "
            "metrics."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise DataError(f"{file} is not valid YAML.") from None
    if not isinstance(values, dict):
        raise DataError(f"{file} must hold a mapping such as `task: my_task`.")
    includes = values.pop("include", [])
    merged: dict[str, Any] = {}
    for one in includes if isinstance(includes, list) else [includes]:
        place = (file.absolute().parent / str(one)).resolve()
        if place in seen:
            raise DataError(f"{file} includes itself through {one}.")
        merged |= read_yaml(place, seen=(*seen, place))
    return merged | values


# -- names of tasks --------------------------------------------------------------------------------


def source_of(task: str) -> dict[str, Any] | Path | None:
    """Return what lm-eval loads for a task: see `lm_eval_tasks.load`."""
    return read_task(Path(task)) if Path(task).is_absolute() else file_of(task)


def file_of(name: str) -> Path | None:
    """Return the file that defines a single task; None for a group or a tag."""
    own = re.compile(rf"^task: *[\"']?{re.escape(name)}[\"']?\s*(#.*)?$", re.MULTILINE)
    files = [file for file, text in _texts() if own.search(text) and "\ngroup:" not in f"\n{text}"]
    return files[0] if len(files) == 1 else None


def _check_name(name: str) -> None:
    """Refuse a name that no file of lm-eval mentions.

    Raises:
        DataError: With the nearest name.
    """
    word = re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])")
    if not any(word.search(text) for _, text in _texts()):
        known = {match[1] for _, text in _texts() for match in NAME.finditer(text)}
        raise DataError(
            f'There is no task "{name}" in lm-eval, and no such file.{nearest(name, sorted(known))}'
        )


def _texts() -> Iterator[tuple[Path, str]]:
    for file in _files(tasks_folder()):
        yield file, file.read_text(encoding="utf-8", errors="replace")


@cache
def _files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.rglob("*.yaml")))
