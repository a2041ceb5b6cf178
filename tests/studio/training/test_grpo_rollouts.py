"""GRPO: losses and gradients are TRL's, answers the chat engine's, and rewards rise."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file

from studio.chat.chat_engine import ChatEngine
from studio.chat.lanes import Lane, Sampling
from studio.data.prepare_run_data import prepare
from studio.data.template.choose_template import choose_for
from studio.data.template.template import IGNORED
from studio.errors import DataError, MethodError, SpecError
from studio.methods import methods
from studio.models.find_model import facts
from studio.models.loading import Loaded
from studio.spec import DataSource, RunSpec
from studio.training import objectives
from studio.training.curve_findings import RunCurves, read
from studio.training.estimate_memory_and_time import STEP_SECONDS, estimate, step_flops
from studio.training.grpo_rollouts import Rollouts, advantages
from studio.training.preflight import preflight
from studio.training.sample_answers import continuations
from studio.training.sizes_for_estimates import longest_answer, read_shape
from studio.training.train_run import open_session, train
from studio.training.training_events import Evaluated, Finished, Step
from studio.training.training_session import Session
from tests.studio.tiny import tiny_model, tiny_spec, tiny_tokenizer
from tests.studio.training.conftest import Example, Rows, but_for_pace, make_loaded, run_all
from tests.studio.training.peer import require_gradients_of
from tests.studio.training.test_golden import adapter_bytes, run_steps

CAN_BE_OFF = [name for name, method in methods().items() if not method().trains_base]
DEMO = {
    "data.path": "starter:terse", "train.loss": "grpo",
    "train.rewards": "exact_match:0.8, rouge_l:0.2",
    "train.temperature": 2, "train.num_generations": 24, "train.num_iterations": 2,
    "train.max_completion_length": 24, "train.learning_rate": 3e-3, "train.beta": 0,
    "train.max_steps": 200, "train.measure_forgetting": False,
}  # fmt: skip
PROMPTS = ("say a", "what is one?", "b", "count: one two three", "where", "and now?")


def rows_of(prompts: tuple[str, ...] = PROMPTS) -> Rows:
    """Prompts of different lengths; the reference is the letter b."""
    tokens, made = tiny_tokenizer(), []
    for number, prompt in enumerate(prompts):
        ids = tokens(prompt)["input_ids"]
        whole = np.array([*ids, *tokens("b")["input_ids"]], np.int32)
        labels = np.where(np.arange(len(whole)) < len(ids), IGNORED, whole).astype(np.int32)
        made.append(Example(whole, labels, number + 1))
    return Rows(made, made[:3])


def tiny_loaded() -> Loaded:
    known = make_loaded()
    facts = replace(known.facts, vocab_size=64, context_length=128)
    return replace(known, model=tiny_model("llama"), tokenizer=tiny_tokenizer(), facts=facts)


def made(name: str = "lora", targets: Any = ("q_proj", "up_proj"), **train_values: Any) -> Session:
    values = {"loss": "grpo", "rewards": "pattern:1, contains:0.5", "reward_pattern": "[a-m]",
              "num_generations": 4, "max_completion_length": 6, "max_steps": 6,
              "per_device_train_batch_size": 3, "num_samples": 0, "learning_rate": 5e-3,
              "eval_steps": 3, **train_values}  # fmt: skip
    method: dict[str, Any] = {"name": name}
    method |= {"r": 4, "target_modules": targets} if name == "lora" else {}
    method |= {"create_missing": True} if name == "bitfit" else {}
    spec = RunSpec.parse({"method": method, "train": values})
    return open_session(spec, loaded=tiny_loaded(), prepared=rows_of())


def shaken(own: Session, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in own.parameters:
        parameter.data.normal_(0, 0.2, generator=generator)


# -- the loss ------------------------------------------------------------------------------------


def trainer_of(folder: Path, **values: Any) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GRPOTrainer(
            model=tiny_model("llama"), reward_funcs=[lambda completions, **_: [0.0]],
            args=GRPOConfig(
                output_dir=str(folder), per_device_train_batch_size=12, use_cpu=True, bf16=False,
                gradient_checkpointing=False, report_to=[], num_generations=4, **values,
            ),
            train_dataset=Dataset.from_list([{"prompt": one} for one in PROMPTS]),
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "up_proj"],
                                   task_type="CAUSAL_LM"),
        )  # fmt: skip


def their_inputs(answers: list[Any]) -> dict[str, Any]:
    """Our answers as TRL holds them: prompts padded on the left, completions on the right."""
    prompts = [one.input_ids[one.labels == IGNORED].tolist() for one in answers]
    ends = [one.input_ids[one.labels != IGNORED].tolist() for one in answers]
    wide, long = max(map(len, prompts)), max(map(len, ends))
    counts = sum(map(len, ends))
    return {
        "prompt_ids": torch.tensor([[0] * (wide - len(p)) + p for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (wide - len(p)) + [1] * len(p) for p in prompts]),
        "completion_ids": torch.tensor([e + [0] * (long - len(e)) for e in ends]),
        "completion_mask": torch.tensor([[1] * len(e) + [0] * (long - len(e)) for e in ends]),
        "advantages": torch.tensor([one.advantage for one in answers]),
        "num_items_in_batch": torch.tensor(float(counts)),
    }  # fmt: skip


def their_log_probs(trainer: Any, inputs: dict[str, Any]) -> torch.Tensor:
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    count = inputs["completion_ids"].shape[1]
    with torch.no_grad():
        found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, count)
    return found[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "values",
    [{"beta": 0.3}, {"beta": 0.0, "temperature": 1.7},
     {"beta": 0.1, "temperature": 1.3, "num_iterations": 2, "epsilon": 0.1}],
    ids=["kl", "temperature", "clipped"],
)  # fmt: skip
def test_loss_kl_and_gradients_equal_those_of_trl(values, tmp_path):
    pytest.importorskip("trl", reason='the oracle is in the extra "test"')
    own = made(**values)
    shaken(own, 1)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    own.backbone.save(own.name, tmp_path / "old")
    passed = own.forward_backward(own)
    if "num_iterations" in values:
        own.optimizer.zero_grad(set_to_none=True)
        shaken(own, 2)  # as if an update had moved the weights far
        passed = own.forward_backward(own)
    own.backbone.save(own.name, tmp_path / "new")
    assert isinstance(own.preference, Rollouts)
    shown = own.preference.report([float(one) for one in passed.sums])

    trainer = trainer_of(tmp_path / "trl", **values)
    (rows,) = own.next_rows()
    inputs = their_inputs([one for row in rows for one in own.preference._answers[row]])
    assert float(inputs["advantages"].abs().sum()) > 1
    set_peft_model_state_dict(
        trainer.model, load_file(tmp_path / "old" / "adapter_model.safetensors")
    )
    inputs["old_per_token_logps"] = their_log_probs(trainer, inputs)
    with trainer.model.disable_adapter():
        inputs["ref_per_token_logps"] = their_log_probs(trainer, inputs)
    set_peft_model_state_dict(
        trainer.model, load_file(tmp_path / "new" / "adapter_model.safetensors")
    )
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1
    found = trainer._compute_loss(trainer.model.train(), inputs)
    found.backward()
    assert float(sum(passed.losses)) == pytest.approx(float(found), rel=1e-4, abs=1e-6)
    if values["beta"]:
        assert shown["kl"] == pytest.approx(trainer._metrics["train"]["kl"][-1], rel=1e-4)
    else:
        assert shown["kl"] is None
    if "num_iterations" in values:
        assert trainer._metrics["train"]["clip_ratio/region_mean"][-1] > 0.1
    require_gradients_of(trainer.model, own)


def test_an_advantage_is_the_distance_from_the_group_in_its_spread():
    rewards = torch.tensor([[0.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    spread = rewards.std(1, keepdim=True)  # √½ and 0
    found = advantages(rewards, spread)
    assert found[0].tolist() == pytest.approx([-0.5 / (0.5**0.5 + 1e-4), 0.5 / (0.5**0.5 + 1e-4)])
    assert found[1].tolist() == [0, 0]
    assert advantages(rewards)[0].tolist() == [-0.5, 0.5]
    own = made()
    # Over all four: mean 1.25, squared distances 1.5625 + 0.0625 + 2 × 0.5625 = 2.75, over 3.
    assert float(own.preference._spread(rewards)) == pytest.approx((2.75 / 3) ** 0.5)


# -- the answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "prefix_tuning"])
def test_answers_are_those_of_the_chat_engine(name):
    own = made(name)
    shaken(own, 3)
    own.activate()
    tokenizer = own.loaded.tokenizer
    template = choose_for(tokenizer, own.spec.data)
    asked = [[{"role": "user", "content": text}] for text in PROMPTS[:3]]
    samplings = [[Sampling(temperature=1.2, seed=10 * i + k, max_new_tokens=9) for k in range(3)]
                 for i in range(3)]  # fmt: skip
    found = continuations(
        own.backbone, [template.encode_prompt(one) for one in asked], samplings,
        device=own.loaded.device, stop_ids=own.preference.stop_ids, limits=[9] * 3,
    )  # fmt: skip
    engine = ChatEngine(own.loaded, own.backbone)
    lanes = [
        Lane.model_validate({"stack": [{"name": own.name}], "messages": messages,
                             "sampling": one.model_dump(), "template": "plain"})
        for messages, some in zip(asked, samplings, strict=True) for one in some
    ]  # fmt: skip
    theirs: list[list[int]] = [[] for _ in lanes]
    for delta in engine.stream(lanes):
        if delta.token_id is not None:
            theirs[delta.lane].append(delta.token_id)
    mine = [[*one.ids] for one in found]
    assert [[t for t in one if t not in own.preference.stop_ids] for one in theirs] == mine
    assert len({tuple(one) for one in mine}) > 3


def shown_of(steps: list[Step]) -> list[list[float]]:
    return [[s.loss, s.grad_norm, s.reward, s.reward_std, s.frac_reward_zero_std,
             s.completion_length, s.kl] for s in steps]  # fmt: skip


def test_batches_and_padding_change_nothing():
    changes: list[dict[str, Any]] = [
        {}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3},
        {"packing": False}, {"gradient_checkpointing": True},
    ]  # fmt: skip
    found = [shown_of(run_steps(made(num_iterations=2, **change), 3)) for change in changes]
    for other in found[1:]:
        for numbers, expected in zip(other, found[0], strict=True):
            assert numbers == pytest.approx(expected, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("name", CAN_BE_OFF)
def test_every_method_that_can_be_switched_off_learns_against_the_bare_base(name):
    own = made(name)
    first = own.step()
    begins_with_effect = name in ("prefix_tuning", "prompt_tuning", "p_tuning")
    assert (first.kl == pytest.approx(0, abs=1e-5)) is not begins_with_effect
    assert first.grad_norm > 0 and first.reward_std > 0


def test_a_stop_and_a_resume_change_not_one_bit(tmp_path):
    values = {"num_iterations": 2, "load_best_model_at_end": True}
    whole, second = made(**values), made(**values)
    straight = run_all(whole, tmp_path / "whole")
    first = run_all(made(**values), tmp_path / "halves", stop_at=3)
    rest = run_all(second, tmp_path / "halves")
    assert adapter_bytes(whole) == adapter_bytes(second)
    assert but_for_pace(straight) == but_for_pace(first + rest)
    held = [e.reward for e in straight if isinstance(e, Evaluated)]
    assert len(held) == 2 and whole.progress.best_accuracy == max(held)
    passport = json.loads((tmp_path / "whole" / "adapter" / "passport.json").read_text())
    assert passport["eval_score"] == max(held)


def test_the_reward_rises(tmp_path):
    """A random model learns to answer with one of five letters of 64."""
    own = made(rewards="pattern", reward_pattern="^[a-e]", max_steps=30, max_completion_length=1,
               num_generations=16, learning_rate=4e-2, lr_scheduler_type="constant", beta=0,
               per_device_train_batch_size=6, eval_steps=30)  # fmt: skip
    events = run_all(own, tmp_path)
    rewards = [e.reward for e in events if isinstance(e, Step)]
    assert sum(rewards[:2]) / 2 < 0.2 and sum(rewards[-10:]) / 10 > 0.4
    assert [e.reward for e in events if isinstance(e, Evaluated)][-1] > 0.8  # greedy


def test_a_run_without_a_signal_is_found(tmp_path):
    own = made(rewards="number", max_steps=20, eval_steps=-1, num_generations=2)  # no digits
    steps = [e for e in run_all(own, tmp_path) if isinstance(e, Step)]
    assert steps[0].frac_reward_zero_std == 1 and steps[0].reward == 0
    curves = {
        name: [(s.step, getattr(s, name)) for s in steps]
        for name in ("loss", "reward", "frac_reward_zero_std")
    }
    (found,) = read(RunCurves(spec=own.spec, curves=curves, total_steps=20, rate=1e-3))
    assert found.rule == "no_signal" and found.remedy.values == {"train.temperature": 1.5}
    curves["reward"] = [(step, 0.95) for step, _ in curves["reward"]]
    assert read(RunCurves(spec=own.spec, curves=curves, total_steps=20, rate=1e-3)) == []


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"train.rewards": ""}, SpecError, "names no score"),
        ({"train.rewards": "bleu:1"}, SpecError, 'Unknown score "bleu"'),
        ({"train.rewards": "pattern:1"}, SpecError, "set train.reward_pattern"),
        ({"train.rewards": "json_schema"}, SpecError, "set train.reward_json_schema"),
        ({"train.num_generations": 1}, SpecError, "nothing to compare"),
        ({"method.name": "full"}, MethodError, "second copy .* train.beta=0"),
        ({"train.fsdp": True}, SpecError, "train.fsdp=false"),
        ({"train.loss": "dpo", "train.beta": 0}, SpecError, "switches dpo off"),
    ],
)
def test_what_cannot_be_is_one_sentence(values, error, words):
    usual = {"train.loss": "grpo", "train.rewards": "json"}
    with pytest.raises(error, match=words) as found:
        objectives.check(RunSpec().with_values(usual | values))
    assert "\n" not in found.value.text
    objectives.check(RunSpec().with_values(usual | {"method.name": "full", "train.beta": 0}))


def prompts_of(path: Path, rows: list[dict[str, Any]], kind: str, **source: Any) -> Any:
    path.write_text("\n".join(map(json.dumps, rows)))
    values = {"path": str(path), "validation_fraction": 0, **source}
    return prepare(DataSource(**values), tiny_tokenizer(), context_length=64, seed=0, rows=kind)


def test_rows_are_prompts_with_a_reference_where_there_is_one(tmp_path):
    asked = {"role": "user", "content": "say a"}
    rows = [{"messages": [asked, {"role": "assistant", "content": "aa"}]}, {"messages": [asked]},
            {"messages": [asked, {"role": "assistant", "content": "b"}, asked]},
            {"messages": [{"role": "user", "content": "x" * 80}]}]  # fmt: skip
    made = prompts_of(tmp_path / "a.jsonl", rows, "prompts")
    assert [int((e.labels != IGNORED).sum()) for e in made.train] == [2, 0, 0]
    assert len(made.train[2].input_ids) > len(made.train[1].input_ids)
    assert made.report.problem_counts == {"too_long": 1}
    made = prompts_of(tmp_path / "a.jsonl", rows, "referenced")
    assert len(made.train) == 1 and made.report.problem_counts["no_reference"] == 3
    with pytest.raises(DataError, match="has no answer, and a score of train.rewards"):
        prompts_of(tmp_path / "b.jsonl", rows[1:3], "referenced")
    for rows, trained in (
        ([{"prompt": "say a"}, {"prompt": "b"}], [0, 0]),
        ([{"prompt": [asked], "solution": "aa", "level": 1}, {"prompt": [asked]}], [2, 0]),
        ([{"question": "say a", "answer": "aa"}, {"question": "b", "answer": ""}], [2, 0]),
    ):
        made = prompts_of(tmp_path / "c.jsonl", rows, "prompts")
        assert [int((e.labels != IGNORED).sum()) for e in made.train] == trained
    assert not [one for one in made.report.warnings if "trained" in one]


def test_a_row_without_a_question_is_no_prompt(tmp_path):
    answer, rule = {"role": "assistant", "content": "aa"}, {"role": "system", "content": "be kind"}
    asked = {"role": "user", "content": "say a"}
    rows = [{"messages": turns} for turns in (
        [answer], [rule], [rule, answer], [asked], [rule, asked, answer])]  # fmt: skip
    made = prompts_of(tmp_path / "a.jsonl", rows, "prompts")
    assert (len(made.train), made.report.problem_counts) == (2, {"empty_prompt": 3})


# -- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    return tiny_spec(
        folder, train__device="cpu", train__num_samples=2, train__max_steps=3, train__eval_steps=3,
        train__loss="grpo", train__rewards="contains, pattern:0.5", train__reward_pattern="[a-m]",
        train__self_test=False, train__num_generations=4, train__max_completion_length=6,
        train__per_device_train_batch_size=4, data__validation_fraction=0.2,
    )  # fmt: skip


@pytest.mark.parametrize(  # the spread of a batch is that of all processes, of a group of one
    "scale", ["batch", pytest.param("group", marks=pytest.mark.long)]
)
def test_two_processes_give_what_one_gives(forked_ranks, world, home, tmp_path, scale):
    found = {}
    for processes in (1, 2):
        spec = world.with_values({"train.num_processes": processes, "train.scale_rewards": scale})
        events = list(train(spec, run_dir=tmp_path / str(processes), home=home))
        found[processes] = shown_of([e for e in events if isinstance(e, Step)])
        assert any(isinstance(e, Evaluated) and e.reward is not None for e in events)
    assert np.array(found[2]) == pytest.approx(np.array(found[1]), rel=1e-3, abs=1e-5)


def test_estimate_and_preflight_know_the_answers(world, home, tmp_path):
    plain = estimate(world.with_values({"train.loss": "sft"}), home)
    short, long, twice = (
        estimate(world.with_values({f"train.{name}": value}), home)
        for name, value in (("max_completion_length", 6), ("max_completion_length", 60),
                            ("num_generations", 8))
    )  # fmt: skip
    assert plain.seconds < short.seconds < twice.seconds
    assert plain.longest_batch_tokens < short.longest_batch_tokens < long.longest_batch_tokens
    # 4 prompts with 4 answers of up to 60 tokens each
    assert long.longest_batch_tokens - short.longest_batch_tokens == 4 * 4 * (60 - 6)
    told = list(preflight(world, run_dir=tmp_path, home=home))
    assert isinstance(told[-1], Finished) and "s a step" in told[-1].note
    report = json.loads((tmp_path / "preflight.json").read_text())
    assert report["measured"] and report["seconds"] > 0


def test_the_time_counts_each_update_the_reference_and_the_longest_answer(world, home):
    spec = world.with_values({"train.num_iterations": 2, "train.beta": 0.1})
    shape = read_shape(facts(spec.model))
    body, head = 2 * shape.layers * shape.layer_parameters, 2 * shape.hidden * shape.vocabulary
    # two updates forward and backward, the reference and the answers forward
    assert step_flops(spec, shape, tokens=50, targets=10) == 6 * (body * 50 + head * 10)
    assert longest_answer(8, 128) == pytest.approx(8 * (7 * math.log(2) + 0.58))
    assert longest_answer(8, 1) == 8
    times = [estimate(spec.with_values({"train.num_iterations": n}), home).seconds
             for n in (1, 2, 3)]  # fmt: skip
    update = spec.train.max_steps * STEP_SECONDS * shape.layers
    assert times[2] - times[1] == pytest.approx(times[1] - times[0])
    assert times[1] - times[0] > update, "one more pass through the layers"


@pytest.mark.long
def test_the_starter_learns_a_format_from_reward_alone(home, tmp_path):
    """It answers in sentences and has to learn the bare word, of which it never sees an example.

    ROUGE-L gives the direction: the shorter the sentence around the right word, the more.
    """
    spec = RunSpec().with_values(DEMO | {"train.device": "cpu"})
    events = list(train(spec, run_dir=tmp_path, home=home))
    rewards = [e.reward for e in events if isinstance(e, Step)]
    held = [e.reward for e in events if isinstance(e, Evaluated)]
    assert 0.05 <= round(sum(rewards[:5]) / 5, 2) <= 0.2 and held[0] < 0.2
    assert held[-1] >= 0.8
