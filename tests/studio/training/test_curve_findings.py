"""Findings on synthetic curves: each sign is found, and none where a run is sound."""

import math
from typing import Any

import numpy as np
import pytest

from studio.spec import RunSpec
from studio.training.curve_findings import RunCurves, read
from studio.training.sample_answers import SamplePrompt, compared, copies

STEPS = 100
EVALS = range(10, STEPS + 1, 10)


def falling(final: float = 0.4, noise: float = 0.1) -> list[float]:
    """A loss from 2.4 to about `final`, with the noise of batches."""
    drawn = np.random.default_rng(0).normal(0, noise, STEPS)
    return [final + 2 * math.exp(-i / 12) + drawn[i] for i in range(STEPS)]


def held(*values: float) -> list[tuple[int, float]]:
    return list(zip(EVALS, values, strict=False))


SOUND = held(1.9, 1.2, 0.9, 0.7, 0.6, 0.55, 0.52, 0.51, 0.505, 0.503)


def run(
    losses: list[float] | None = None, *, spec: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None, **curves: Any,
) -> RunCurves:  # fmt: skip
    values = falling() if losses is None else losses
    found = {"loss": list(enumerate(values, 1)), "eval_loss": SOUND} | curves
    known = {"total_steps": STEPS, "rate": 1e-3, "checkpoints": (80, 100)} | (facts or {})
    return RunCurves(spec=RunSpec().with_values(spec or {}), curves=found, **known)


def rewards(each: float, accuracy: list[float]) -> dict[str, Any]:
    return {"rewards_chosen": [(i + 1, each * i) for i in range(STEPS)],
            "rewards_accuracies": list(enumerate(accuracy, 1))}  # fmt: skip


def late(value: float, last: float | None = None) -> list[tuple[int, float]]:
    """A curve of evaluations that has one value, or another at the end."""
    return held(*[value] * 9, value if last is None else last)


SOUND_RUNS = {
    "the usual curve": {},
    "a noisy curve": {"losses": falling(noise=0.5)},
    "a spike that heals": {"losses": [9.0 if i == 50 else x for i, x in enumerate(falling())]},
    "a warmup that rises first": {"losses": [3.0] * 5 + falling()[5:]},
    "rows that were known": {"losses": [0.01] * STEPS, "eval_loss": late(0.01)},
    "a held-out loss that wobbles": {"eval_loss": held(
        1.9, 1.2, 0.9, 0.7, 0.6, 0.55, 0.52, 0.53, 0.525, 0.53)},
    "a fall that is over": {"eval_loss": held(  # of the pirate demo
        3.5, 1.07, 0.62, 0.52, 0.49, 0.46, 0.41, 0.386, 0.342, 0.340)},
    "no evaluation": {"eval_loss": []},
    "a short run": {"losses": [1.0] * 15},
    "few steps that learned": {"losses": falling(0.2)[:60], "eval_loss": [],
                               "facts": {"total_steps": 60}},
    "few steps over plain texts": {"losses": falling(2.5)[:60], "eval_loss": [],
                                   "facts": {"total_steps": 60, "is_text": True}},
    "answers as long as the rows'": {"answer_length": late(1.1), "answers_overrun": late(0.0),
                                     "answers_copied": late(0.0)},
    "answers that end in the end": {"answers_overrun": late(1.0, 0.0)},
    "one answer of three that runs on": {"answers_overrun": late(1 / 3)},
    "lengths that approach the rows'": {"answer_length": held(
        3, 3, 2.8, 2.6, 2.4, 2.2, 1.9, 1.6, 1.3, 1.1)},
    "the best checkpoint is the adapter": {
        "eval_loss": held(1.9, 1.0, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4),
        "spec": {"train.load_best_model_at_end": True}},
    "pairs that are learned": {"spec": {"train.loss": "dpo"}, "losses": [
        0.69 * math.exp(-i / 60) for i in range(STEPS)], "eval_loss": [],
        **rewards(0.01, [0.5] * 30 + [0.9] * 70)},
    "easy pairs that are learned": {"spec": {"train.loss": "dpo"}, "eval_loss": [],
                                    "eval_rewards_accuracies": late(1.0),
                                    "answer_tokens": held(12, 20, 18),
                                    **rewards(0.01, [0.5] * 5 + [1.0] * 95)},
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND_RUNS)
def test_nothing_is_said_of_a_sound_run(name):
    assert read(run(**SOUND_RUNS[name])) == []


RISEN = held(1.9, 1.0, 0.7, 0.6, 0.65, 0.7, 0.78, 0.85, 0.9, 1.0)
STILL = held(2.2, 2.0, 1.8, 1.65, 1.5, 1.35, 1.2, 1.1, 1.0, 0.9)
FLAT = [1.5 + 0.01 * (-1) ** i for i in range(STEPS)]
EASY: dict[str, Any] = {"spec": {"train.loss": "dpo"}, "eval_loss": [],
                        **rewards(0.01, [0.5] * 5 + [1.0] * 95)}  # fmt: skip
