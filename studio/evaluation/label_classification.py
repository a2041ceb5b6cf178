"""Classify without generating: the log-likelihood of each label's text after each row's prompt.

The labels are the answers of a dataset, with the tokens that end an answer, so that a label which
begins like another is not preferred for being shorter. A prompt is read once; all labels continue
from its keys and values. Softmax over the labels gives probabilities. Labels that are numbers are a
scale too: the prediction is then their mean under the probabilities.

Shapes: `R rows, L labels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studio.backbone import Backbone
from studio.data.template.template import IGNORED
from studio.errors import DataError
from studio.evaluation import likelihood
from studio.evaluation.confidence_intervals import wilson
from studio.evaluation.likelihood import Continuations
from studio.models.loading import Loaded
from studio.training.batching import TokenRow

MAX_LABELS, ECE_BINS = 500, 15


class Task(NamedTuple):
    """Labels as texts and token ids, and rows as prompts with the place of the right label."""

    labels: list[str]
    label_ids: list[list[int]]
    prompts: list[list[int]]
    wanted: list[int]


def task_of(rows: Sequence[TokenRow], every: Sequence[TokenRow], tokenizer: Any) -> Task:
    """Return the task of some rows; the labels are the answers of `every` row.

    Raises:
        DataError: The answers are not labels, or some cannot be told apart.
    """
    known = sorted({tuple(parts(row)[1]) for row in every} - {()})
    if not 2 <= len(known) <= MAX_LABELS or (len(known) == len(every) and len(every) > 2):
        raise DataError(
            f"The data has {len(known):,} different answers in {len(every):,} rows: classifying "
            f"takes 2 to {MAX_LABELS} labels that repeat. Choose a dataset with a label column."
        )
    texts = [tokenizer.decode(list(ids), skip_special_tokens=True).strip() for ids in known]
    for place, (ids, text) in enumerate(zip(known, texts, strict=True)):
        if text in texts[:place]:
            raise DataError(
                f'Two labels are both "{text}" but for spaces or tokens that are not shown: make '
                "them equal in the data."
            )
        following = known[place + 1] if place + 1 < len(known) else ()
        if following[: len(ids)] == ids:
            raise DataError(
                f'The label "{text}" tokenises to the beginning of "{texts[place + 1]}", and no '
                "token ends it, so the shorter would always win: choose a chat template that ends "
                "answers (data.chat_template), or rename a label."
            )
    places = {ids: place for place, ids in enumerate(known)}
    kept = [
        (prompt, places[tuple(ids)])
        for prompt, ids in map(parts, rows)
        if prompt and tuple(ids) in places
    ]
    if not kept:
        raise DataError("No row has a prompt before its label, so there is nothing to classify.")
    return Task(texts, [list(ids) for ids in known], [p for p, _ in kept], [w for _, w in kept])


def parts(row: TokenRow) -> tuple[list[int], list[int]]:
    """Return a row's tokens before its last answer, and those of that answer."""
    ids, trained = row.input_ids.tolist(), (row.labels != IGNORED).tolist()
    stop = len(ids)
    while stop and not trained[stop - 1]:
        stop -= 1
    start = stop
    while start and trained[start - 1]:
        start -= 1
    return ids[:start], ids[start:stop]


def score(loaded: Loaded, backbone: Backbone, task: Task) -> Tensor:
    """Return the log-likelihood `(R, L)` of labels after prompts under the active stack."""
    found = torch.zeros(len(task.prompts), len(task.labels))
    (stack,) = backbone.active
    asked = [Continuations(prompt, task.label_ids) for prompt in task.prompts]
    for row, (scores,) in likelihood.score(loaded, backbone, asked, [stack]):
        found[row] = torch.tensor([total for total, _ in scores])
    return found


def classification(task: Task, scores: Tensor) -> dict[str, Any]:
    """Return accuracy, macro F1, calibration and confusions of a task's scores `(R, L)`.

    `ece` is the expected calibration error over 15 equal bins of the largest probability
    (arXiv:1706.04599); macro F1 is the mean over labels that are right or predicted somewhere.
    """
    wanted, rows = np.array(task.wanted), len(task.wanted)
    probabilities = scores.double().softmax(-1)
    sure, chosen = probabilities.max(-1)
    predicted, confidence = chosen.numpy(), sure.numpy()
    right = predicted == wanted
    counts = np.zeros((len(task.labels), len(task.labels)), int)
    np.add.at(counts, (wanted, predicted), 1)
    hits, support, given = counts.diagonal(), counts.sum(1), counts.sum(0)
    present = (support + given) > 0
    f1 = 2 * hits[present] / (support + given)[present]
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = [abs(float((right[bins == b] - confidence[bins == b]).sum())) for b in range(ECE_BINS)]
    confusions = [
        [task.labels[a], task.labels[b], int(counts[a, b])]
        for a, b in sorted(np.argwhere(counts).tolist(), key=lambda at: -counts[at[0], at[1]])
    ]
    accuracy, scale = float(right.mean()), numbers_of(task.labels)
    return {
        **(regression(probabilities.numpy() @ scale, scale[wanted]) if scale is not None else {}),
        "classified": rows, "accuracy": accuracy,
        "accuracy_interval": list(wilson(accuracy, rows)),
        "macro_f1": float(f1.mean()), "ece": sum(gaps) / rows, "labels": task.labels,
        "confusions": confusions,
    }  # fmt: skip


def numbers_of(labels: Sequence[str]) -> NDArray[np.float64] | None:
    """Return the labels as numbers; None if one is not, or if they are only two."""
    try:
        found = np.array([float(label) for label in labels])
    except ValueError:
        return None
    return found if len(found) > 2 and np.isfinite(found).all() else None


def regression(
    predicted: NDArray[np.float64], wanted: NDArray[np.float64]
) -> dict[str, float | None]:
    """Return the mean absolute and the root mean squared error, and Pearson's correlation."""
    errors = predicted - wanted
    varies = predicted.std() > 0 and wanted.std() > 0
    return {
        "mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt((errors**2).mean())),
        "pearson": float(np.corrcoef(predicted, wanted)[0, 1]) if varies else None,
    }  # fmt: skip
