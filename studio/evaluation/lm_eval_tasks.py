"""Load tasks through lm-eval, ask the lanes, and make figures of what it measured.

Standard errors are lm-eval's own; where it resamples, with 1,000 resamples in this process. Two
lanes saw the same documents, so their difference has a paired interval: of the mean difference
(Student's t) where a figure is a mean, else from resampled documents.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import BaseLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from lm_eval import evaluator
from lm_eval import utils as lm_eval_utils
from lm_eval.api import metrics, registry
from lm_eval.tasks import TaskManager

from studio.errors import DataError, StudioError, Unreached, is_transient, nearest
from studio.evaluation.lm_eval_model import KINDS, LaneModel
from studio.evaluation.ranking_and_intervals import student_t

logger = logging.getLogger(__name__)

RESAMPLES, PAIRED_RESAMPLES = 1000, 200
EXAMPLES, SHOWN = 8, 600  # documents per task that a report shows, and characters of their prompts
Loaded = dict[str, Any]  # as lm-eval's task manager returns it: tasks, groups, group_map


def load(task: str, source: dict[str, Any] | Path | None, *, num_fewshot: int, seed: int) -> Loaded:
    """Return a task, or the tasks of a group, with their documents.

    Args:
        task: Its name, or the path of its file.
        source: Its configuration, the file of lm-eval that holds it, or None for a group or tag.
        num_fewshot: Examples in each prompt; -1 uses the task's own.

    Raises:
        DataError: It does not exist, cannot be built, or would run code.
        Unreached: Its documents are not here, and the hub cannot be reached.
    """
    _prepare()
    local = isinstance(source, dict)
    try:
        if isinstance(source, dict):
            _check_metrics(task, source)
            found: Loaded = TaskManager(include_defaults=False).load([source])
        elif source is not None:
            found = TaskManager(include_defaults=False).load([str(source)])
        elif task in _manager().all_tasks:
            found = _manager().load([task])
        else:
            words = nearest(task, _manager().all_tasks)
            raise DataError(f'There is no task "{task}" in lm-eval.{words}')
    except StudioError:
        raise
    except Exception as error:  # of lm-eval, datasets, the hub's library: dozens of kinds
        logger.exception("the task %s cannot be loaded", task)
        raise _meaning(Path(task).name if local else task, error, local) from None
    for name, one in found["tasks"].items():
        if getattr(one, "UNSAFE_CODE", False):
            raise DataError(f'The task "{name}" runs code that the model writes: it is refused.')
        if getattr(one, "MULTIMODAL", False):
            raise DataError(f'The task "{name}" has images or sound; only text is measured here.')
        own = one.get_config("num_fewshot")
        if num_fewshot >= 0 and own != 0:
            one.set_config(key="num_fewshot", value=num_fewshot)
        elif own is None:
            one.set_config(key="num_fewshot", value=0)
        one.set_fewshot_seed(seed=seed)
    return found


def _prepare() -> None:
    """Let lm-eval resample in this process, and render templates in a sandbox."""
    os.environ["DISABLE_MULTIPROC"] = "1"
    os.environ.setdefault("TQDM_DISABLE", "1")
    if not isinstance(lm_eval_utils.env, SandboxedEnvironment):
        sandbox = SandboxedEnvironment(
            loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
        )
        sandbox.filters.update(lm_eval_utils.env.filters)
        lm_eval_utils.env = sandbox


@cache
def _manager() -> TaskManager:
    return TaskManager()


def _check_metrics(task: str, config: dict[str, Any]) -> None:
    """Refuse a metric that lm-eval would fetch from the hub."""
    known = registry.metric_registry.keys()
    for one in config.get("metric_list") or ():
        if (name := str(one.get("metric"))) not in known:
            raise DataError(f'{task} has an unknown metric "{name}".{nearest(name, list(known))}')


def _meaning(task: str, error: Exception, local: bool) -> StudioError:
    text = f"{type(error).__name__} {error}".lower()
    if is_transient(error) or "offline" in text or "reach" in text:
        return Unreached(
            f'The documents of the task "{task}" are not on this machine, and the hub cannot be '
            "reached: go online once, or write a task file with rows of its own."
        )
    if "gated" in text or "401" in text or "403" in text:
        return DataError(
            f'The documents of "{task}" need permission: `studio models token --token -`.'
        )
    where = (
        "its dataset_path, splits and templates" if local else "whether its dataset still exists"
    )
    return DataError(f'The task "{task}" cannot be loaded: check {where}. The log has the reason.')


def requests_of(found: Loaded, model: LaneModel, *, limit: int, chat: bool) -> dict[str, list[Any]]:
    """Return the requests of tasks by kind; they are built once for all lanes."""
    asked: dict[str, list[Any]] = defaultdict(list)
    for name, task in found["tasks"].items():
        try:
            task.build_all_requests(
                limit=limit or None, apply_chat_template=chat, fewshot_as_multiturn=chat,
                chat_template=model.apply_chat_template if chat else None,
                tokenizer_name=model.tokenizer_name,
            )  # fmt: skip
        except StudioError:
            raise
        except Exception:
            logger.exception("the prompts of %s cannot be made", name)
            raise DataError(
                f'The prompts of "{name}" cannot be made of its documents: check its templates and '
                "the number of few-shot examples. The log has the reason."
            ) from None
        task.build_all_requests = lambda **_: None  # for every lane again otherwise
        for one in task.instances:
            asked[one.request_type] += [one] * one.repeats
    if unknown := [kind for kind in asked if kind not in KINDS]:
        raise DataError(f"The task asks for {unknown[0]}, which is not supported.")
    return asked


def measure(
    found: Loaded, model: LaneModel, lanes: int, *, limit: int, chat: bool
) -> Iterator[dict[str, Any]]:
    """Yield what lm-eval measures of each lane, from answers that are known."""
    for lane in range(lanes):
        model.lane = lane
        for task in found["tasks"].values():
            for one in task.instances:
                one.resps, one.filtered_resps = [], {}
        yield evaluator.evaluate(
            model, found, limit=limit or None, bootstrap_iters=RESAMPLES,
            apply_chat_template=chat, fewshot_as_multiturn=chat,
        )  # fmt: skip


def figures(found: Loaded, measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per task or group and figure: values, standard errors, differences.

    A difference is that of a lane from the first, `[difference, low, high]` with a 95 % interval.
    """
    first, rows = measured[0], []
    for task, own in first["results"].items():
        for key, value in own.items():
            metric, comma, kept = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = f"{metric}_stderr,{kept}"
            several = sum(other.partition(",")[0] == metric for other in own) > 1
            better = first["higher_is_better"].get(task, {}).get(metric)
            errors = [one["results"][task].get(error) for one in measured]
            rows.append({
                "task": task, "metric": f"{metric} ({kept})" if several else metric,
                "best": {True: "max", False: "min"}.get(better, ""),
                "documents": own.get("sample_len"), "num_fewshot": first["n-shot"].get(task),
                "values": [one["results"][task][key] for one in measured],
                "errors": [e if isinstance(e, int | float) else None for e in errors],
                "differences": _differences(found, measured, task, metric, kept),
            })  # fmt: skip
    return rows


