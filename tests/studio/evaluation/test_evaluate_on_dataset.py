import json
import math

import pytest
import torch

from studio.errors import AdapterError, GateFailed, SpecError
from studio.evaluation.evaluate_on_dataset import REPORT, EvaluateRequest
from studio.home import open_home
from studio.training.training_events import Evaluated, Finished, Sampled
from tests.studio.methods.test_matrix import attached
from tests.studio.tiny import tiny_folder

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
    assert report["answered"] == 1
    assert report["scores"]["regex"] == 1
    assert report["answers"][0]["wanted"] == "a b"
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
