"""Read the curves of a run: what went wrong by known signs, and the change that mends it.

Each rule is a pure function of the curves. It returns a finding only on clear evidence, since a
false alarm costs more than silence; the thresholds stand below and no setting changes them. Rules
on how a run ended wait for its end, the others also read a running one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, pairwise
from statistics import fmean, pstdev
from typing import Any, Literal

from studio.evaluation.scores_and_gates import weights_in
from studio.goals import ENOUGH_STEPS, LEAST_HELD_OUT
from studio.spec import RunSpec
from studio.training.objectives import needs_reference

PART = 0.1  # a level is the mean of a tenth of the steps; noise is its standard error
LEAST_STEPS = 20  # of shorter runs only the number of steps is read
CLEAR = 4.0  # standard errors by which two levels differ
RISE, LEAST_RISE = 0.25, 0.1  # diverges: rise above the lowest level, relative and at least
WORSE, LEAST_WORSE, LEAST_AFTER = 0.05, 0.02, 2
"""Memorises: rise of the held-out loss above its minimum, and evaluations since."""
STILL, OF_ALL, LATE = 0.03, 0.05, 0.8
"""Not finished: fall of the held-out loss after this part of the run, relative and of all falls."""
SHORT, LEARNED_LOSS = 100, 1.0
"""Not finished: steps of a short run, and the training loss (nats per token) that is too high."""
FLAT, HELD_FLAT, LEAST_LOSS, NO_GRADIENT = 0.05, 0.02, 0.05, 1e-7
"""Learned nothing: largest relative change of the training loss, noise included, and of the
held-out loss; the loss above which it counts; a zero gradient."""
FIRST_STEPS = 3  # steps at the start that show a fall which ends within the first tenth
BOUNCE, FEW_ROWS = 0.1, 4  # noise: median relative step of the held-out loss, a small batch
EARLY, MOST_SAMPLES = 0.25, 2 / 3  # answers: relative length, fraction of samples with a sign
DRIFT = 1.6  # length drifts: factor between the middle and the end of a run
FALL, LEAST_PAIRS, LASTING, SOON = 1.0, 10, 0.2, 0.2  # preferences: nats, steps, parts of a run
ONE_SIDED, UNLEARNT = 0.95, 0.75  # pairs that length separates; a held-out accuracy too low
LONGER, LEAST_TOKENS = 2.0, 8  # preferences: growth of sampled answers, a factor and tokens
SMOOTHING = 0.9
LOOP = re.compile(r"\b(\w+(?:\W+\w+){2,11}?)(?:\W+\1\b){2,}")
"""Answers: three to twelve words that follow themselves twice."""
HOTTER, LEARNED = 1.5, 0.9  # rewards: factor on the temperature, share of the best that is enough
Points = Sequence[tuple[int, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """A button: the action it asks for, with its values beside the run."""

    title: str
    action: Literal["duplicate", "extend", "compare"]
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A sign that a rule found, with its evidence in `text`."""

    rule: str
    title: str
    text: str
    remedy: Correction | None = None


@dataclass(frozen=True, kw_only=True)
class RunCurves:
    """Curves of a run as points (step, value), and the facts that the rules read.

    `rate` is the peak learning rate; `held_out` the number of held-out rows, None if not known;
    `is_text` says that the rows are texts without questions; `rows_ended` is the fraction of the
    sampled rows whose own answer trains an end of turn; `longer_chosen` that of the pairs whose
    chosen answer is the longer one; `checkpoints` are the steps on disk; `answers` the last ones to
    the sample prompts.
    """

    spec: RunSpec
    curves: Mapping[str, Points]
    total_steps: int
    rate: float
    ended: bool = True
    diverged: bool = False
    held_out: int | None = None
    is_text: bool = False
    rows_ended: float | None = None
    rows_truncated: int = 0
    longer_chosen: float = 0.5
    checkpoints: Sequence[int] = field(default_factory=tuple)
    answers: Sequence[str] = ()

    def points(self, name: str) -> Points:
        """Return a curve; empty if the run has none of that name."""
        return self.curves.get(name, ())

    @cached_property
    def parts(self) -> list[tuple[int, float, float]]:
        """Consecutive tenths of the training loss: last step, level and its standard error."""
        points = self.points("loss")
        size = max(3, math.ceil(PART * len(points)))
        found = []
        for end in range(len(points), size - 1, -size):
            values = [value for _, value in points[end - size : end]]
            found.append((points[end - 1][0], *level_of(values)))
        return found[::-1]


