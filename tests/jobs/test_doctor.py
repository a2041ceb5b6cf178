"""`studio doctor --model` examines a model in a process of its own."""

import json

import pytest

from jobs import doctor
from jobs.doctor import examine
from studio.evaluation import examine_model
from tests.families import write_family
from tests.studio.tiny import started_here
from ui.cli.print_home import diagnosis


def test_a_model_is_examined_and_its_reasons_are_printed(home, tmp_path, capsys):
    pytest.importorskip("gguf")
    folder = write_family("qwen2", tmp_path / "model")

    with started_here(doctor, examine_model.main):
        facts = examine(home.path, str(folder))

    assert {"load", "lora", "packing", "cache", "lanes", "merged"} <= set(facts["model"]["works"])
    diagnosis(facts)
    assert f"Model {folder}: load, lora" in capsys.readouterr().out


def test_a_model_that_cannot_be_loaded_is_a_problem(home, tmp_path):
    folder = write_family("qwen2", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))

    facts = examine(home.path, str(folder))

    assert not facts["ok"] and facts["model"]["works"] == []
    assert any("load" in finding["text"] for finding in facts["findings"])
