"""Learning from preferences: pairs stay together, nothing depends on batches, resume is exact."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from studio.backbone import Backbone
from studio.data import prepare_run_data
from studio.errors import DataError, MethodError, SpecError
from studio.methods import methods
from studio.spec import RunSpec
from studio.training import objectives, preference_loss
from studio.training.batching import pack
from studio.training.preference_loss import Rewards
from studio.training.train_run import train
from studio.training.training_events import Evaluated, Step
from studio.training.training_session import Session
from tests.studio.tiny import tiny_spec
from tests.studio.training.conftest import Rows, but_for_pace, make_rows, make_session, run_all
from tests.studio.training.test_golden import adapter_bytes, run_steps

CAN_BE_OFF = [name for name, method in methods().items() if not method().trains_base]
REFERENCED = ("dpo", "ipo", "kto")


def pairs(count: int = 12, *, judged: bool = False) -> Rows:
    """Pairs whose sides share their first two tokens, or judged answers."""
    made = make_rows(2 * count + 4, seed=5, shortest=5)
    rows = [*made.train, *made.validation][: 2 * count]
    for number, row in enumerate(rows):
        row.row, row.good = number // 2, number % 2 == 0
        row.input_ids[:2] = rows[number // 2 * 2].input_ids[:2]
        row.labels[:2] = -100
    held = 2 * count // 3
    return Rows(rows[held:], rows[:held], rows_per_example=1 if judged else 2)


def made(loss: str, name: str = "lora", device: str = "cpu", **train_values: Any) -> Session:
    values = {"loss": loss, "max_steps": 6, "per_device_train_batch_size": 4, "eval_steps": 3,
              "num_samples": 0, "learning_rate": 5e-3, **train_values}  # fmt: skip
    method = {"name": name, **({"create_missing": True} if name == "bitfit" else {})}
    own = make_session(pairs(judged=loss == "kto"), device, method=method, train=values)
    own.loaded.tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    return own


def prepared(own: Session, folder: Path) -> Session:
    assert own.preference is not None
    list(own.preference.prepare_reference(folder))
    return own


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "orpo", "simpo", "cpo"])
def test_batches_padding_and_checkpointing_change_nothing(loss, tmp_path):
    changes: list[dict[str, Any]] = [
        {}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        {"packing": False}, {"gradient_checkpointing": True},
    ]  # fmt: skip
    found = []
    for change in changes:
        own = prepared(made(loss, **change), tmp_path)
        for units in (rows for step in range(6) for rows in [own.next_rows()]):
            for rows in units:
                if loss != "kto":
                    assert [row % 2 for row in rows] == [0, 1] * (len(rows) // 2)
        steps = run_steps(own, 4)
        held = own.evaluate()
        found.append([[s.loss, s.grad_norm, *_rewards(s)] for s in steps]
                     + [[held.eval_loss, held.kl, held.rewards_accuracies]])  # fmt: skip
    if loss == "kto":  # goods and bads are compared within a batch
        for one in found:
            for numbers in one:
                numbers[5 if len(numbers) > 3 else 2] = 0.0
    for one in found:
        one[0][5] = 0.0  # in the first step rewards are rounding errors
    for other in found[1:]:
        for numbers, expected in zip(other, found[0], strict=True):
            assert numbers == pytest.approx(expected, rel=1e-3, abs=1e-5)


def _rewards(step: Step) -> Rewards:
    return Rewards(**{name: getattr(step, name) for name in Rewards._fields})


@pytest.mark.parametrize("name", CAN_BE_OFF)
def test_the_reference_is_the_bare_base_and_the_first_step_costs_log_2(name, tmp_path):
    own = made("dpo", name)
    bare = _bare_log_probs(own)
    own = prepared(own, tmp_path)
    held = own.preference.reference["train"]
    torch.testing.assert_close(held, bare, rtol=1e-4, atol=1e-4)
    first = own.step()
    begins_with_effect = name in ("prefix_tuning", "prompt_tuning", "p_tuning")
    assert (first.loss == pytest.approx(math.log(2), abs=1e-4)) is not begins_with_effect
    assert first.grad_norm > 0


@pytest.mark.parametrize("name", CAN_BE_OFF)
def test_the_prompt_of_a_pair_is_computed_once_and_nothing_differs(name, tmp_path, monkeypatch):
    found, tokens, shared = [], [], []
    for shares in (False, True):
        monkeypatch.setattr(Backbone, "shares_prompts", shares)
        own = prepared(made("dpo", name), tmp_path / str(shares))
        generator = torch.Generator().manual_seed(1)
        for parameter in own.parameters:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        passed = own.forward_backward(own)
        tokens.append(passed.num_tokens)
        gradients = [parameter.grad for parameter in own.parameters]
        found.append([own.preference.reference["train"], *passed.losses, *passed.sums, *gradients])
        found[-1] += [torch.tensor(own.evaluate().eval_loss)]
        shared.append(passed.num_shared)
    assert tokens[0] - tokens[1] == shared[1] - shared[0] >= 8  # two of each pair
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


def test_a_run_says_how_many_tokens_it_saved(tmp_path):
    own = made("dpo")
    steps = [event for event in run_all(own, tmp_path) if isinstance(event, Step)]
    computed = sum(step.tokens for step in steps)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tokens"] == computed and report["shared_tokens"] >= 2 * 4 * len(steps)
    whole = computed + report["shared_tokens"]
    assert steps[-1].tokens_shared == report["shared_tokens"] / whole
    alone = made("dpo", packing=False)
    assert [one.tokens_shared for one in run_steps(alone, 2)] == [None, None]


def test_noise_on_the_embeddings_is_that_of_each_row():
    own = made("dpo", neftune_noise_alpha=5.0)
    assert own.backbone.shares_prompts
    assert all(not batch.shared for batch in own.next_batches())


def _bare_log_probs(own: Session) -> torch.Tensor:
    """Sums of the label tokens' log-probabilities from the whole logits of the bare base."""
    own.backbone.use([])
    sums = []
    for row in own.prepared.train:
        batch = pack([row], torch.device("cpu"))
        with own.backbone.evaluating():
            logits = own.backbone.packed_logits(batch.ids_T, batch.lengths, batch.keep_N)
        sums.append(logits.log_softmax(-1).gather(1, batch.targets_N[:, None]).sum())
    own.activate()
    return torch.stack(sums)


