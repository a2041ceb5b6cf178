"""Learn from preferences: log-probabilities of answers, their reference, the loss of a step.

A pair is two adjacent rows, the chosen answer first; a judged answer is one row. Only label
positions reach the head, in chunks, and each row's log-probability is their sum. A loss of
`objectives.py` turns them into a number per pair. Its gradient weights each row, so no logits are
kept: the head's gradient of every position was computed in the forward pass (`loss.py`).

The reference is the same base with the trained adapter switched off: the bare base, or the frozen
adapter that the run started from. It is computed once per row, before the first step, and kept in
the run's folder, so that a resumed run has the same numbers.

Shapes: `R rows of a batch, U pairs or judged answers`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from studio.data.prepare_run_data import row_limit
from studio.data.template.template import IGNORED
from studio.data.token_arrays import Example, places_by_source
from studio.home import is_whole, publishing
from studio.training.batching import PackedBatch, PaddedBatch, TokenRow, grouped
from studio.training.loss import eval_tokens, row_losses, token_kl
from studio.training.objectives import OBJECTIVES, WITHOUT_REFERENCE, LogProbs, PairLosses
from studio.training.starting_point import num_tokens_before
from studio.training.training_events import Loading

if TYPE_CHECKING:
    from studio.backbone import Backbone
    from studio.training.training_session import Session

NEAREST, LENGTHS, LEAST_PAIRS = 16, 1024, 20
REPORT_SECONDS = 2.0
FOLDER, FILE = "reference", "log_probs.safetensors"
TRAIN, HELD = "train", "validation"


class Rewards(NamedTuple):
    """Means over the answers of a step or an evaluation, named as in TRL; None where none is."""

    rewards_chosen: float | None = None
    rewards_rejected: float | None = None
    rewards_margins: float | None = None
    rewards_accuracies: float | None = None
    logps_chosen: float | None = None
    logps_rejected: float | None = None

    @classmethod
    def of(cls, sums: Sequence[float]) -> Rewards:
        """Return the means of `Preference.sums`."""
        chosen, rejected, good, bad, logp_good, logp_bad, right, compared = sums
        means = [
            total / count if count else None
            for total, count in ((chosen, good), (rejected, bad), (logp_good, good),
                                 (logp_bad, bad), (right, compared))
        ]  # fmt: skip
        margin = None if means[0] is None or means[1] is None else means[0] - means[1]
        return cls(
            rewards_chosen=means[0], rewards_rejected=means[1], rewards_margins=margin,
            rewards_accuracies=means[4], logps_chosen=means[2], logps_rejected=means[3],
        )  # fmt: skip


class Totals(NamedTuple):
    """Divisors of a step's losses, and KTO's `z`."""

    units: int
    chosen_tokens: int
    kl: Tensor | float = 0.0


class Evaluation(NamedTuple):
    """The loss of held-out rows, also by source of a mix, their rewards, the KL to the reference.

    The KL is per token, over the whole vocabulary, at the label positions of the chosen answers;
    None for a method that cannot be switched off.
    """

    loss: float
    rewards: Rewards
    kl: float | None
    sources: dict[str, float]


class Preference:
    """The loss of a run that learns from preferences, and its reference."""

    updates = 1

    def __init__(self, session: Session) -> None:
        self.session, self.args = session, session.spec.train
        self._width = session.prepared.rows_per_example
        self.paired = self._width == 2
        self.rows: dict[str, Sequence[Any]] = {
            TRAIN: session.prepared.train, HELD: session.prepared.validation
        }  # fmt: skip
        self.reference: dict[str, Tensor] = {}
        """Log-probabilities by set and row; `kl` sets are those of `mixed` rows."""
        room = session.loaded.facts.context_length - num_tokens_before(session.spec)
        self._limit = row_limit(session.spec.data, room)
        self._totals = Totals(1, 1)
        self._sums: list[Tensor] = []

    # -- one step ------------------------------------------------------------------------------

    def begin_step(
        self, places: Sequence[Sequence[int]], batches: Sequence[PackedBatch | PaddedBatch]
    ) -> int:
        """Count what the losses of a step are divided by; return the number of units.

        `places` are rows of the training set, by micro-batch of this rank.
        """
        rows = [row for some in places for row in some]
        kept = [count for batch in batches for count in batch.kept]
        summed = self.session.sum_over_ranks
        units, tokens = summed([len(rows) // self._width, self._chosen_tokens(TRAIN, rows, kept)])
        kl = 0.0 if self.paired else self._distance(TRAIN, rows, summed)
        self._totals, self._sums = Totals(max(1, units), max(1, tokens), kl), []
        return self._totals.units

    def loss(self, rows: Sequence[int], batch: PackedBatch | PaddedBatch) -> Tensor:
        """Return the part of a micro-batch in the loss of the step."""
        policy_R = -row_losses(self.session.backbone, batch)
        loss, sums = self._loss(TRAIN, rows, policy_R, batch.kept, self._totals)
        self._sums.append(sums)
        return loss

    def sums(self) -> Sequence[Tensor]:
        """Return this rank's sums of the step, as `report` takes them."""
        none = torch.zeros(8, device=self.session.loaded.device)
        return torch.stack(self._sums or [none]).sum(0).unbind()

    def report(self, sums: Sequence[float]) -> dict[str, float | None]:
        """Return the step's means by the names of `events.Step`."""
        return Rewards.of(sums)._asdict()

    def _loss(
        self, which: str, rows: Sequence[int], policy_R: Tensor, kept: Sequence[int], totals: Totals
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of rows of a set, and the sums of what is shown."""
        tokens_R = torch.tensor(kept, device=policy_R.device, dtype=policy_R.dtype)
        reference_R = torch.zeros_like(policy_R)
        if which in self.reference:
            reference_R = self.reference[which][list(rows)].to(policy_R)
        sides = self._sides(which, rows)
        parts = []
        for side in (True, False):
            own = [i for i, chosen in enumerate(sides) if chosen == side]
            own_U = torch.tensor(own, device=policy_R.device, dtype=torch.long)
            numbers = (policy_R[own_U], reference_R[own_U], tokens_R[own_U])
            parts.append(LogProbs(*numbers, totals.kl))
        chosen, rejected = parts
        scored = OBJECTIVES[self.args.loss](chosen, rejected, self.args)
        loss = scored.losses.sum() / totals.units
        if scored.sft_weight:
            loss = loss - scored.sft_weight * chosen.policy.sum() / totals.chosen_tokens
        return loss, _sums(scored, chosen.policy, rejected.policy, paired=self.paired)

    @cached_property
    def longer_chosen(self) -> float:
        """Share of the first pairs whose chosen answer is the longer one; 0.5 of a few pairs."""
        rows = self.rows[TRAIN][:LENGTHS] if self.paired else ()
        lengths = [int((row.labels != IGNORED).sum()) for row in rows]
        signs = np.sign(np.subtract(lengths[::2], lengths[1::2]))
        return float((signs.mean() + 1) / 2) if len(signs) >= LEAST_PAIRS else 0.5

    def _sides(self, which: str, rows: Sequence[int]) -> list[bool]:
        """Return for each row of a set if its answer is a chosen (or good) one."""
        if self.paired:
            return [row % 2 == 0 for row in rows]
        return [bool(self.rows[which][row].good) for row in rows]

    def _chosen_tokens(self, which: str, rows: Sequence[int], kept: Sequence[int]) -> int:
        sides = self._sides(which, rows)
        return sum(count for count, chosen in zip(kept, sides, strict=True) if chosen)

    # -- KTO's distance ------------------------------------------------------------------------

    def mixed(self, which: str, row: int) -> Example:
        """Return the prompt of a row with the answer of the last row before it with another prompt.

        So that both answers of a pair, or several to one prompt, stand apart; `NEAREST` are tried.
        """
        rows, limit = self.rows[which], self._limit
        here = rows[row]
        start = _answer_start(here)
        for back in range(1, min(NEAREST, len(rows)) + 1):
            other = rows[row - back]
            after = _answer_start(other)
            if not np.array_equal(here.input_ids[:start], other.input_ids[:after]):
                break
        ids = np.concatenate([here.input_ids[:start], other.input_ids[after:]])
        masked = np.full(start, IGNORED, np.int32)
        labels = np.concatenate([masked, other.labels[after:]]).astype(np.int32)
        return Example(ids[:limit], labels[:limit], here.row)

    def _distance(
        self, which: str, rows: Sequence[int], summed: Callable[[list[float]], list[float]]
    ) -> Tensor:
        """Return `z`: the mean log-ratio of answers to other prompts, at least 0."""
        total, reference = 0.0, self.reference[f"{which}_kl"]
        for places, policy in self._log_probs([self.mixed(which, row) for row in rows]):
            total += float((policy - reference[[rows[i] for i in places]].to(policy)).sum())
        total, count = summed([total, float(len(rows))])
        return torch.tensor(max(0.0, total / max(1.0, count)), device=self.session.loaded.device)

    # -- evaluation ----------------------------------------------------------------------------

    def evaluate(self) -> Evaluation:
        """Measure the loss of held-out rows and their rewards."""
        session, which = self.session, HELD
        rows = self._held_rows()
        examples = [self.rows[which][row] for row in rows]
        policy_R = torch.zeros(len(rows), device=session.loaded.device)
        for places, found in self._log_probs(examples):
            policy_R[places] = found
        kept = [int((e.labels[1:] != IGNORED).sum()) for e in examples]
        kl = 0.0 if self.paired else self._distance(which, rows, lambda numbers: numbers)

        def measured(places: list[int]) -> tuple[Tensor, Tensor]:
            some, counts = [rows[i] for i in places], [kept[i] for i in places]
            tokens = self._chosen_tokens(which, some, counts)
            totals = Totals(max(1, len(some) // self._width), max(1, tokens), kl)
            return self._loss(which, some, policy_R[places], counts, totals)

        loss, sums = measured(list(range(len(rows))))
        by_source = places_by_source(examples) if session.prepared.sources else {}
        chosen = [e for e, side in zip(examples, self._sides(which, rows), strict=True) if side]
        return Evaluation(
            float(loss), Rewards.of(sums.tolist()), self._token_kl(chosen),
            {name: float(measured(places)[0]) for name, places in by_source.items()},
        )  # fmt: skip

    def _held_rows(self) -> list[int]:
        return list(range(min(len(self.rows[HELD]), self._width * self.session.plan.eval_rows)))

    def _token_kl(self, examples: Sequence[TokenRow]) -> float | None:
        session = self.session
        if session.spec.method.trains_base or not examples:
            return None
        total, tokens = 0.0, 0
        lengths = [len(e.input_ids) for e in examples]
        with session.backbone.evaluating():
            for places in grouped(lengths, max_tokens=eval_tokens(session.backbone)):
                batch = session.batch([examples[i] for i in places])
                stacks = session.stack, session.start.reference
                total += token_kl(session.backbone, batch, *stacks)
                tokens += batch.num_targets
        session.activate()
        return total / max(1, tokens)

    # -- the reference -------------------------------------------------------------------------

    def prepare_reference(self, run_dir: Path) -> Iterator[Loading]:
        """Compute the reference of every row that the run will use, or read it from its folder.

        Each rank computes its part of the rows.
        """
        if self.args.loss in WITHOUT_REFERENCE:
            return
        session, folder = self.session, run_dir / FOLDER
        wanted = _Wanted(self, self._wanted())
        key = self._key(wanted)
        found = session.from_rank_0(_read(folder, key) if session.is_rank_0 else None)
        if found is None:
            values = torch.zeros(len(wanted), dtype=torch.float64)  # which Apple GPUs lack
            ranks, units = session.accelerator, range(len(wanted) // self._width)
            own = self._rows_of(units[ranks.process_index :: ranks.num_processes])
            started = time.monotonic()
            done = 0
            session.backbone.use(session.start.reference)
            share = _Wanted(self, [wanted.places[i] for i in own])
            for places, log_probs in self._log_probs(share):
                values[[own[i] for i in places]] = log_probs.cpu().double()
                done += len(places)
                if time.monotonic() - started > REPORT_SECONDS:
                    started = time.monotonic()
                    yield Loading(text=f"Reference: {done:,} of {len(own):,} answers")
            session.activate()
            if session.accelerator.num_processes > 1:
                values = ranks.reduce(values.to(session.loaded.device), "sum")
            found = {
                which: torch.zeros(len(self.rows[which.removesuffix("_kl")]))
                for which in dict.fromkeys(which for which, _ in wanted.places)
            }
            for (which, row), value in zip(wanted.places, values.tolist(), strict=True):
                found[which][row] = value
            if session.is_rank_0:
                _write(folder, key, found)
        self.reference = {which: one.to(session.loaded.device) for which, one in found.items()}

    def _wanted(self) -> list[tuple[str, int]]:
        """Return the rows whose reference the run needs."""
        plan = self.session.plan
        used = {one for step in range(plan.total_steps) for one in plan.step_rows(step)}
        rows = self._rows_of(sorted(used))
        held = self._held_rows()
        found = [(TRAIN, row) for row in rows] + [(HELD, row) for row in held]
        if not self.paired:
            found += [(f"{TRAIN}_kl", row) for row in rows] + [(f"{HELD}_kl", row) for row in held]
        return found

    def _key(self, wanted: _Wanted) -> str:
        """Return a hash of everything that the reference depends on."""
        session, below = self.session, self.session.start.reference
        base = (
            session.loaded.facts.fingerprint, str(session.loaded.dtype),
            session.spec.model.quantization, [_hash(session.backbone, n) for n, _ in below],
        )  # fmt: skip
        digest = hashlib.sha256(json.dumps(base).encode())
        for place, example in zip(wanted.places, wanted, strict=True):
            digest.update(repr(place).encode())
            digest.update(example.input_ids.tobytes())
            digest.update(example.labels.tobytes())
        return digest.hexdigest()

    def _log_probs(self, examples: Sequence[TokenRow]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield places of rows and their log-probabilities under what is active, no gradients."""
        session = self.session
        lengths = np.array([len(example.input_ids) for example in examples])
        units = lengths.reshape(-1, self._width).sum(1).tolist()
        with session.backbone.evaluating():
            for some in grouped(units, max_tokens=eval_tokens(session.backbone)):
                places = self._rows_of(some)
                batch = session.batch([examples[i] for i in places], together=self._width)
                yield places, -row_losses(session.backbone, batch)

    def _rows_of(self, units: Iterable[int]) -> list[int]:
        """Return the rows of pairs, or of judged answers."""
        return [self._width * unit + side for unit in units for side in range(self._width)]


class _Wanted(Sequence[TokenRow]):
    """Rows by set and number, read one at a time."""

    def __init__(self, owner: Preference, places: list[tuple[str, int]]) -> None:
        self._owner, self.places = owner, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        which, row = self.places[index]
        if which.endswith("_kl"):
            return self._owner.mixed(which.removesuffix("_kl"), row)
        return self._owner.rows[which][row]


def _hash(backbone: Backbone, name: str) -> str:
    """Return a hash of a frozen adapter's tensors."""
    tensors = backbone.adapters[name].state().values()
    return hashlib.sha256(b"".join(t.cpu().float().numpy().tobytes() for t in tensors)).hexdigest()


def _answer_start(row: TokenRow) -> int:
    """Return where the last run of trained tokens begins."""
    masked = np.flatnonzero(row.labels == IGNORED)
    trained = np.flatnonzero(row.labels != IGNORED)
    before = masked[masked < trained[-1]] if len(trained) else masked
    return int(before[-1]) + 1 if len(before) else 0


def _sums(scored: PairLosses, chosen_U: Tensor, rejected_U: Tensor, *, paired: bool) -> Tensor:
    """Return the numbers of `Rewards.of`; judged answers are compared each good with each bad."""
    good, bad = scored.chosen, scored.rejected
    right = good > bad if paired else good[:, None] > bad[None]
    numbers = [good.sum(), bad.sum(), len(good), len(bad), chosen_U.sum(), rejected_U.sum(),
               right.sum(), right.numel()]  # fmt: skip
    return torch.stack([torch.as_tensor(n, device=good.device).float().detach() for n in numbers])


def _read(folder: Path, key: str) -> dict[str, Tensor] | None:
    """Return the reference in a run's folder if it is whole and that of the key."""
    from safetensors import safe_open

    if not is_whole(folder):
        return None
    with safe_open(folder / FILE, framework="pt") as file:
        if (file.metadata() or {}).get("key") != key:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}


def _write(folder: Path, key: str, found: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    with publishing(folder) as temporary:
        save_file(found, temporary / FILE, metadata={"key": key})
