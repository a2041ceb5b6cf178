import json
import math

import pytest
import torch

from studio.data.prepare_run_data import prepare
from studio.errors import AdapterError, DataError, GateFailed, SpecError
from studio.evaluation.evaluate_on_dataset import REPORT, EvaluateRequest
from studio.evaluation.scores_and_gates import check_gate
from studio.home import open_home
from studio.spec import DataSource, RunSpec
from studio.training import sample_answers
from studio.training.sample_answers import Continuation
from studio.training.training_events import Evaluated, Finished, Sampled
from tests.studio.methods.test_matrix import attached
from tests.studio.tiny import tiny_folder, tiny_tokenizer

ROWS = [{"prompt": "say a", "completion": "a b"}, {"prompt": "say c", "completion": "c d e"}]


def evaluated(tmp_path, **fields):
    home = open_home(tmp_path / "home")
    model = tiny_folder(tmp_path / "model")
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    values = {"model": {"path": str(model)}, "data": {"path": str(file)}, **fields}
    request = EvaluateRequest.parse(values).checked(home)
    events = list(request.perform(home, tmp_path / "run"))
    return events, json.loads((tmp_path / "run" / REPORT).read_text())


def saved_adapter(tmp_path):
    backbone, _ = attached("lora-r=4", "llama", trained=True)
    (tmp_path / "adapter").mkdir()
    backbone.save("a", tmp_path / "adapter")
    return str(tmp_path / "adapter")


def test_a_stack_is_measured_on_every_row(tmp_path):
    base, report = evaluated(tmp_path / "base")
    adapter = saved_adapter(tmp_path)
    events, other = evaluated(tmp_path / "other", stack=[{"name": adapter}])
    assert report["rows"] == other["rows"] == 2
    assert report["perplexity"] == pytest.approx(math.exp(report["eval_loss"]))
    assert abs(report["eval_loss"] - other["eval_loss"]) > 1e-3
    assert isinstance(events[-1], Finished)
    assert [e.eval_loss for e in events if isinstance(e, Evaluated)] == [other["eval_loss"]]
    _, none = evaluated(tmp_path / "none", stack=[{"name": adapter, "weight": 0}])
    assert none["eval_loss"] == pytest.approx(report["eval_loss"], rel=1e-6)
    del base


def test_answers_are_scored_against_what_the_row_wants(tmp_path):
    torch.manual_seed(0)
    events, report = evaluated(tmp_path, scores=["exact_match", "regex"], pattern="^", max_rows=1)
    assert report["rows"] == report["answered"] == 1
    assert report["scores"]["regex"] == 1
    assert report["answers"][0]["wanted"] in ("a b", "c d e")
    assert len([e for e in events if isinstance(e, Sampled)]) == 1


def test_an_unknown_adapter_is_one_sentence(tmp_path):
    with pytest.raises(AdapterError, match="nobody"):
        evaluated(tmp_path, stack=[{"name": "nobody"}])


LABELLED = [{"text": f"say {w}", "label": "good" if w in "abc" else "bad"} for w in "abcdefgh"]


def test_labels_are_scored_and_a_gate_decides(tmp_path):
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(map(json.dumps, LABELLED)))
    where = {"data": {"path": str(file)}, "stack": [{"name": saved_adapter(tmp_path)}]}
    events, report = evaluated(tmp_path, **where, min=["accuracy=0"], max=["forgetting=1000"])
    assert report["classified"] == 8 and set(report["labels"]) == {"good", "bad"}
    assert sum(count for *_, count in report["confusions"]) == 8
    assert report["forgetting"] > 0 and report["general"]["prompts"] > 2
    assert isinstance(events[-1], Finished)
    words = r"accuracy is [\d.e-]+, below 1\.1; forgetting is [\d.]+, above 0"
    with pytest.raises(GateFailed, match=words):
        evaluated(tmp_path, **where, min=["accuracy=1.1"], max=["forgetting=0"])
    kept = json.loads((tmp_path / "run" / REPORT).read_text())
    assert kept["accuracy"] == report["accuracy"]  # what was measured stays
    for bad, words in (("acuracy=1", 'Unknown figure "acuracy".*accuracy'), ("ece=x", "ece=0.8")):
        with pytest.raises(SpecError, match=words):
            evaluated(tmp_path, **where, min=[bad])


def turns(*texts):
    return {"messages": [{"role": role, "content": text} for role, text in
                         zip(("user", "assistant") * len(texts), texts, strict=False)]}  # fmt: skip


def test_the_last_answer_of_a_conversation_is_scored_and_fits_the_context(tmp_path, monkeypatch):
    asked = []

    def parrot(backbone, prompts, *_, limits, **how):  # gives the wanted answers
        asked.extend(zip(prompts, limits, strict=True))
        return [Continuation(tokenizer("d d")["input_ids"]) for _ in prompts]

    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(sample_answers, "continuations", parrot)
    rows = [turns("say a", "a a", "say d", "d d"), turns("b" * 90, "d d")]
    data = {"path": str(tmp_path / "talks.jsonl"), "chat_template": "plain"}
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, report = evaluated(tmp_path, data=data, scores=["exact_match"])
    assert report["answered"] == 2 and report["scores"] == {"exact_match": 1.0}
    assert {one["wanted"] for one in report["answers"]} == {"d d"}
    assert any("a a" in one["prompt"] and "say d" in one["prompt"] for one in report["answers"])
    assert sorted(limit for _, limit in asked)[0] < 40
    assert all(len(prompt) + limit <= 128 for prompt, limit in asked)  # positions of the model


