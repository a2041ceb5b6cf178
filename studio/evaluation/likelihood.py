"""Log-likelihoods of continuations after contexts, under several stacks; classification by them.

A context with several continuations is read once; each continuation goes on from its keys and
values, which are not copied. A context with one continuation is a packed row. Every row stands in
the batch once per stack, where the model can route rows; else the stacks take turns.

Passes are small on a CPU, whose cache then holds what they compute.

Rows are classified without generating: the labels are the answers of a dataset, with the tokens
that end an answer, so that a label which begins like another is not preferred for being shorter.
Softmax over the labels gives probabilities. Labels that are numbers are a scale too: the prediction
is then their mean under the probabilities.

Shapes: `S stacks, G contexts of a pass, B = S·G rows, T tokens, N positions, V vocabulary, R rows,
L labels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studio.backbone import Backbone
from studio.backbone.composition import Stack
from studio.chat.decoding import RowGroup, length_of_switch, shares_passes
from studio.data.template.template import IGNORED
from studio.errors import DataError, MethodError
from studio.evaluation.ranking_and_intervals import wilson
from studio.models.loading import Loaded
from studio.training.allocator_and_threads import WIDE_NUMBERS
from studio.training.batching import PackedBatch, TokenRow
from studio.training.loss import packed_hidden, plain_head

PASS_TOKENS, PASS_LOGITS = {"cpu": 2**11, "cuda": 2**15}, {"cpu": 2**22, "cuda": 2**27}
HEAD_ROWS = 64
MAX_LABELS, ECE_BINS = 500, 15
Scores = list[tuple[float, bool]]  # of a context's continuations: the sum, and if it is greedy


class Continuations(NamedTuple):
    """A context, not empty, and its continuations, none of them empty."""

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]


def score(
    loaded: Loaded, backbone: Backbone, asked: Sequence[Continuations], stacks: Sequence[Stack]
) -> Iterator[tuple[int, list[Scores]]]:
    """Yield the place of each context with its scores under each stack, pass by pass."""
    turns = [list(stacks)] if routable(backbone, stacks) else [[stack] for stack in stacks]
    continues = shares_passes(backbone.model) and length_of_switch(backbone.model) is None
    several = [n for n, one in enumerate(asked) if continues and len(one.continuations) > 1]
    single = [n for n, one in enumerate(asked) if not continues or len(one.continuations) == 1]
    for places, run in ((several, _continued), (single, _whole)):
        for part in _passes(loaded, asked, places, max(map(len, turns))):
            own = [asked[place] for place in part]
            with backbone.evaluating(), backbone.without_checkpointing():
                found = [one for turn in turns for one in run(loaded, backbone, own, turn)]
            for number, place in enumerate(part):
                yield place, [scores[number] for scores in found]


def routable(backbone: Backbone, stacks: Sequence[Stack]) -> bool:
    """Return True if rows of these stacks may share a pass."""
    if len(set(stacks)) == 1:
        return True
    try:
        backbone.use_rows(stacks)
    except MethodError:
        return False
    return shares_passes(backbone.model)


def use(backbone: Backbone, stacks: Sequence[Stack], rows: int) -> list[Stack]:
    """Activate each stack for `rows` rows of the next batches; return those of rows that differ."""
    if len(set(stacks)) == 1:
        backbone.use(stacks[0])
        return []
    own = [stack for stack in stacks for _ in range(rows)]
    backbone.use_rows(own)
    return own


def _passes(
    loaded: Loaded, asked: Sequence[Continuations], places: Sequence[int], stacks: int
) -> Iterator[list[int]]:
    """Yield the places of contexts that share a pass: of about the same length, longest first."""
    device = "cuda" if loaded.device.type == "cuda" else "cpu"
    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]
    part, width, tail = list[int](), 0, 0

    def size(place: int) -> tuple[int, int]:
        one = asked[place]
        longest = max(map(len, one.continuations))
        alone = len(one.continuations) == 1
        return len(one.context) + longest * alone, longest

    for place in sorted(places, key=size, reverse=True):
        tokens, longest = size(place)
        width, tail, rows = max(width, tokens), max(tail, longest), stacks * (len(part) + 1)
        full = rows * width > PASS_TOKENS[device] or rows * tail * vocabulary > PASS_LOGITS[device]
        if part and full:
            yield part
            part, width, tail = [], tokens, longest
        part.append(place)
    if part:
        yield part


def _continued(
    loaded: Loaded, backbone: Backbone, asked: Sequence[Continuations], stacks: Sequence[Stack]
) -> list[list[Scores]]:
    """Read the contexts once, then one continuation of each per step, the longest first."""
    use(backbone, stacks, len(asked))
    rows = list(asked) * len(stacks)
    group = RowGroup(backbone.model, [one.context for one in rows], loaded.device, shares=True)
    first_BV = group.prefill()[0].float().log_softmax(-1)
    best_B, every_B = first_BV.argmax(-1), torch.arange(len(rows), device=loaded.device)
    sizes = [[-len(ids) for ids in one.continuations] for one in rows]
    order = [sorted(range(len(own)), key=own.__getitem__) for own in sizes]
    found: list[Scores] = [[(0.0, False)] * len(one.continuations) for one in rows]
    for step in range(max(map(len, order))):
        going = [own[step] if step < len(own) else None for own in order]
        ids = [[0] if at is None else list(one.continuations[at])
               for one, at in zip(rows, going, strict=True)]  # fmt: skip
        firsts_B = torch.tensor([own[0] for own in ids], device=loaded.device)
        sums_B, greedy_B = first_BV[every_B, firsts_B], best_B == firsts_B
        if max(map(len, ids)) > 1:
            rest_B, right_B = _rest(group, ids)
            sums_B, greedy_B = sums_B + rest_B, greedy_B & right_B
        scored = zip(going, sums_B.tolist(), greedy_B.tolist(), strict=True)
        for own, (at, total, greedy) in zip(found, scored, strict=True):
            if at is not None:
                own[at] = (total, greedy)
    return [found[start : start + len(asked)] for start in range(0, len(rows), len(asked))]


def _rest(group: RowGroup, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the log-likelihood of the tokens after the first `(B,)`, and if all are greedy."""
    width = max(map(len, ids)) - 1
    tails, wanted = (
        [[*part, *[fill] * (width - len(part))] for part in parts]
        for parts, fill in (([own[:-1] for own in ids], 0), ([own[1:] for own in ids], -1))
    )
    logits_BTV = group.peek(tails).float()
    wanted_BT = torch.tensor(wanted, device=logits_BTV.device)
    own_BT = logits_BTV.gather(-1, wanted_BT.clamp_min(0)[..., None])[..., 0]
    own_BT = (own_BT - logits_BTV.logsumexp(-1)).masked_fill(wanted_BT < 0, 0)
    right_BT = (logits_BTV.argmax(-1) == wanted_BT) | (wanted_BT < 0)
    return own_BT.sum(-1), right_BT.all(-1)


