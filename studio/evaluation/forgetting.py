"""Measure forgetting: how an adapter changes its base on texts that the task does not touch.

Three figures on a small general set, the embedded one (`general.jsonl`) or a dataset: the mean
`KL(base ‖ adapted)` per token over the base's own greedy answers to neutral prompts, how many of
these answers change, and the loss per token of base and adapted model. Base and adapted model are
stacks of one resident base, so a batch holds every row twice. Full fine-tuning changes the base
itself: it is observed before the first step and again at the end. A curve compares every point with
one observation of the base, so that all points rest on the same rows and prompts.

The divergence is the headline: it is about what the base does, so it is meaningful for a base that
never knew the general set, whose loss may fall.

Time is bounded: the first row shows how fast the model is, and what does not fit is left out. The
divergence is that of all answers that were made, so that it rests on the same as their changes do.

Shapes: `S stacks, R rows, N positions of answer tokens, V vocabulary`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from studio import atomic
from studio.backbone.composition import Stack
from studio.chat.decoding import shares_passes
from studio.chat.lanes import Sampling
from studio.data.conversation_records import Conversation, Document, Problem
from studio.data.prepare_run_data import drawn, prepare
from studio.data.template.choose_template import choose
from studio.data.template.template import IGNORED
from studio.data.token_arrays import Example
from studio.evaluation.likelihood import use
from studio.evaluation.ranking_and_intervals import student_t
from studio.spec import DataSource, RunSpec
from studio.training.batching import pack
from studio.training.loss import loss_sums
from studio.training.sample_answers import continuations, prompt_of
from studio.training.starting_point import num_tokens_before
from studio.training.training_events import Forgotten

if TYPE_CHECKING:
    from studio.backbone import Backbone
    from studio.home import Home
    from studio.models.loading import Loaded
    from studio.training.training_session import Session

EMBEDDED, BEFORE = Path(__file__).with_name("general.jsonl"), "general-before.safetensors"
MIN_SECONDS, TIME_FRACTION = 3.0, 0.05
MAX_ROWS, MAX_PROMPTS, MAX_NEW_TOKENS, MAX_TOKENS = 60, 12, 16, 256
PASS_TOKENS, PASS_LOGITS = 1024, 2**24
Answered = tuple[Sequence[int], Sequence[int]]  # a prompt and its answer


class GeneralSet(NamedTuple):
    """Rows of a general set with their domains, and what ends an answer."""

    name: str
    rows: list[Example]
    domains: list[str]
    prompts: list[tuple[int, ...]]
    stop_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Observed:
    """One stack on the general set: summed loss per row, and greedy answers with stop tokens."""

    losses: list[float]
    answers: list[list[int]]


def general_set_of(spec: RunSpec, loaded: Loaded, home: Home) -> GeneralSet | None:
    """Return the general set of a run; None if it measures no forgetting."""
    train = spec.train
    if not train.measure_forgetting or train.fsdp:
        return None
    before = num_tokens_before(spec)
    return general_set(loaded, home, train.general_data, tokens_before=before)


def general_set(
    loaded: Loaded, home: Home | None, path: str = "", *, tokens_before: int = 0
) -> GeneralSet:
    """Return the embedded general set, or that of a dataset, as the base's chat template has it.

    Args:
        path: The dataset; empty for the embedded set.
        tokens_before: Virtual tokens of the method, which the rows must leave room for.

    Raises:
        DataError: No row of the dataset can be used.
    """
    tokenizer = loaded.tokenizer
    room = min(MAX_TOKENS, loaded.facts.context_length - tokens_before)
    template = choose(tokenizer)
    if path:
        source, limit = DataSource(path=path), max(1, room)
        found = prepare(source, tokenizer, context_length=limit, seed=0, home=home, split=False)
        taken = drawn(found.train, MAX_ROWS, seed=0)
        taken.order.sort()  # in the file's order, so that the same rows give the same prompts
        rows = list(taken)
        domains = ["rows"] * len(rows)
    else:
        rows, domains = [], []
        texts = [json.loads(line) for line in EMBEDDED.read_text(encoding="utf-8").splitlines()]
        encoded = template.encode_batch([_record(values) for values in texts])
        for number, values in enumerate(texts):
            if isinstance(one := encoded.row(number), Problem):
                continue
            ids = one.ids[:room]
            labels = np.where(one.trained[:room], ids, IGNORED).astype(np.int32)
            if (labels[1:] != IGNORED).any():
                rows.append(Example(ids, labels, number + 1))
                domains.append(values["domain"])
    asked = [prompt.ids for row in rows if (prompt := prompt_of(row, tokenizer))]
    fitting = [ids for ids in asked if len(ids) + MAX_NEW_TOKENS <= room]
    return GeneralSet(path, rows, domains, fitting[:MAX_PROMPTS], tuple(template.stop_ids))


def _record(values: dict[str, Any]) -> Conversation | Document:
    if "text" in values:
        return Document(values["text"])
    turns = values.get("messages") or [
        {"role": "user", "content": values["prompt"]},
        {"role": "assistant", "content": values["completion"]},
    ]
    return Conversation(turns)


def measure(
    loaded: Loaded, backbone: Backbone, general: GeneralSet, stack: Stack, *,
    seconds: float = math.inf, base: Observed | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the forgetting of a stack against the base; see `compared`.

    It takes about `seconds`, or what `base`, an earlier observation of the base, needs.
    """
    started = time.monotonic()
    if base is None:
        base, adapted = observe(loaded, backbone, general, [(), stack], seconds=0.7 * seconds)
    else:
        (adapted,) = observe(loaded, backbone, general, [stack], like=base)
    kl = kl_sums(loaded, backbone, list(zip(general.prompts, base.answers, strict=False)), stack)
    return compared(general, base, adapted, kl=kl, seconds=time.monotonic() - started)