def test_a_score_of_no_answer_is_no_figure(tmp_path):
    request = EvaluateRequest(scores=("exact_match",), min=("exact_match=0",))
    report = request._scored([])
    assert report["scores"] == {"exact_match": None}
    words = r"exact_match was not measured \(measured: answered\)"
    with pytest.raises(GateFailed, match=words):
        check_gate(report, request.min, request.max, "The evaluation")


def test_a_gate_on_a_pattern_needs_one_before_anything_is_measured(tmp_path, home):
    base = {"model": {"path": str(tiny_folder(tmp_path / "model"))}}
    for gate in ({"min": ("regex=0.9",)}, {"max": ("pattern=0.9",)}, {"min": ("json_schema=1",)}):
        with pytest.raises(SpecError, match=r"The score (regex|json_schema) needs a"):
            EvaluateRequest.parse({**base, **gate}).checked(home)
    named = {**base, "scores": ["pattern"], "pattern": "a", "min": ["pattern=0.9"]}
    assert EvaluateRequest.parse(named).checked(home).scores == ("pattern",)
    check_gate({"scores": {"pattern": 0.95}}, ["pattern=0.9"], [], "The evaluation")


def test_without_held_out_rows_only_forgetting_can_be_a_gate(tmp_path):
    where = {"rows": "held_out", "stack": [{"name": saved_adapter(tmp_path)}]}
    for gate in ({}, {"max": ["eval_loss=9"]}, {"max": ["eval_loss=9", "forgetting=9"]}):
        with pytest.raises(DataError, match="No rows are held out, so only forgetting"):
            evaluated(tmp_path, **where, **gate)
    _, report = evaluated(tmp_path, **where, max=["forgetting=1000"])
    assert report["forgetting"] > 0 and (report["rows"], report["eval_loss"]) == (0, None)


PAIRS = [{"prompt": f"say {w}", "chosen": w * 2, "rejected": f"no {w}"} for w in "abcdefghijklmnop"]
JUDGED = [{"prompt": f"say {w}", "completion": w * (n % 3 + 1), "label": n % 2 == 0}
          for n, w in enumerate("abcdefghijklmnopabcdefghijklmnop")]  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "rows", "kind"), [("dpo", PAIRS, "pairs"), ("kto", JUDGED, "judged")]
)
def test_the_held_out_rows_of_preferences_are_those_of_the_run(tmp_path, loss, rows, kind):
    adapter = saved_adapter(tmp_path)
    spec = RunSpec().with_values({"train.loss": loss}).model_dump(mode="json")
    (tmp_path / "adapter" / "passport.json").write_text(json.dumps({"spec": spec}))
    file = tmp_path / "preferences.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    data = {"path": str(file), "chat_template": "plain", "validation_fraction": 0.3}
    where = {"data": data, "rows": "held_out", "seed": 3, "stack": [{"name": adapter}]}
    _, report = evaluated(tmp_path, **where)

    tokenizer = tiny_tokenizer()
    held = prepare(DataSource(**data), tokenizer, context_length=128, seed=3, rows=kind).validation
    good = [row for row in held if row.good]
    assert 0 < len(good) == report["rows"] < len(held)
    assert report["tokens"] == sum(int((row.labels[1:] != -100).sum()) for row in good)
    whole = EvaluateRequest.parse(where | {"rows": "all"})
    assert whole.checked(open_home(tmp_path / "home")).learned == "answers"


def test_held_out_rows_are_those_of_the_adapters_run(tmp_path):
    adapter, home = saved_adapter(tmp_path), open_home(tmp_path / "home")
    run = RunSpec().with_values({"data.validation_fraction": 0.3, "seed": 7})
    passport = {"spec": run.model_dump(mode="json")}
    (tmp_path / "adapter" / "passport.json").write_text(json.dumps(passport))
    where = {"rows": "held_out", "stack": [{"name": adapter}], "data": {"path": run.data.path}}

    own = EvaluateRequest.parse(where).checked(home)
    assert (own.data, own.seed) == (run.data, 7)
    given = EvaluateRequest.parse(where | {"seed": 1, "data": {
        "path": run.data.path, "max_length": 99}}).checked(home)  # fmt: skip
    assert (given.data.max_length, given.data.validation_fraction, given.seed) == (99, 0.3, 1)
    other = EvaluateRequest.parse(where | {"data": {"path": "starter:terse"}}).checked(home)
    assert (other.data.validation_fraction, other.seed) == (DataSource().validation_fraction, 0)


def test_the_rows_of_a_prompt_without_an_answer_cannot_be_measured(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"say {w}"}) for w in "abcdefghijklmnop"))
    with pytest.raises(DataError, match="The rows have no answers"):
        evaluated(tmp_path, data={"path": str(file), "chat_template": "plain"}, rows="held_out",
                  learned="prompts")  # fmt: skip