def _whole(
    loaded: Loaded, backbone: Backbone, asked: Sequence[Continuations], stacks: Sequence[Stack]
) -> list[list[Scores]]:
    """Read every context with each of its continuations as a packed row."""
    rows = [(one.context, ids) for one in asked for ids in one.continuations]
    use(backbone, stacks, len(rows))
    batch = _packed(rows * len(stacks), loaded.device)
    head = plain_head(backbone)
    if head is None:
        found = backbone.packed_logits(batch.ids_T, batch.lengths, batch.keep_N, batch.kept)
    else:
        found = packed_hidden(backbone, head, batch)
    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]
    on_cpu = loaded.device.type == "cpu"
    # With fewer rows at once a product reads the head's weights again and again from memory.
    size = max(HEAD_ROWS, (WIDE_NUMBERS if on_cpu else PASS_LOGITS["cuda"]) // vocabulary)
    logs, right = [], []
    for part, wanted_N in zip(found.split(size), batch.targets_N.split(size), strict=True):
        logits_NV = (part if head is None else part @ head.weight.T).float()
        own_N = logits_NV.gather(-1, wanted_N[:, None])[:, 0]
        logs.append(own_N - logits_NV.logsumexp(-1))
        right.append(logits_NV.argmax(-1) == wanted_N)
    sums, greedy = (torch.cat(one).split(list(batch.kept)) for one in (logs, right))
    scores = iter([(float(a.sum()), bool(b.all())) for a, b in zip(sums, greedy, strict=True)])
    return [[[next(scores) for _ in one.continuations] for one in asked] for _ in stacks]


def _packed(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device
) -> PackedBatch:
    """Return rows of context and continuation; the last token of each is only predicted."""
    lengths = [len(context) + len(ids) - 1 for context, ids in rows]
    ends = list(accumulate(lengths))
    inputs = [token for context, ids in rows for token in (*context, *ids[:-1])]
    spans = zip(ends, rows, strict=True)
    keep = [at for end, (_, ids) in spans for at in range(end - len(ids), end)]
    targets = [token for _, ids in rows for token in ids]
    ids_T, keep_N, targets_N = (torch.tensor(one, device=device) for one in (inputs, keep, targets))
    kept = tuple(len(ids) for _, ids in rows)
    return PackedBatch(ids_T, tuple(lengths), keep_N, targets_N, (), kept)


# -- classification --------------------------------------------------------------------------------


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


def score_labels(loaded: Loaded, backbone: Backbone, task: Task) -> Tensor:
    """Return the log-likelihood `(R, L)` of labels after prompts under the active stack."""
    found = torch.zeros(len(task.prompts), len(task.labels))
    (stack,) = backbone.active
    asked = [Continuations(prompt, task.label_ids) for prompt in task.prompts]
    for row, (scores,) in score(loaded, backbone, asked, [stack]):
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
