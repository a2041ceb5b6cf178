"""Forgetting equals plain torch computations on the live model, and `generate`."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from studio.backbone import Backbone
from studio.evaluation import forgetting
from studio.evaluation.forgetting import RunForgetting, general_set, greedy_rows, measure
from studio.home import open_home
from studio.models.loading import load
from studio.spec import ModelSource
from studio.training.train_run import train
from studio.training.training_events import Forgotten
from tests.studio.methods.test_matrix import attached
from tests.studio.tiny import tiny_folder, tiny_spec

LABELS = ["lora-r=4", "prefix_tuning-num_virtual_tokens=5", "bottleneck-bottleneck_dim=6"]


@pytest.fixture(params=LABELS)
def bench(request, tmp_path):
    """A base with a trained adapter `a`, and the embedded general set on it."""
    backbone, _ = attached(request.param, "llama", trained=True)
    loaded = load(ModelSource(path=str(tiny_folder(tmp_path / "model"))), "cpu")
    loaded.model = backbone.model
    return loaded, backbone, general_set(loaded, None, tokens_before=5)


def answers(model, general, prompts):
    made = []
    for prompt in prompts:
        ids = model.generate(
            torch.tensor([prompt]), max_new_tokens=forgetting.MAX_NEW_TOKENS, do_sample=False,
            eos_token_id=list(general.stop_ids), pad_token_id=0,
        )  # fmt: skip
        made.append(ids[0, len(prompt) :].tolist())
    return made


def test_the_three_figures_equal_plain_computations(bench):
    loaded, backbone, general = bench
    stack = (("a", 1.0),)
    found = measure(loaded, backbone, general, stack)
    assert found["rows"] == len(general.rows) > 10
    assert found["prompts"] == len(general.prompts) > 2
    losses, kept = [], []
    for active in ((), stack):
        backbone.use(active)
        total = tokens = 0
        for row in general.rows:
            ids, labels = torch.tensor(row.input_ids)[None].long(), torch.tensor(row.labels).long()
            with torch.no_grad():
                logits = backbone.model(input_ids=ids).logits[0]
            total += float(cross_entropy(logits[:-1], labels[1:], reduction="sum"))
            tokens += int((labels[1:] != -100).sum())
        losses.append(total / tokens)
        kept.append(answers(backbone.model, general, general.prompts))
    assert [found["loss_before"], found["loss_after"]] == pytest.approx(losses, rel=1e-5)
    assert found["rise"] == pytest.approx(losses[1] - losses[0], rel=1e-4)
    assert found["rise_interval"][0] < found["rise"] < found["rise_interval"][1]
    assert found["changed"] == sum(a != b for a, b in zip(*kept, strict=True)) > 0
    total = tokens = 0
    for prompt, answer in zip(general.prompts, kept[0], strict=True):
        logits = []
        for active in ((), stack):
            backbone.use(active)
            with torch.no_grad():
                out = backbone.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
            logits.append(log_softmax(out[len(prompt) - 1 : -1], -1))
        total += float(kl_div(logits[1], logits[0], reduction="sum", log_target=True))
        tokens += len(answer)
    assert found["forgetting"] == pytest.approx(total / tokens, rel=1e-4)


def test_a_stack_that_changes_nothing_forgets_nothing(bench):
    loaded, backbone, general = bench
    found = measure(loaded, backbone, general, ())
    assert (found["rise"], found["changed"]) == (0, 0)
    assert abs(found["forgetting"]) < 1e-6


def test_an_overflow_of_the_base_is_nan_and_not_an_answer_without_tokens(bench, monkeypatch):
    loaded, backbone, general = bench
    last = general.prompts[0][-1]
    weight = loaded.model.get_input_embeddings().weight
    monkeypatch.setattr(weight, "data", weight.data.clone())
    weight.data[last] = math.nan
    assert math.isnan(measure(loaded, backbone, general, ())["forgetting"])


def test_little_time_means_few_rows_not_much_time(bench, monkeypatch):
    loaded, backbone, general = bench
    moments = iter(range(10_000))
    monkeypatch.setattr(forgetting.time, "monotonic", lambda: float(next(moments)))  # 1 s a look
    found = measure(loaded, backbone, general, (("a", 1.0),), seconds=3)
    assert 0 < found["rows"] < len(general.rows)
    assert found["prompts"] < len(general.prompts)
    cut = greedy_rows(loaded, backbone, general.prompts, [(), ()], stop_ids=(), seconds=2)
    assert {len(ids) for own in cut for ids in own} < set(range(1, 5))


def test_all_points_of_a_curve_rest_on_the_same_prompts_however_slow_the_machine(
    bench, monkeypatch
):
    loaded, backbone, general = bench
    whole = measure(loaded, backbone, general, (("a", 1.0),))
    (base,) = forgetting.observe(loaded, backbone, general, [()])
    monkeypatch.setattr(forgetting, "PASS_LOGITS", 1)  # one answer in each pass
    late = measure(loaded, backbone, general, (("a", 1.0),), seconds=0, base=base)
    for figure in ("forgetting", "interval", "changed", "prompts"):
        assert late[figure] == pytest.approx(whole[figure], rel=1e-4)


@pytest.mark.parametrize("size", [2, 3, 4, 12])
def test_the_interval_covers_the_truth_in_95_percent_however_few_answers(size):
    draw, trials = np.random.default_rng(0), 2000
    lengths = draw.integers(8, 17, (trials, size))
    sums = 0.1 * lengths + 0.05 * draw.normal(size=(trials, size)) * lengths**0.5
    found = [forgetting._ratio(*one)[1] for one in zip(sums, lengths, strict=True)]
    share = np.mean([low <= 0.1 <= high for low, high in found])
    assert share == pytest.approx(0.95, abs=0.015)  # 1.96 alone covers 70 % of two answers


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_stores_what_it_forgot(tmp_path, method):
    spec = tiny_spec(tmp_path, method__name=method, train__max_steps=3, train__learning_rate=0.05)
    spec = spec.with_values({"train.measure_forgetting": True})
    home, run_dir = open_home(tmp_path / "home"), tmp_path / "run"
    *_, finished = train(spec, run_dir=run_dir, home=home)
    found = finished.facts["forgetting"]
    assert found["forgetting"] > 0 and math.isfinite(found["rise"])
    passport = json.loads((run_dir / "adapter" / "passport.json").read_text())
    assert passport["forgetting"] == found
    (again,) = train(spec, run_dir=run_dir, home=home)  # it had ended: the same result
    assert again.facts == finished.facts
    if method == "full":  # loss before is the base's own
        loaded = load(spec.model, "cpu")
        general = general_set(loaded, home)
        own = measure(loaded, Backbone(loaded.model), general, ())
        assert own["loss_before"] == pytest.approx(found["loss_before"], rel=1e-5)
        trained = load(ModelSource(path=finished.adapter), "cpu")
        old, new = (answers(one.model, general, general.prompts) for one in (loaded, trained))
        assert found["changed"] == sum(a != b for a, b in zip(old, new, strict=True))
        total = 0.0
        for prompt, answer in zip(general.prompts, old, strict=True):
            ids, at = torch.tensor([[*prompt, *answer]]), slice(len(prompt) - 1, -1)
            with torch.no_grad():
                p, q = (log_softmax(m.model(ids).logits[0, at], -1) for m in (loaded, trained))
            total += float((p.exp() * (p - q)).sum())
        assert found["forgetting"] == pytest.approx(total / sum(map(len, old)), rel=1e-4)


def test_full_fine_tuning_that_continues_a_checkpoint_compares_with_the_base(tmp_path, monkeypatch):
    monkeypatch.setitem(RunForgetting.__init__.__kwdefaults__, "seconds", 1e6)
    spec = tiny_spec(tmp_path, method__name="full", train__max_steps=2, train__learning_rate=0.05)
    spec = spec.with_values({"train.measure_forgetting": True})
    home, first, longer = open_home(tmp_path / "home"), tmp_path / "first", tmp_path / "longer"
    *_, one = train(spec, run_dir=first, home=home)
    shutil.copytree(first / "checkpoints", longer / "checkpoints")  # all that an extension has
    *_, other = train(spec.with_values({"train.max_steps": 4}), run_dir=longer, home=home)
    before, after = (end.facts["forgetting"] for end in (one, other))
    assert after["loss_before"] == before["loss_before"]
    assert after["forgetting"] > 0


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_curve_has_a_point_where_samples_are_taken_and_ends_in_the_runs_figure(
    tmp_path, method, monkeypatch
):
    # The whole set each time, however slow the machine: a figure on other texts is another one.
    monkeypatch.setitem(RunForgetting.__init__.__kwdefaults__, "seconds", 1e6)
    spec = tiny_spec(tmp_path, method__name=method, train__max_steps=4, train__learning_rate=0.05)
    asked = {"train.measure_forgetting": True, "train.forgetting_curve": True}
    spec = spec.with_values({"train.eval_steps": 2, **asked})
    *found, finished = train(spec, run_dir=tmp_path / "run", home=open_home(tmp_path / "home"))
    points = [(one.step, one.forgetting) for one in found if isinstance(one, Forgotten)]
    assert [step for step, _ in points] == [0, 2, 4]
    assert abs(points[0][1]) < 1e-6 < points[1][1]  # before the first step it is the base
    assert points[-1][1] == finished.facts["forgetting"]["forgetting"]
    # The figure of the same adapter on the whole set, measured without a curve.
    plain = spec.with_values({"train.forgetting_curve": False})
    *found, other = train(plain, run_dir=tmp_path / "plain", home=open_home(tmp_path / "home"))
    assert not any(isinstance(one, Forgotten) for one in found)
    assert other.facts["forgetting"]["forgetting"] == pytest.approx(points[-1][1], rel=1e-5)


def test_an_own_general_set_replaces_the_embedded_one(tmp_path):
    own = tmp_path / "general.jsonl"
    own.write_text('{"prompt": "say a", "completion": "b"}\n')
    spec = tiny_spec(tmp_path, train__max_steps=1, train__general_data=str(own))
    spec = spec.with_values({"train.measure_forgetting": True})
    *_, finished = train(spec, run_dir=tmp_path / "run", home=open_home(tmp_path / "home"))
    assert finished.facts["forgetting"]["set"] == str(own)
    assert finished.facts["forgetting"]["rows"] == 1
    off = spec.with_values({"train.measure_forgetting": False})
    *_, finished = train(off, run_dir=tmp_path / "off", home=open_home(tmp_path / "home"))
    assert finished.facts is None