def _differences(
    found: Loaded, measured: Sequence[dict[str, Any]], task: str, metric: str, kept: str
) -> list[list[float] | None]:
    """Return the paired difference of each lane from the first; None for it and for groups."""
    if task not in found["tasks"]:
        return [None] * len(measured)
    aggregate = found["tasks"][task].aggregation().get(metric, metrics.mean)
    lanes = [
        {one["doc_id"]: one[metric] for one in lane["samples"][task]
         if one["filter"] == kept and metric in one}
        for lane in measured
    ]  # fmt: skip
    pairs = [[(lanes[0][doc], own[doc]) for doc in lanes[0] if doc in own] for own in lanes[1:]]
    return [None, *(paired(pair, aggregate) for pair in pairs)]


def paired(
    pairs: Sequence[tuple[Any, Any]], aggregate: Callable[[list[Any]], float]
) -> list[float] | None:
    """Return the difference of two aggregates over the same documents, with its 95 % interval."""
    count = len(pairs)
    if count < 2:
        return None
    if aggregate is metrics.mean:
        gaps = np.array([float(b) - float(a) for a, b in pairs])
        middle = float(gaps.mean())
        half = float(student_t(count - 1) * gaps.std(ddof=1) / count**0.5)
        return [middle, middle - half, middle + half]

    def gap(places: Sequence[int]) -> float:
        return float(aggregate([pairs[n][1] for n in places])) - float(
            aggregate([pairs[n][0] for n in places])
        )

    draw = np.random.default_rng(0)
    drawn = [gap(draw.integers(count, size=count).tolist()) for _ in range(PAIRED_RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return [gap(range(count)), low, high]


def examples(found: Loaded, measured: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the first documents of every task with the lanes' answers."""
    for task in found["tasks"]:
        kept = next((one["filter"] for one in measured[0]["samples"][task]), "")
        lanes = [[one for one in lane["samples"][task] if one["filter"] == kept]
                 for lane in measured]  # fmt: skip
        for rows in list(zip(*lanes, strict=True))[:EXAMPLES]:
            prompt = str(rows[0]["arguments"][0][0])
            yield {
                "task": task, "prompt": prompt[-SHOWN:], "wanted": _wanted(rows[0])[:SHOWN],
                "answers": [_answer(one)[:SHOWN] for one in rows],
                "scores": [{key: one[key] for key in one["metrics"]
                            if isinstance(one[key], int | float)} for one in rows],
            }  # fmt: skip


def _wanted(sample: dict[str, Any]) -> str:
    target, asked = sample["target"], sample["arguments"]
    if isinstance(target, int) and len(asked) > target and len(asked[0]) > 1:
        return str(asked[target][1]).strip()
    return "" if len(asked[0]) == 1 else str(target)


def _answer(sample: dict[str, Any]) -> str:
    """Return the chosen continuation, the generated text, or the log-likelihood of a text."""
    found = sample["filtered_resps"]
    if isinstance(found[0], list | tuple):
        best = max(range(len(found)), key=lambda place: found[place][0])
        return str(sample["arguments"][best][1]).strip()
    return f"{found[0]:.4f}" if isinstance(found[0], float) else str(found[0])