def observe(
    loaded: Loaded, backbone: Backbone, general: GeneralSet, stacks: Sequence[Stack], *,
    seconds: float = math.inf, like: Observed | None = None,
) -> list[Observed]:  # fmt: skip
    """Observe each stack on as many rows and prompts as fit into `seconds`, or as `like` has."""
    started = time.monotonic()
    rows = general.rows if like is None else general.rows[: len(like.losses)]
    losses: list[list[float]] = [[] for _ in stacks]
    rate, place = 0.0, 0  # tokens of the set per second, once a row was seen
    while place < len(rows):
        spent = time.monotonic() - started
        room = rate * (seconds / 2 - spent) if place and like is None else math.inf
        part = rows[place : place + 1]
        while place and place + len(part) < len(rows) and _tokens(part) < PASS_TOKENS:
            part.append(rows[place + len(part)])
        while part and _tokens(part) > room:
            part.pop()
        if not part:
            break
        for own, found in zip(losses, row_losses(loaded, backbone, part, stacks), strict=True):
            own += found
        place += len(part)
        rate = _tokens(rows[:place]) / max(1e-9, time.monotonic() - started)
    left = seconds - (time.monotonic() - started)
    prompts, tokens = general.prompts, 0
    if like is None:
        fitting = [tokens := tokens + len(ids) for ids in prompts]
        prompts = prompts[: sum(one < max(1.0, rate * left / 3) for one in fitting)]
    else:
        prompts, left = prompts[: len(like.answers)], math.inf
    limit = max(map(len, like.answers), default=0) if like else MAX_NEW_TOKENS
    answers = greedy_rows(
        loaded, backbone, prompts, stacks, stop_ids=general.stop_ids, limit=limit, seconds=left
    )
    return [Observed(own, found) for own, found in zip(losses, answers, strict=True)]


def _tokens(rows: Sequence[Example]) -> int:
    return sum(len(row.input_ids) for row in rows)


def row_losses(
    loaded: Loaded, backbone: Backbone, rows: Sequence[Example], stacks: Sequence[Stack]
) -> list[list[float]]:
    """Return the summed negative log-likelihood of each row under each stack, from one pass."""
    batches = [pack([row], loaded.device) for row in rows] * len(stacks)
    use(backbone, stacks, len(rows))
    with backbone.evaluating():
        found = torch.stack(loss_sums(backbone, batches, [0.0] * len(batches))).tolist()
    return [found[start : start + len(rows)] for start in range(0, len(found), len(rows))]