SICK_RUNS: list[tuple[str, dict[str, Any], str, str, dict[str, Any]]] = [
    ("diverges", {"losses": falling()[:60] + [2.0 + 0.01 * i for i in range(40)]},
     "from 0.4", "duplicate", {"train.learning_rate": 2.5e-4}),
    ("diverges", {"losses": [], "facts": {"diverged": True, "ended": False}},
     "infinite", "duplicate", {"train.learning_rate": 2.5e-4}),
    ("memorises", {"eval_loss": RISEN, "facts": {"checkpoints": (46, 100)}},
     "lowest at step 40 (0.6) and has risen to 1", "compare", {"step": 46}),
    ("memorises", {"eval_loss": RISEN, "facts": {"ended": False}},
     "risen", "duplicate", {"train.load_best_model_at_end": True}),
    ("unfinished", {"eval_loss": STILL}, "from 1.1 to 0.9", "extend", {"epochs": 2}),
    ("too_short", {"losses": falling(1.5)[:40], "eval_loss": [], "facts": {"total_steps": 40},
                    "spec": {"train.num_train_epochs": 6}}, "the training loss is 1.6: a wanted "
     "token has a chance of 20%", "extend", {"epochs": 14}),
    ("too_short", {"losses": falling(1.5)[:12], "eval_loss": [], "facts": {
        "total_steps": 12, "checkpoints": ()}, "spec": {"train.max_steps": 12}}, "After 12 steps",
     "duplicate", {"train.max_steps": 130}),
    ("unfinished", {"eval_loss": STILL, "spec": {"train.max_steps": 100}}, "still fell", "extend",
     {"steps": 50}),
    ("learned_nothing", {"losses": FLAT, "eval_loss": late(1.5)}, "1.5 after 1.5", "duplicate",
     {"train.find_learning_rate": True}),
    ("learned_nothing", {"losses": FLAT, "eval_loss": late(1.5),
                         "spec": {"train.device": "cuda:0,cuda:1"}}, "1.5 after 1.5", "duplicate",
     {"train.learning_rate": 3e-3}),
    ("learned_nothing", {"losses": FLAT, "eval_loss": [], "facts": {"held_out": 0}},
     "1.5 after 1.5", "duplicate", {"train.learning_rate": 3e-3}),
    ("learned_nothing", {"losses": FLAT, "eval_loss": [], "spec": {"train.learning_rate": 1e-6},
                         "facts": {"rate": 1e-6}}, "low for LoRA", "duplicate",
     {"train.learning_rate": "auto"}),
    ("learned_nothing", {"losses": FLAT, "eval_loss": [], "spec": {"data.train_on": "all"}},
     "prompts carry loss", "duplicate", {"data.train_on": "assistant"}),
    ("learned_nothing", {"losses": FLAT, "eval_loss": [], "grad_norm": late(0.0),
                         "spec": {"method.target_modules": ["lm_head"]}},
     "no gradient", "duplicate", {"method.target_modules": "all-linear"}),
    ("noise", {"eval_loss": held(1.2, 0.8, 1.1, 0.8, 1.1, 0.7, 1.0, 0.72, 0.98, 0.7),
               "spec": {"train.per_device_train_batch_size": 1}},
     "only 1 row", "duplicate", {"train.gradient_accumulation_steps": 4}),
    ("never_ends", {"answers_overrun": late(1.0), "facts": {"rows_ended": 0.0,
                                                            "rows_truncated": 312}},
     "312 rows are cut at 1024", "duplicate", {"data.max_length": 2048}),
    ("never_ends", {"answers_overrun": late(1.0), "facts": {"rows_ended": 0.0}},
     "no end of turn", "duplicate", {"data.chat_template": "chatml"}),
    ("never_ends", {"answers_overrun": late(1.0), "facts": {"rows_ended": 1.0}},
     "100% of the sample answers", "extend", {"epochs": 3}),
    ("never_ends", {"answers_overrun": late(0.0, 1.0), "facts": {"rows_ended": 1.0,
                                                                 "checkpoints": ()}},
     "and go on", "duplicate", {"train.num_train_epochs": 6}),
    ("never_ends", {"answers_overrun": late(1.0), "spec": {"train.learning_rate": 0.3},
                    "facts": {"rate": 0.3}}, "0.3 is high for LoRA", "duplicate",
     {"train.learning_rate": "auto"}),
    ("ends_early", {"answer_length": late(0.1)}, "10% of the length", "duplicate",
     {"train.learning_rate": 3.3e-4}),
    ("copies_prompts", {"answers_copied": late(1.0), "spec": {"data.chat_template": "plain"}},
     "repeat their prompt", "duplicate", {"data.chat_template": "auto"}),
    ("drifts", {"answer_length": held(1, 1, 1, 1, 1, 1.1, 1.3, 1.6, 1.9, 2.4)},
     "from 1 to 2.4 times", "duplicate", {"train.learning_rate": 3.3e-4}),
    ("unlearns", {"spec": {"train.loss": "dpo"}, "eval_loss": [], **rewards(-0.05, [0.7] * STEPS)},
     "below the reference's since step", "duplicate", {"train.rpo_alpha": 1.0}),
    ("too_easy", {**EASY, "facts": {"longer_chosen": 0.99}},
     "reached 1 at step 6 of 100, and the chosen answer is the longer one in 99%", "duplicate",
     {"train.max_steps": 20}),
    ("too_easy", {**EASY, "facts": {"longer_chosen": 0.02}}, "the shorter one in 98%", "duplicate",
     {"train.max_steps": 20}),
    ("too_easy", {**EASY, "eval_rewards_accuracies": late(0.5)}, "but is 0.50 on held-out ones",
     "duplicate", {"train.max_steps": 20}),
    ("grows", {**EASY, "answer_tokens": held(12, 20, 30)}, "grew from 12 to 30 tokens",
     "duplicate", {"train.learning_rate": 3.3e-4}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "sick", "words", "action", "values"), SICK_RUNS)