@pytest.mark.parametrize("loss", ["dpo", "kto", "orpo"])
def test_a_stop_and_a_resume_change_not_one_bit(loss, tmp_path, monkeypatch):
    whole, second = made(loss), made(loss)
    straight = run_all(whole, tmp_path / "whole")
    first = run_all(made(loss), tmp_path / "halves", stop_at=3)
    passes: list[int] = []
    own = preference_loss.Preference._log_probs

    def counted(self: Any, examples: Any) -> Any:
        passes.append(len(examples))
        return own(self, examples)

    monkeypatch.setattr(preference_loss.Preference, "_log_probs", counted)
    second.preference.prepare_reference(tmp_path / "halves")
    assert list(second.preference.prepare_reference(tmp_path / "halves")) == [] and not passes
    rest = run_all(second, tmp_path / "halves")
    assert adapter_bytes(whole) == adapter_bytes(second)
    assert but_for_pace(straight) == but_for_pace(first + rest)


def test_what_was_evaluated_includes_the_verdicts():
    rows, others = pairs(judged=True), pairs(judged=True)
    others.validation[0].good = not others.validation[0].good
    one, other = (make_session(own, train={"loss": "kto"}).origin for own in (rows, others))
    assert one.evaluated["hash"] != other.evaluated["hash"]


