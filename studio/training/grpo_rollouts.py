"""Learn from the model's own answers: groups of them, their rewards, the loss of a step (GRPO).

Each step answers its prompts `num_generations` times with the adapter as it is, on the base that is
trained, and scores the answers (`train.rewards`). The rewards of a group become advantages and
these a loss per token, without a value model. The reference is the base with the trained adapter
switched off, or the adapter that the run started from.

Answers follow from (seed, step, row, number) alone, so a resumed run gives the same ones.

Shapes: `P prompts, G answers to each, N tokens of answers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from studio.chat.lanes import Sampling
from studio.data.template.choose_template import choose_for
from studio.data.template.template import IGNORED
from studio.training.batching import PackedBatch, PaddedBatch, TokenRow, grouped
from studio.training.loss import token_losses
from studio.training.objectives import needs_reference, reward_scores
from studio.training.sample_answers import Continuation, continuations
from studio.training.sizes_for_estimates import CACHE_TOKENS
from studio.training.starting_point import num_tokens_before
from studio.training.training_events import Loading

if TYPE_CHECKING:
    from studio.train_args import TrainArgs
    from studio.training.training_session import Session

TINY = 1e-4


def advantages(rewards_PG: Tensor, spread: Tensor | None = None) -> Tensor:
    """Return how much better each answer is than its group, in units of `spread` if it is given."""
    centred_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
    return centred_PG if spread is None else centred_PG / (spread + TINY)


def grpo_losses(
    policy_N: Tensor, old_N: Tensor, reference_N: Tensor | None, advantage_N: Tensor,
    args: TrainArgs,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the loss and the KL to the reference at each token, from log-probabilities.

    `L = Σ_t −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) + β ρ (e^d − d − 1)`, divided by the tokens of all
    answers of the step, with `ρ = π(t) / π_old(t)`, `d = log π_ref(t) − log π(t)` and the advantage
    `A = (r − mean r) / (std r + 1e-4)` of the answer within its group. Sources: arXiv:2402.03300
    (GRPO), arXiv:2503.14476 (division by tokens, as in TRL), http://joschu.net/blog/kl-approx.html
    (the estimate k3 of the KL; `ρ` makes its gradient unbiased, arXiv:2512.02556).
    """
    ratio_N = (policy_N - old_N).exp()
    clipped_N = ratio_N.clamp(1 - args.epsilon, 1 + args.epsilon)
    losses_N = -torch.min(ratio_N * advantage_N, clipped_N * advantage_N)
    if reference_N is None:
        return losses_N, torch.zeros_like(losses_N)
    distance_N = reference_N - policy_N
    kl_N = (distance_N.exp() - distance_N - 1) * ratio_N
    return losses_N + args.own_beta * kl_N, kl_N


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt with an answer of the model, all of whose tokens are trained."""

    input_ids: np.ndarray[Any, np.dtype[np.int32]]
    labels: np.ndarray[Any, np.dtype[np.int32]]
    row: int
    advantage: float
    weights: None = None


class Rollouts:
    """The loss of a run that learns from rewards of its own answers."""

    longer_chosen: float | None = None  # it has no pairs

    def __init__(self, session: Session) -> None:
        self.session, self.args = session, session.spec.train
        self.scores = reward_scores(self.args)
        template = choose_for(session.loaded.tokenizer, session.spec.data)
        own = getattr(session.loaded.model.generation_config, "eos_token_id", None)
        eos = own if isinstance(own, list) else [] if own is None else [own]
        self.stop_ids = frozenset({*template.stop_ids, *eos})
        self._context = session.loaded.facts.context_length - num_tokens_before(session.spec)
        self._compares = needs_reference(session.spec)
        self._step = -1
        self._answers: dict[int, list[Rollout]] = {}
        self._seen: list[float] = []
        self._old: list[Tensor] = []
        self._reference: list[Tensor] = []
        self._tokens, self._at, self._kl = 1, 0, torch.zeros(())

    def prepare_reference(self, run_dir: Path) -> Iterator[Loading]:
        """Do nothing: the reference of an answer is computed with it."""
        return iter(())

    # -- one step ------------------------------------------------------------------------------

    @property
    def updates(self) -> int:
        """Optimizer updates with the answers of one step."""
        return self.args.num_iterations

    def batches(self, places: Sequence[Sequence[int]]) -> list[PackedBatch | PaddedBatch]:
        """Return the step's answers by micro-batch; written once, at the step's first update."""
        if self._step != self.session.progress.step:
            self._step = self.session.progress.step
            self._write([row for rows in places for row in rows])
            self._old, self._reference = [], []
        return [
            self.session.batch(
                [one for row in rows for one in self._answers[row]],
                together=self.args.num_generations,
            )
            for rows in places
        ]

    def begin_step(
        self, places: Sequence[Sequence[int]], batches: Sequence[PackedBatch | PaddedBatch]
    ) -> int:
        """Compute the reference of new answers; return the number of their tokens on all ranks."""
        session = self.session
        own = sum(batch.num_targets for batch in batches)
        self._tokens = max(1, session.sum_over_ranks(own))
        self._at, self._kl = 0, torch.zeros((), device=session.loaded.device)
        if self._compares and not self._reference:
            session.backbone.use(session.start.reference)
            with session.backbone.evaluating():
                for batch in batches:
                    losses_N = token_losses(session.backbone, batch, self.args.temperature)
                    self._reference.append(-losses_N)
            session.activate()
        return self._tokens

    def loss(self, rows: Sequence[int], batch: PackedBatch | PaddedBatch) -> Tensor:
        """Return the part of a micro-batch in the loss of the step."""
        policy_N = -token_losses(self.session.backbone, batch, self.args.temperature)
        if len(self._old) == self._at:  # the first update: the answers are of this very model
            self._old.append(policy_N.detach())
        gained = [one.advantage for row in rows for one in self._answers[row]]
        counts = torch.tensor(batch.kept, device=policy_N.device)
        advantage_N = torch.tensor(gained, device=policy_N.device).repeat_interleave(counts)
        reference_N = self._reference[self._at] if self._compares else None
        losses_N, kl_N = grpo_losses(
            policy_N, self._old[self._at], reference_N, advantage_N, self.args
        )
        self._at += 1
        self._kl = self._kl + kl_N.detach().sum()
        return losses_N.sum() / self._tokens

    def sums(self) -> list[Tensor]:
        """Return this rank's sums of the step, as `report` takes them."""
        seen = torch.tensor(self._seen, device=self._kl.device)
        return [*seen.unbind(), self._kl]

    def report(self, sums: Sequence[float]) -> dict[str, float | None]:
        """Return the step's means by the names of `events.Step`."""
        reward, spread, silent, groups, answers, tokens, kl = sums
        groups, answers = max(1.0, groups), max(1.0, answers)
        return {
            "reward": reward / answers, "reward_std": spread / groups,
            "frac_reward_zero_std": silent / groups, "completion_length": tokens / answers,
            "kl": kl / max(1.0, tokens) if self._compares else None,
        }  # fmt: skip

    # -- answers -------------------------------------------------------------------------------

    def _write(self, rows: Sequence[int]) -> None:
        """Answer the prompts of these rows, and score the answers."""
        args, session = self.args, self.session
        examples = [session.prepared.train[row] for row in rows]
        samplings = [
            [Sampling(temperature=args.temperature, seed=self._seed(row, number))
             for number in range(args.num_generations)] for row in rows
        ]  # fmt: skip
        written = self._continued(examples, samplings)
        rewards_PG = torch.tensor(
            [self._rewards(one, own) for one, own in zip(examples, written, strict=True)],
            dtype=torch.float64,
        ).reshape(len(rows), args.num_generations)
        spread_P1 = rewards_PG.std(1, keepdim=True)
        spreads = {"none": None, "group": spread_P1, "batch": self._spread(rewards_PG)}
        gained_PG = advantages(rewards_PG, spreads[args.scale_rewards]).tolist()
        self._answers, lengths = {}, 0
        for row, example, own, gained in zip(rows, examples, written, gained_PG, strict=True):
            answers = [self._joined(example, one) for one in own]
            lengths += sum(len(ids) for ids in answers)
            self._answers[row] = [
                _answered(example, ids, value) for ids, value in zip(answers, gained, strict=True)
            ]
        silent = int((spread_P1 < TINY).sum())
        self._seen = [float(rewards_PG.sum()), float(spread_P1.sum()), silent, len(rows),
                      rewards_PG.numel(), lengths]  # fmt: skip

    def _seed(self, row: int, number: int) -> int:
        parts = [self.session.spec.seed, self.session.progress.step, row, number]
        return int(np.random.SeedSequence(parts).generate_state(1)[0])

    def _spread(self, rewards_PG: Tensor) -> Tensor:
        """Return the standard deviation over all answers of the step, on all ranks."""
        numbers = [float(rewards_PG.sum()), float((rewards_PG**2).sum()), float(rewards_PG.numel())]
        total, squares, count = self.session.sum_over_ranks(numbers)
        variance = (squares - total * total / max(1.0, count)) / max(1.0, count - 1)
        return torch.tensor(max(0.0, variance), dtype=torch.float64).sqrt()

    def _continued(
        self, examples: Sequence[TokenRow], samplings: Sequence[Sequence[Sampling]]
    ) -> list[list[Continuation]]:
        """Return the continuations of each prompt, batch by batch."""
        session, found = self.session, [[Continuation([])]] * len(examples)
        prompts = [_prompt(example).tolist() for example in examples]
        limits = [min(self.args.max_completion_length, self._context - len(p)) for p in prompts]
        sizes = [
            len(own) * (len(prompt) + limit)
            for own, prompt, limit in zip(samplings, prompts, limits, strict=True)
        ]
        for places in grouped(sizes, max_tokens=CACHE_TOKENS):
            answers = iter(continuations(
                session.backbone, [prompts[i] for i in places], [samplings[i] for i in places],
                device=session.loaded.device, stop_ids=self.stop_ids,
                limits=[limits[i] for i in places],
            ))  # fmt: skip
            for i in places:
                found[i] = [next(answers) for _ in samplings[i]]
        return found

    def _joined(self, example: TokenRow, one: Continuation) -> list[int]:
        """Return the trained tokens of an answer; one that is empty has its end."""
        ended = [] if one.stop is None else [one.stop]
        return [*one.ids, *ended] or [next(iter(self.stop_ids))]

    def _rewards(self, example: TokenRow, answers: Sequence[Continuation]) -> list[float]:
        """Return the weighted sum of the scores of each answer."""
        wanted = self._text(example.input_ids[len(_prompt(example)) :].tolist())
        texts = [self._text(one.ids) for one in answers]
        return [sum(weight * of(text, wanted) for weight, of in self.scores) for text in texts]

    def _text(self, ids: list[int]) -> str:
        text: str = self.session.loaded.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    # -- evaluation ----------------------------------------------------------------------------

    def evaluate(self) -> list[float]:
        """Return the reward of the greedy answer to each held-out prompt."""
        held = self.session.prepared.validation
        examples = [held[i] for i in range(min(len(held), self.session.plan.eval_rows))]
        written = self._continued(examples, [[Sampling()]] * len(examples))
        return [self._rewards(one, own)[0] for one, own in zip(examples, written, strict=True)]


def _prompt(example: TokenRow) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return the tokens before the reference."""
    return example.input_ids[example.labels == IGNORED]


def _answered(example: TokenRow, answer: Sequence[int], advantage: float) -> Rollout:
    prompt = _prompt(example)
    ids = np.concatenate([prompt, answer]).astype(np.int32)
    labels = np.where(np.arange(len(ids)) < len(prompt), IGNORED, ids).astype(np.int32)
    return Rollout(ids, labels, example.row, advantage)