def level_of(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of some values and its standard error."""
    return fmean(values), pstdev(values) / math.sqrt(len(values))


Rule = Callable[[RunCurves], Finding | None]


def read(run: RunCurves) -> list[Finding]:
    """Return the findings on a run, the gravest first; a diverged run has one."""
    if run.diverged or len(run.points("loss")) >= LEAST_STEPS:
        if found := diverges(run):
            return [found]
        rules = RUNNING_RULES + (ENDED_RULES if run.ended else ())
        rules = (no_signal,) if run.spec.train.loss == "grpo" else rules
        return [found for rule in rules if (found := rule(run))]
    return [found] if run.ended and (found := too_short(run)) else []


# -- losses ----------------------------------------------------------------------------------------


def diverges(run: RunCurves) -> Finding | None:
    """Find a training loss that left its lowest level for good, or a run that failed of it."""
    title, lower = "The loss diverges", _again({"train.learning_rate": _round(run.rate / 4)})
    if run.diverged:
        text = f"Loss or gradient became infinite at a learning rate of {run.rate:.2g}."
        return Finding(rule="diverges", title=title, text=text, remedy=lower)
    if len(run.parts) < 3 or run.spec.train.loss == "grpo":  # its loss says nothing
        return None
    (step, best, error), (_, last, last_error) = min(run.parts, key=lambda p: p[1]), run.parts[-1]
    noise = CLEAR * math.hypot(error, last_error)
    if last - best <= max(RISE * abs(best), LEAST_RISE, noise):
        return None
    return Finding(
        rule="diverges", title=title, remedy=lower,
        text=f"The training loss rose from {best:.3g} (until step {step}) to {last:.3g}: the "
        f"learning rate of {run.rate:.2g} is too high.",
    )  # fmt: skip


def memorises(run: RunCurves) -> Finding | None:
    """Find a held-out loss that rises since its minimum while the training loss fell."""
    held, args = run.points("eval_loss"), run.spec.train
    if len(held) < LEAST_AFTER + 2 or args.loss != "sft":
        return None
    if args.load_best_model_at_end or args.early_stopping_patience:
        return None  # the adapter is that of the minimum
    best_step, best = min(held, key=lambda point: (point[1], -point[0]))
    since = [value for step, value in held if step > best_step]
    if len(since) < LEAST_AFTER or since[-1] - best < max(WORSE * best, LEAST_WORSE):
        return None
    if since[-1] < max(since) - 0.5 * (max(since) - best):
        return None  # it falls again
    before = [level for step, level, _ in run.parts if step <= best_step] or [run.parts[0][1]]
    if run.parts[-1][1] > before[-1]:
        return None
    if run.held_out is not None and run.held_out < LEAST_HELD_OUT:
        s = "s" if run.held_out > 1 else ""
        return Finding(
            rule="few_held_out", title=f"The held-out loss rests on {run.held_out} row{s}",
            text=f"It was lowest at step {best_step} ({best:.3g}), now {since[-1]:.3g}: "
            f"fewer than {LEAST_HELD_OUT} rows are no evidence that the run memorises: ask "
            "questions of your own on Compare.",
        )  # fmt: skip
    near = min(run.checkpoints, key=lambda step: abs(step - best_step), default=None)
    interval = held[1][0] - held[0][0]
    if near is not None and abs(near - best_step) <= interval:
        remedy = Correction(title=f"Compare step {near}", action="compare", values={"step": near})
    else:
        remedy = _again({"train.load_best_model_at_end": True}, "and keep the best checkpoint")
    return Finding(
        rule="memorises", title="It memorises its rows", remedy=remedy,
        text=f"The held-out loss was lowest at step {best_step} ({best:.3g}) and has risen to "
        f"{since[-1]:.3g} while the training loss fell.",
    )  # fmt: skip


def too_short(run: RunCurves) -> Finding | None:
    """Find a high training loss after few steps; that of plain texts is high for good."""
    steps, sft = run.total_steps, run.spec.train.loss == "sft"
    if steps >= SHORT or run.is_text or not sft or not run.parts:
        return None
    if (loss := run.parts[-1][1]) <= LEARNED_LOSS or learned_nothing(run):
        return None
    return Finding(
        rule="too_short", title="It has not finished learning",
        text=f"After {steps} steps the training loss is {loss:.2g}: a wanted token has a chance of "
        f"{math.exp(-loss):.0%} on average. Runs on few rows need {ENOUGH_STEPS} steps or more.",
        remedy=_longer(run, max(ENOUGH_STEPS - steps, steps // 2)),
    )  # fmt: skip


def unfinished(run: RunCurves) -> Finding | None:
    """Find a held-out loss that still falls at the end, where a schedule has lowered the rate."""
    held, total = run.points("eval_loss"), run.total_steps
    if len(held) < 5 or held[-1][0] < 0.95 * total or too_short(run):
        return None
    then = [value for step, value in held if step <= LATE * total]
    if not then or held[-1][1] > min(value for _, value in held):
        return None
    fall = then[-1] - held[-1][1]
    if fall < max(STILL * then[-1], OF_ALL * (held[0][1] - held[-1][1])):
        return None
    return Finding(
        rule="unfinished", title="It has not finished learning", remedy=_longer(run, total / 2),
        text=f"The held-out loss still fell from {then[-1]:.3g} to {held[-1][1]:.3g} in the last "
        "fifth of the run.",
    )  # fmt: skip


def learned_nothing(run: RunCurves) -> Finding | None:
    """Find a loss that ends where it began, with too little noise to hide a change.

    The first evaluation may follow a fast fall, so the first steps must be as level as the tenths.
    """
    if len(run.parts) < 3:
        return None
    (_, first, first_error), (_, last, last_error) = run.parts[0], run.parts[-1]
    held = [value for _, value in run.points("eval_loss")]
    begin = [value for _, value in run.points("loss")[:FIRST_STEPS]]
    moved = any(
        abs(level - last) + 2 * math.hypot(error, last_error) >= FLAT * first
        for level, error in ((first, first_error), level_of(begin))
    )
    held_moved = bool(held) and abs(held[0] - held[-1]) >= HELD_FLAT * held[0]
    if first < LEAST_LOSS or moved or held_moved:
        return None
    why, remedy = _why_nothing(run)
    return Finding(
        rule="learned_nothing", title="It learned nothing", remedy=remedy,
        text=f"The training loss is {last:.3g} after {first:.3g} at the start: {why}.",
    )  # fmt: skip


def _why_nothing(run: RunCurves) -> tuple[str, Correction]:
    """Return the likeliest cause and its remedy: targets, mask or rate."""
    spec, method = run.spec, run.spec.method
    gradients = [value for _, value in run.points("grad_norm")]
    targets = getattr(method, "target_modules", None)
    plain = type(method).model_fields.get("target_modules")
    if gradients and max(gradients) < NO_GRADIENT and plain and targets != plain.default:
        other = _again({"method.target_modules": plain.default}, "with the default modules")
        return "no gradient reaches the modules that are trained", other
    if spec.data.train_on == "all" and spec.train.loss == "sft":
        why = "prompts carry loss too and outweigh the answers"
        return why, _again({"data.train_on": "assistant"}, "on the answers alone")
    if spec.train.learning_rate != "auto" and run.rate < method.base_learning_rate / 5:
        why = f"the learning rate of {run.rate:.2g} is low for {method.title}"
        return why, _again({"train.learning_rate": "auto"}, "at the automatic rate")
    why = f"the learning rate of {run.rate:.2g} may be too low, or the rows are known already"
    return why, _find_rate(run)


def noise(run: RunCurves) -> Finding | None:
    """Find a held-out loss that jumps from one evaluation to the next under a small batch."""
    held, rows = run.points("eval_loss"), run.spec.train.rows_per_step
    late = [value for step, value in held if step > 0.4 * run.total_steps]
    if len(late) < 5 or rows > FEW_ROWS or run.spec.train.loss != "sft":
        return None
    steps = [b - a for a, b in pairwise(late)]
    jumps = sorted(abs(step) / max(min(late), 1e-9) for step in steps)
    turns = sum(a * b < 0 for a, b in pairwise(steps))
    if jumps[len(jumps) // 2] < BOUNCE or turns < len(steps) // 2:
        return None
    again = {"train.gradient_accumulation_steps": 4 * run.spec.train.gradient_accumulation_steps}
    return Finding(
        rule="noise", title="The batch is small for this data", remedy=_again(
            again, "with four times the batch"),
        text=f"The held-out loss jumps between {min(late):.3g} and {max(late):.3g}; each step "
        f"averages only {rows} row{'s' if rows > 1 else ''}.",
    )  # fmt: skip


# -- answers to the sample prompts -----------------------------------------------------------------


def never_ends(run: RunCurves) -> Finding | None:
    """Find answers that run on where the rows' own have ended."""
    last = [value for _, value in run.points("answers_overrun")][-2:]
    if not last or (min(last) < MOST_SAMPLES and last[-1] < 1):
        return None
    data, args, method = run.spec.data, run.spec.train, run.spec.method
    text = f"{last[-1]:.0%} of the sample answers are far longer than the rows' own and go on"
    if run.rows_ended is not None and run.rows_ended < 0.5:
        text += ": these rows train no end of turn"
        if run.rows_truncated:
            text += f", since {run.rows_truncated:,} rows are cut at {data.max_length} tokens"
            remedy = _again({"data.max_length": 2 * data.max_length}, "with twice the length")
        else:
            remedy = _again({"data.chat_template": "chatml"}, "with the ChatML template")
    elif args.learning_rate != "auto" and run.rate > method.largest_learning_rate:
        text += f": the learning rate of {run.rate:.2g} is high for {method.title}"
        remedy = _again({"train.learning_rate": "auto"}, "at the automatic rate")
    else:
        remedy = _longer(run, run.total_steps)
    return Finding(rule="never_ends", title="Answers do not end", text=text + ".", remedy=remedy)


def repeats(run: RunCurves) -> Finding | None:
    """Find sample answers that say a phrase at least three times in a row."""
    loops = [found[1] for text in run.answers if (found := LOOP.search(text))]
    if not loops:
        return None
    return Finding(
        rule="repeats", title="Answers repeat a phrase",
        text=f"{len(loops)} of {len(run.answers)} sample answers say the same words three times "
        f'or more in a row, such as "{loops[0]}".',
    )  # fmt: skip


def ends_early(run: RunCurves) -> Finding | None:
    """Find answers that end long before the rows' own."""
    lengths = [value for _, value in run.points("answer_length")][-2:]
    if len(lengths) < 2 or max(lengths) > EARLY:
        return None
    return Finding(
        rule="ends_early", title="Answers end too early",
        text=f"The sample answers have {lengths[-1]:.0%} of the length of the rows' own.",
        remedy=_again({"train.learning_rate": _round(run.rate / 3)}, "at a third of the rate"),
    )  # fmt: skip


def drifts(run: RunCurves) -> Finding | None:
    """Find lengths of answers that move away from the rows' own until the end."""
    lengths = [(step, value) for step, value in run.points("answer_length") if value > 0]
    late = [value for step, value in lengths if step >= 0.5 * run.total_steps]
    if run.spec.train.loss != "sft" or len(late) < 4 or ends_early(run) or never_ends(run):
        return None
    logs = [math.log(value) for value in late]
    steady = all(b >= a for a, b in pairwise(logs)) or all(b <= a for a, b in pairwise(logs))
    away = abs(logs[-1]) > abs(logs[0]) and abs(logs[-1] - logs[0]) >= math.log(DRIFT)
    if not steady or not away or abs(logs[-1]) < math.log(DRIFT):
        return None
    way = "longer" if logs[-1] > logs[0] else "shorter"
    return Finding(
        rule="drifts", title=f"Answers grow {way}",
        text=f"The sample answers went from {late[0]:.2g} to {late[-1]:.2g} times the length of "
        "the rows' own in the second half.",
        remedy=_again({"train.learning_rate": _round(run.rate / 3)}, "at a third of the rate"),
    )  # fmt: skip


def copies_prompts(run: RunCurves) -> Finding | None:
    """Find answers that repeat their prompt where the rows' own do not."""
    last = [value for _, value in run.points("answers_copied")][-2:]
    if len(last) < 2 or min(last) < MOST_SAMPLES:
        return None
    remedy = _find_rate(run)
    if run.spec.data.train_on == "all" and run.spec.train.loss == "sft":
        remedy = _again({"data.train_on": "assistant"}, "on the answers alone")
    elif run.spec.data.chat_template == "plain":
        remedy = _again({"data.chat_template": "auto"}, "with the model's own template")
    text = f"{last[-1]:.0%} of the sample answers repeat their prompt; the rows' own do not."
    title = "Answers repeat the prompt"
    return Finding(rule="copies_prompts", title=title, text=text, remedy=remedy)


# -- preferences -----------------------------------------------------------------------------------


def unlearns(run: RunCurves) -> Finding | None:
    """Find chosen answers that lose probability with the rejected ones.

    The loss allows it as long as the gap grows. The change against the reference is smoothed.
    """
    args, points = run.spec.train, run.points("rewards_chosen")
    if not points or not needs_reference(run.spec):
        return None
    change, since = 0.0, None
    for count, (step, reward) in enumerate(points, 1):
        change += max(1 - SMOOTHING, 1 / count) * (reward / args.own_beta - change)
        since = (since or step) if change < -FALL else None
    lasts = points[-1][0] - since + 1 if since else 0
    if since is None or lasts < max(LEAST_PAIRS, LASTING * run.total_steps):
        return None
    remedy = _again({"train.learning_rate": _round(run.rate / 3)}, "at a third of the rate")
    if args.loss == "dpo" and not args.rpo_alpha:
        remedy = _again({"train.rpo_alpha": 1.0}, "with the chosen answers' loss added")
    return Finding(
        rule="unlearns", title="It unlearns both answers", remedy=remedy,
        text=f"The log-probability of the chosen answers is below the reference's since step "
        f"{since}.",
    )  # fmt: skip


def too_easy(run: RunCurves) -> Finding | None:
    """Find a reward accuracy that reaches 1 soon because of lengths, or on trained pairs alone."""
    began = _perfect_since(run)
    if not 0 < began <= max(LEAST_PAIRS, SOON * run.total_steps):
        return None
    text = f"The reward accuracy reached 1 at step {began} of {run.total_steps}"
    fewer = max(LEAST_STEPS, began + LEAST_PAIRS)
    remedy = _again({"train.max_steps": fewer}, f"for {fewer} steps")
    held = [value for _, value in run.points("eval_rewards_accuracies")]
    share = max(run.longer_chosen, 1 - run.longer_chosen)
    if share >= ONE_SIDED:
        which = "longer" if run.longer_chosen > 0.5 else "shorter"
        return Finding(
            rule="too_easy", title="Length alone may separate the pairs", remedy=remedy,
            text=f"{text}, and the chosen answer is the {which} one in {share:.0%} of the pairs. "
            "Pairs where it is the other way round teach more.",
        )  # fmt: skip
    if held and held[-1] < UNLEARNT:
        return Finding(
            rule="too_easy", title="It memorises the pairs", remedy=remedy,
            text=f"{text} on the trained pairs, but is {held[-1]:.2f} on held-out ones. More pairs "
            "help most.",
        )  # fmt: skip
    return None


def _perfect_since(run: RunCurves) -> int:
    """Return the step of the first accuracy of 1 in a row of `LEAST_PAIRS`; 0 if there is none."""
    for perfect, points in groupby(run.points("rewards_accuracies"), lambda point: point[1] == 1):
        if perfect and len(row := [*points]) >= LEAST_PAIRS:
            return row[0][0]
    return 0


def grows(run: RunCurves) -> Finding | None:
    """Find sampled answers that grow while preferences are learned."""
    lengths = [value for _, value in run.points("answer_tokens")]
    if run.spec.train.loss == "sft" or len(lengths) < 2:
        return None
    first, last = lengths[0], lengths[-1]
    if last - first < LEAST_TOKENS or last < LONGER * first:
        return None
    return Finding(
        rule="grows", title="Answers grow longer",
        text=f"Sampled answers grew from {first:.0f} to {last:.0f} tokens. If that is not wanted, "
        "compare the lengths of chosen and rejected answers in the dataset's report.",
        remedy=_again({"train.learning_rate": _round(run.rate / 3)}, "at a third of the rate"),
    )  # fmt: skip


# -- rewards ---------------------------------------------------------------------------------------


def no_signal(run: RunCurves) -> Finding | None:
    """Find groups of answers without different rewards, before the reward is high."""
    silent = [value for _, value in run.points("frac_reward_zero_std")][-LEAST_STEPS:]
    args, rewards = run.spec.train, [value for _, value in run.points("reward")]
    best = sum(w for w in weights_in(args.rewards).values() if w > 0)
    if len(silent) < LEAST_STEPS or min(silent) < 1 or rewards[-1] >= LEARNED * best:
        return None
    hotter = _round(min(10.0, HOTTER * args.temperature))
    return Finding(
        rule="no_signal", title="The rewards give no direction",
        text=f"For the last {LEAST_STEPS} steps, all answers to a prompt had the same reward. A "
        "score that gives part of the reward (such as rouge_l or contains), more answers per "
        "prompt or a higher temperature make a difference.",
        remedy=_again({"train.temperature": hotter}, f"at a temperature of {hotter:g}"),
    )  # fmt: skip


RUNNING_RULES: tuple[Rule, ...] = (memorises, unlearns, too_easy)
ENDED_RULES: tuple[Rule, ...] = (
    learned_nothing, never_ends, repeats, ends_early, copies_prompts, drifts, grows, too_short,
    unfinished, noise,
)  # fmt: skip


def _longer(run: RunCurves, steps: float) -> Correction:
    """Return the remedy that trains longer, anew where no checkpoint is left."""
    args = run.spec.train
    name, own = "train.num_train_epochs", args.num_train_epochs
    if args.max_steps > 0:
        name, own = "train.max_steps", run.total_steps
    unit, added = name.rpartition("_")[2], max(1, round(steps * own / run.total_steps))
    if not run.checkpoints:
        return _again({name: own + added}, f"for {own + added:g} {unit}")
    title = f"Train {added} {unit if added > 1 else unit[:-1]} more"
    return Correction(title=title, action="extend", values={unit: added})


def _find_rate(run: RunCurves) -> Correction:
    """Return the remedy that searches the rate, or a higher one where no search is possible."""
    if run.spec.train.may_use_several_processes or run.held_out == 0:
        return _again({"train.learning_rate": _round(3 * run.rate)}, "at three times the rate")
    return _again({"train.find_learning_rate": True}, "and find the learning rate")


def _again(values: dict[str, Any], how: str = "at a quarter of the rate") -> Correction:
    """Return the remedy that trains the run again with some settings changed."""
    return Correction(title=f"Train again {how}", action="duplicate", values=values)


def _round(value: float) -> float:
    return float(f"{value:.2g}")