def test_kto_compares_with_answers_to_other_prompts():
    rows = pairs(judged=True)
    for row in rows.train:
        row.labels[2:] = row.input_ids[2:]
    own = make_session(rows, train={"loss": "kto"})
    for place, row in enumerate(rows.train):
        answer = own.preference.mixed("train", place).input_ids[2:].tolist()
        assert answer in [other.input_ids[2:].tolist() for other in rows.train
                          if other.row != row.row]  # fmt: skip


def test_another_base_or_row_makes_another_reference(tmp_path):
    first = prepared(made("dpo"), tmp_path)
    other = made("dpo")
    other.prepared.train[0].input_ids[-1] = 3
    other.prepared.train[0].labels[-1] = 3
    prepared(other, tmp_path)
    assert other.preference.reference["train"][0] != first.preference.reference["train"][0]
    assert torch.equal(other.preference.reference["train"][1:],
                       first.preference.reference["train"][1:])  # fmt: skip


def test_learning_raises_the_accuracy_of_held_out_pairs_and_moves_away_from_the_base(tmp_path):
    rows = pairs(24)
    for row in [*rows.train, *rows.validation]:  # chosen answers end with 7, the others with 8
        row.input_ids[-3:] = row.labels[-3:] = 7 if row.good else 8
    own = make_session(rows, train={"loss": "dpo", "max_steps": 40, "num_samples": 0,
                                    "learning_rate": 2e-2})  # fmt: skip
    events = run_all(own, tmp_path)
    held = [e for e in events if isinstance(e, Evaluated)]
    assert held[-1].rewards_accuracies == 1.0 and held[-1].kl > 0.01
    assert 0 < own.preference.longer_chosen < 1


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"method.name": "full", "train.loss": "dpo"}, MethodError, "second copy"),
        *(  # on a sharded base ranks would have to find out together if prompts are shared
            ({"train.loss": loss, "train.fsdp": True}, SpecError, "train.fsdp=false")
            for loss in ("kto", "dpo", "orpo")
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(values, error, words):
    with pytest.raises(error, match=words):
        objectives.check(RunSpec().with_values(values))
    objectives.check(RunSpec().with_values({"method.name": "full", "train.loss": "orpo"}))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model and a file of pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    spec = tiny_spec(folder, train__device="cpu", train__num_samples=0, train__max_steps=4,
                     train__eval_steps=2, train__loss="dpo", train__self_test=False)  # fmt: skip
    rows = [{"prompt": f"say {w}", "chosen": f"{w}{w} please", "rejected": f"no {w}"}
            for w in "abcdefghijklmnopqrst"]  # fmt: skip
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return spec.with_values({"data.path": str(file), "data.validation_fraction": 0.2})


def test_sorted_verdicts_are_refused_only_where_all_are_known(world, home, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_run_data, "MANY_ROWS", 100)
    for name, num_good, num_bad in (("long", 150, 9), ("short", 80, 0)):
        rows = [{"prompt": f"say {i}", "completion": f"{i}!", "label": i < num_good}
                for i in range(num_good + num_bad)]  # fmt: skip
        file = tmp_path / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        spec = world.with_values({"data.path": str(file), "train.loss": "kto"})
        if num_bad:
            assert prepare_run_data.first_report(spec, home).rows.kept == 100
        else:
            with pytest.raises(DataError, match="judged as good"):
                prepare_run_data.first_report(spec, home)


def test_two_processes_give_what_one_gives(forked_ranks, world, home, tmp_path):
    found = {}
    for processes in (1, 2):
        spec = world.with_values({"train.num_processes": processes})
        events = list(train(spec, run_dir=tmp_path / str(processes), home=home))
        found[processes] = [
            [s.loss, s.grad_norm, *_rewards(s)]
            for s in events if isinstance(s, Step)
        ]  # fmt: skip
        assert any(isinstance(e, Evaluated) and e.kl is not None for e in events)
    assert len(found[1]) == 4
    assert np.array(found[2]) == pytest.approx(np.array(found[1]), rel=1e-3, abs=1e-5)
