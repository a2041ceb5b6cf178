"""Classify without generating: the log-likelihood of each label's text after each row's prompt.

The labels are the answers of a dataset, with the tokens that end an answer, so that a label which
begins like another is not preferred for being shorter. A prompt is read once; all labels continue
from its keys and values. Softmax over the labels gives probabilities.

Shapes: `R rows, L labels, B rows of a pass, T tokens of the longest label, V vocabulary`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from studio.chat.decoding import RowGroup, shares_passes
from studio.data.template.template import IGNORED
from studio.data.tokens import Example
from studio.errors import DataError
from studio.evaluation.forgetting import row_losses
from studio.evaluation.ranking import wilson

if TYPE_CHECKING:
    from studio.backbone import Backbone
    from studio.models.loading import Loaded
    from studio.training.batch import TokenRow

MAX_LABELS, PASS_LOGITS, ECE_BINS = 500, 2**25, 15


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
    known = sorted({tuple(_parts(row)[1]) for row in every} - {()})
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
    parts = [_parts(row) for row in rows]
    kept = [
        (prompt, places[tuple(ids)]) for prompt, ids in parts if prompt and tuple(ids) in places
    ]
    return Task(texts, [list(ids) for ids in known], [p for p, _ in kept], [w for _, w in kept])


def _parts(row: TokenRow) -> tuple[list[int], list[int]]:
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
    """Return the log-likelihood of every label after every prompt under the active stack `(R, L)`.

    Prompts of about equal length share a pass; models whose rows cannot share one read each prompt
    with each label in full.
    """
    found = torch.zeros(len(task.prompts), len(task.labels))
    order = sorted(range(len(task.prompts)), key=lambda row: len(task.prompts[row]))
    if not shares_passes(backbone.model):
        (stack,) = backbone.active
        for row in order:
            rows = [_example(task.prompts[row], ids) for ids in task.label_ids]
            found[row] = -torch.tensor(row_losses(loaded, backbone, rows, [stack])[0])
        return found
    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]
    longest = max(len(ids) for ids in task.label_ids)
    size = max(1, PASS_LOGITS // (vocabulary * longest * len(task.labels)))
    with backbone.evaluating(), backbone.without_checkpointing():
        for start in range(0, len(order), size):
            part = order[start : start + size]
            prompts = [task.prompts[row] for row in part]
            found[part] = _continued(loaded, backbone, prompts, task.label_ids)
    return found


def _example(prompt: Sequence[int], ids: Sequence[int]) -> Example:
    labels = np.array([*[IGNORED] * len(prompt), *ids], np.int32)
    return Example(np.array([*prompt, *ids], np.int32), labels, 0)


def _continued(
    loaded: Loaded, backbone: Backbone, prompts: list[list[int]], label_ids: list[list[int]]
) -> Tensor:
    """Return `(B, L)`: read the prompts once, then all labels from their keys and values."""
    rows, labels = len(prompts), len(label_ids)
    group = RowGroup(backbone.model, prompts, loaded.device, shares=True)
    logits_BV, _ = group.prefill()
    firsts = torch.tensor([ids[0] for ids in label_ids], device=loaded.device)
    total_BL = logits_BV.float().log_softmax(-1)[:, firsts]
    longer = [place for place, ids in enumerate(label_ids) if len(ids) > 1]
    if longer:
        group.keep([row for row in range(rows) for _ in longer])
        logits = group.extend([label_ids[place][:-1] for place in longer] * rows)
        width = logits.shape[1]
        targets = [[*label_ids[place][1:], *[-1] * (width + 1 - len(label_ids[place]))]
                   for place in longer]  # fmt: skip
        wanted_T = torch.tensor(targets, device=loaded.device).repeat(rows, 1)
        own = logits.float().log_softmax(-1).gather(-1, wanted_T.clamp_min(0)[..., None])[..., 0]
        rest = own.masked_fill(wanted_T < 0, 0).sum(-1).reshape(rows, len(longer))
        total_BL = total_BL.index_add(1, torch.tensor(longer, device=loaded.device), rest)
    assert total_BL.shape == (rows, labels)
    return total_BL.cpu()


def classification(task: Task, scores: Tensor) -> dict[str, Any]:
    """Return accuracy, macro F1, calibration and confusions of a task's scores `(R, L)`.

    `ece` is the expected calibration error over 15 equal bins of the largest probability
    (arXiv:1706.04599); macro F1 is the mean over labels that are right or predicted somewhere.
    """
    wanted, rows = np.array(task.wanted), len(task.wanted)
    sure, chosen = scores.double().softmax(-1).max(-1)
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
    accuracy = float(right.mean())
    return {
        "classified": rows, "accuracy": accuracy,
        "accuracy_interval": list(wilson(accuracy, rows)),
        "macro_f1": float(f1.mean()), "ece": sum(gaps) / rows, "labels": task.labels,
        "confusions": confusions,
    }  # fmt: skip