def test_each_sign_is_found_with_the_change_that_mends_it(rule, sick, words, action, values):
    (found,) = read(run(**sick))
    assert found.rule == rule and words in found.text
    assert (found.remedy.action, found.remedy.values) == (action, values)
    if action == "duplicate":
        RunSpec().with_values(sick.get("spec", {})).with_values(values)


@pytest.mark.parametrize(
    ("rows", "rule"), [(3, "few_held_out"), (8, "memorises"), (None, "memorises")]
)
def test_a_few_held_out_rows_are_no_evidence_that_a_run_memorises(rows, rule):
    (found,) = read(run(eval_loss=RISEN, facts={"held_out": rows}))
    assert found.rule == rule and (found.remedy is None) == (rule == "few_held_out")
    assert rows != 3 or found.title == "The held-out loss rests on 3 rows"


FALLS = {  # slowly; within the first steps
    "slow": lambda rng, n: rng.uniform(0.2, 0.4) * np.arange(n) / n + rng.normal(
        0, rng.uniform(0.3, 0.8), n),
    "fast": lambda rng, n: rng.uniform(0.2, 0.4) * (1 - np.exp(-np.arange(n) / rng.uniform(
        0.5, 4))) + rng.normal(0, rng.uniform(0, 0.1), n),
    "none": lambda rng, n: rng.normal(0, 0.03, n),
}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "is_loop"),
    [("We are sorry that your laptop" + " that your laptop" * 3 + " and", True),
     ("It is so very, very, very good. It is so.", False), ("| - | - | - | - | - | - |", False),
     ("We will answer. We will answer.", False)],
)  # fmt: skip
def test_an_answer_that_repeats_a_phrase_is_found(answer, is_loop):
    found = read(run(facts={"answers": ("Fine.", answer)}))
    assert [one.rule for one in found] == ["repeats"] * is_loop
    assert not is_loop or 'such as "that your laptop"' in found[0].text


@pytest.mark.parametrize(("fall", "least", "most"), [
    ("slow", 0, 3), ("fast", 0, 3), ("none", 195, 200)])  # fmt: skip
def test_noise_is_not_taken_for_a_loss_that_stays(fall, least, most):
    found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        losses = 2 - FALLS[fall](rng, int(rng.integers(40, 201)))
        rules = [one.rule for one in read(run(losses.tolist(), eval_loss=[]))]
        found += "learned_nothing" in rules
    assert least <= found <= most


def test_rules_on_the_end_wait_for_it():
    assert read(run(eval_loss=STILL, answers_overrun=late(1.0), facts={"ended": False})) == []


def test_a_reference_is_needed_to_unlearn():
    assert read(run(spec={"train.loss": "orpo"}, eval_loss=[], **rewards(-0.05, [0.7] * 100))) == []


def test_sample_answers_are_compared_with_those_of_their_rows():
    prompt = SamplePrompt(tuple(range(20)), "q", own=(50, 51, 52, 53), own_ended=True)
    found = compared(7, [prompt] * 2, [([60, 61], True), (list(range(4, 16)), False)])
    assert (found.step, found.answer_length) == (7, 14 / 8)
    assert (found.answers_overrun, found.answers_copied, found.rows_ended) == (0.5, 0.5, 1.0)
    long = SamplePrompt(tuple(range(20)), "q", own=tuple(range(41)), limit=82)
    overrun = [compared(7, [long], [([9] * n, False)]).answers_overrun for n in (50, 82)]
    assert overrun == [0, 1]  # only at its limit
    mute = SamplePrompt(tuple(range(20)), "q", own=(50, 51), own_ended=False)
    assert compared(7, [mute], [([9] * 48, False)]).answers_overrun == 1  # no end is trained
    cut = compared(7, [prompt], [([60, 61], False)])  # by the time
    assert cut.answer_length is None and cut.answers_overrun == 0


def test_a_copy_is_a_long_run_of_the_prompt():
    prompt = list(range(30))
    assert copies(prompt[5:15], prompt)
    assert not copies(prompt[5:12], prompt)
    assert not copies([*prompt[5:13], *range(90, 120)], prompt)
    assert not copies([], prompt)