def greedy_rows(
    loaded: Loaded, backbone: Backbone, prompts: Sequence[Sequence[int]], stacks: Sequence[Stack],
    *, stop_ids: Collection[int], limit: int = MAX_NEW_TOKENS, seconds: float = math.inf,
) -> list[list[list[int]]]:  # fmt: skip
    """Return each stack's greedy answers, up to a stop token and with it.

    When time is up all of them end at the same length, so that they remain comparable. Logits that
    overflow give token 0, so that the divergence there is NaN.
    """
    if not prompts or not limit:
        return [[] for _ in stacks]
    if len(stacks) > 1 and not shares_passes(backbone.model):
        first, *others = stacks
        how: dict[str, Any] = {"stop_ids": stop_ids}
        own = greedy_rows(
            loaded, backbone, prompts, [first], limit=limit, seconds=seconds / len(stacks), **how
        )
        limit = max(map(len, own[0]))
        return own + [
            greedy_rows(loaded, backbone, prompts, [one], limit=limit, **how)[0] for one in others
        ]
    rows = list(prompts) * len(stacks)
    found = continuations(
        backbone, rows, [[Sampling()]] * len(rows), device=loaded.device, stop_ids=stop_ids,
        limits=[limit] * len(rows), seconds=seconds, stacks=use(backbone, stacks, len(prompts)),
    )  # fmt: skip
    ends = [0 if one.overflows else one.stop for one in found]
    answers = [
        one.ids if end is None else [*one.ids, end] for one, end in zip(found, ends, strict=True)
    ]
    size = len(prompts)
    return [answers[start : start + size] for start in range(0, len(answers), size)]


def kl_sums(
    loaded: Loaded, backbone: Backbone, answered: Sequence[Answered], stack: Stack
) -> list[float]:
    """Return `Σ_n Σ_v p_v (log p_v − log q_v)` of each of the base's answers, `q` of the stack."""
    pairs = answer_logits(loaded, backbone, answered, [(), stack])
    return [float(kl_sum(base_NV, adapted_NV)) for base_NV, adapted_NV in pairs]


def _fitting(loaded: Loaded, answered: Sequence[Answered], numbers: int) -> Sequence[Answered]:
    """Return the first answers whose logits fit into `numbers` values; at least one."""
    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]
    ends = accumulate(len(answer) for _, answer in answered)
    return answered[: max(1, sum(end * vocabulary <= numbers for end in ends))]


