import json
import subprocess
import sys
from pathlib import Path

import pytest

from studio.adapters.library import adapters, describe, resolve
from studio.errors import AdapterError


def make_adapter(folder: Path, **passport: object) -> Path:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"12345")
    if passport:
        (folder / "passport.json").write_text(json.dumps(passport))
    return folder


def test_runs_and_library_are_listed_newest_first(home):
    make_adapter(home.runs / "3" / "adapter", name="pirate", created="2026-01-01T00:00:00+00:00")
    make_adapter(home.adapters / "mixed", name="mixed", created="2026-02-01T00:00:00+00:00")
    (home.runs / "4").mkdir()
    found = adapters(home)
    assert [(a.name, a.source, a.method) for a in found] == [
        ("mixed", "library", "lora"), ("pirate", "run", "lora")
    ]  # fmt: skip
    assert found[0].size_bytes == 5


def test_the_passport_tells_the_base_and_how_it_ended(home):
    folder = make_adapter(
        home.runs / "3" / "adapter", name="p", ended="completed", steps=7, last_loss=1.5,
        base={"path": "starter", "fingerprint": "a-b"},
        spec={"method": {"name": "lora"}},
    )  # fmt: skip
    found = describe(folder, source="run")
    assert (found.base, found.base_fingerprint, found.steps) == ("starter", "a-b", 7)
    assert (found.ended, found.last_loss, found.eval_loss) == ("completed", 1.5, None)


def test_a_foreign_adapter_needs_no_passport(tmp_path):
    found = describe(make_adapter(tmp_path / "theirs"))
    assert (found.name, found.base, found.ended) == ("theirs", "some/base", "")


def test_adapters_are_found_by_path_name_and_run(home, tmp_path):
    run = make_adapter(home.runs / "3" / "adapter", name="Pirate talk")
    own = make_adapter(home.adapters / "mixed")
    other = make_adapter(tmp_path / "other")
    assert resolve(home, str(other)) == other
    assert resolve(home, "mixed") == own
    assert resolve(home, "Pirate talk") == run
    assert resolve(home, "3") == run
    assert resolve(home, str(home.runs / "3")) == run


def test_an_unknown_adapter_names_the_nearest(home):
    with pytest.raises(AdapterError, match="None has been trained"):
        resolve(home, "pirate")
    make_adapter(home.adapters / "pirate")
    with pytest.raises(AdapterError, match='Did you mean "pirate"'):
        resolve(home, "pirat")


def test_a_name_cannot_leave_the_home(home, tmp_path):
    with pytest.raises(AdapterError):
        resolve(home, "../../etc")


def test_broken_folders_are_refused_and_left_out_of_the_list(home):
    folder = make_adapter(home.adapters / "broken")
    (folder / "adapter_config.json").write_text("{")
    assert adapters(home) == []
    with pytest.raises(AdapterError, match="not readable JSON"):
        describe(folder)
    pickled = make_adapter(home.adapters / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(AdapterError, match="save_pretrained"):
        describe(pickled)


def test_the_library_starts_without_torch():
    code = "import sys, studio.adapters.library; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "False", answer.stderr