def answer_logits(
    loaded: Loaded, backbone: Backbone, answered: Sequence[Answered], stacks: Sequence[Stack]
) -> Iterator[tuple[Tensor, ...]]:
    """Yield for each answer every stack's logits `(N, V)` where the answer's tokens are predicted.

    A pass holds up to `PASS_LOGITS` values, but at least one answer.
    """
    while answered:
        part = _fitting(loaded, answered, PASS_LOGITS // len(stacks))
        batch = pack([_example(*one) for one in part] * len(stacks), loaded.device)
        use(backbone, stacks, len(part))
        with backbone.evaluating():
            logits_NV = backbone.packed_logits(batch.ids_T, batch.lengths, batch.keep_N, batch.kept)
        rows = logits_NV.split(list(batch.kept))
        yield from (rows[place :: len(part)] for place in range(len(part)))
        answered = answered[len(part) :]


def kl_sum(base_NV: Tensor, adapted_NV: Tensor) -> Tensor:
    """Return `Σ_n KL(base_n ‖ adapted_n)` of logits, in float32."""
    base, adapted = base_NV.float().log_softmax(-1), adapted_NV.float().log_softmax(-1)
    return (base.exp() * (base - adapted)).sum()


def _example(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    ids = np.array([*prompt, *answer], np.int32)
    labels = ids.copy()
    labels[: len(prompt)] = IGNORED
    return Example(ids, labels, 0)


def compared(
    general: GeneralSet, before: Observed, after: Observed, *, kl: Sequence[float], seconds: float
) -> dict[str, Any]:
    """Return what a run, a passport and the tables hold of forgetting.

    `forgetting` is the KL divergence per token, `rise` that of the loss (negative if the general
    set became easier), each with a 95 % interval over answers or rows.
    """
    known = min(len(before.losses), len(after.losses))
    targets = np.array([int((row.labels[1:] != IGNORED).sum()) for row in general.rows[:known]])
    old, new = np.array(before.losses[:known]), np.array(after.losses[:known])
    tokens, names = max(1, int(targets.sum())), np.array(general.domains[:known])
    domains = {
        name: [float(one[names == name].sum() / targets[names == name].sum()) for one in (old, new)]
        for name in dict.fromkeys(general.domains[:known])
    }
    lengths = np.array([len(answer) for answer in before.answers[: len(kl)]])
    forgetting, interval = _ratio(np.array(kl), lengths)
    rise, rise_interval = _ratio(new - old, targets)
    pairs = list(zip(before.answers, after.answers, strict=False))
    return {
        "forgetting": forgetting, "interval": interval,
        "loss_before": float(old.sum() / tokens), "loss_after": float(new.sum() / tokens),
        "rise": rise, "rise_interval": rise_interval,
        "changed": sum(a != b for a, b in pairs), "prompts": len(pairs),
        "rows": known, "tokens": tokens, "domains": domains, "seconds": round(seconds, 3),
        "set": general.name or "embedded",
    }  # fmt: skip


def _ratio(sums: Any, counts: Any) -> tuple[float | None, list[float] | None]:
    """Return `Σ sums / Σ counts` and its 95 % interval, by the linearised variance."""
    size, total = len(sums), float(counts.sum())
    if not total:
        return None, None
    ratio = float(sums.sum()) / total
    if size < 2:
        return ratio, None
    spread = float(((sums - ratio * counts) ** 2).sum())
    half = student_t(size - 1) * math.sqrt(spread * size / (size - 1)) / total
    return ratio, [ratio - half, ratio + half]


class RunForgetting:
    """Forgetting of a run: measured at its end and, for a curve, at every evaluation."""

    def __init__(self, session: Session, run_dir: Path, *, seconds: float = MIN_SECONDS) -> None:
        """Observe the base if the run changes it; measuring takes at least `seconds` each time.

        Call it before the run is resumed: a run that continues another one's checkpoint, or is
        restarted on a cluster, has no observation yet.
        """
        self._session, self._path, self._seconds = session, run_dir / BEFORE, seconds
        self._stack = session.stack
        self._general = session.general if session.is_rank_0 else None
        self._spent = 0.0
        self._base: Observed | None = None  # that of a curve
        self._last: tuple[int, dict[str, Any] | None] = (-1, None)
        if self._general and session.spec.method.trains_base and not self._path.is_file():
            self._observe_base(self._general)

    def point(self) -> Iterator[Forgotten]:
        """Yield the forgetting now, where the run asks for a curve."""
        session, general = self._session, self._general
        if general is None or not session.spec.train.forgetting_curve:
            return
        if self._base is None and not session.spec.method.trains_base:
            how = (session.loaded, session.backbone, general, [()])
            (self._base,) = observe(*how, seconds=0.4 * self._seconds)
        step, found = session.progress.step, self.measure()
        self._last = (step, found)
        if found and found["forgetting"] is not None:
            yield Forgotten(step=step, forgetting=found["forgetting"])

    def measure(self) -> dict[str, Any] | None:
        """Return the forgetting of the adapter as it is now, None where it is not measured."""
        session, general = self._session, self._general
        if general is None or not (general.rows or general.prompts):
            return None
        if self._last[0] == session.progress.step and not session.keeps_best:
            return self._last[1]
        session.update_seconds()
        seconds = max(self._seconds, TIME_FRACTION * session.progress.seconds)
        if session.spec.method.trains_base:
            found = self._against_before(general)
        else:
            how = (session.loaded, session.backbone, general, self._stack)
            found = measure(*how, seconds=seconds, base=self._base)
        session.activate()
        return found

    def _observe_base(self, general: GeneralSet) -> None:
        """Observe the base before full fine-tuning changes it, and store what it answers."""
        from safetensors.torch import save_file

        session, started = self._session, time.monotonic()
        base, backbone = session.loaded, session.backbone
        (found,) = observe(base, backbone, general, [self._stack], seconds=0.3 * self._seconds)
        answered = list(zip(general.prompts, found.answers, strict=False))
        logits = answer_logits(base, backbone, answered, [self._stack])
        tensors = {str(n): one.float().cpu().clone() for n, (one,) in enumerate(logits)}
        temporary = atomic.beside(self._path)
        save_file(tensors, temporary, {"observed": json.dumps(asdict(found))})
        atomic.replace(temporary, self._path)
        session.activate()
        self._spent = time.monotonic() - started

    def _against_before(self, general: GeneralSet) -> dict[str, Any]:
        from safetensors import safe_open

        session, started = self._session, time.monotonic()
        base, backbone = session.loaded, session.backbone
        with safe_open(self._path, "pt") as file:
            old = Observed(**json.loads(file.metadata()["observed"]))
            (new,) = observe(base, backbone, general, [self._stack], like=old)
            answered = list(zip(general.prompts, old.answers, strict=False))[: len(file.keys())]
            logits = answer_logits(base, backbone, answered, [self._stack])
            kl = [float(kl_sum(file.get_tensor(str(n)).to(one.device), one))
                  for n, (one,) in enumerate(logits)]  # fmt: skip
        taken = self._spent + time.monotonic() - started
        return compared(general, old, new, kl=kl, seconds=taken)
