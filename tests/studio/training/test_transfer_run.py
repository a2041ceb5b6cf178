"""A packed run trains as it would here, comes back whole, and says what is wrong with it."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path, PureWindowsPath

import pytest

from studio.errors import InputError, MethodError, OutOfMemory, SpecError
from studio.training import distributed_rank, train_run, transfer_run
from studio.training.train_run import train
from studio.training.training_events import Finished, Step
from tests.studio.tiny import tiny_spec


@pytest.fixture
def spec(tmp_path):
    return tiny_spec(tmp_path, name="far", train__max_steps=4, train__num_samples=0)


def test_a_packed_run_gives_the_same_adapter_and_comes_back_as_a_run(
    spec, home, tmp_path, monkeypatch
):
    here = [e for e in train(spec, run_dir=tmp_path / "here", home=home) if isinstance(e, Step)]

    packed = transfer_run.pack(spec, tmp_path / "packed", home, with_model=True)
    there = Path(shutil.move(tmp_path / "packed", tmp_path / "another place"))
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "rows.jsonl").unlink()
    monkeypatch.setattr(sys, "argv", ["", str(there)])
    with pytest.raises(SystemExit, match="^0$"):  # the module that older folders name
        runpy.run_module("studio.training.transfer", run_name="__main__")
    back = list(transfer_run.unpack(there, tmp_path / "back"))

    assert (packed.model.path, packed.data.path) == ("model", "data/train/rows.jsonl")
    assert [e.loss for e in back if isinstance(e, Step)] == [e.loss for e in here]
    assert isinstance(back[-1], Finished)
    assert back[-1].adapter == str(tmp_path / "back" / "adapter")
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "back" / weights).read_bytes() == (tmp_path / "here" / weights).read_bytes()


def test_the_scripts_are_valid_shell_and_name_no_place_of_this_machine(spec, home, tmp_path):
    transfer_run.pack(spec, tmp_path / "packed", home, with_model=True)

    for script in ("run.sh", "slurm.sh"):
        subprocess.run(["bash", "-n", tmp_path / "packed" / script], check=True)
    written = "".join(
        path.read_text()
        for path in (tmp_path / "packed").iterdir()
        if path.suffix in (".sh", ".yaml", ".txt")
    )
    assert str(tmp_path) not in written
    assert os.environ.get("STUDIO_HOME", "no home") not in written


def test_a_set_of_gpus_is_as_many_processes_elsewhere(spec, home, tmp_path):
    pair = spec.with_values({"train.device": "cuda:1,cuda:3", "train.num_processes": 1})
    packed = transfer_run.pack(pair, tmp_path / "packed", home)
    assert "#SBATCH --gpus-per-node=2" in (tmp_path / "packed" / "slurm.sh").read_text()
    assert packed.train.device == "auto"


def test_a_folder_that_is_not_trained_to_its_end_is_refused_with_its_step(spec, home, tmp_path):
    folder = tmp_path / "packed"
    transfer_run.pack(spec, folder, home)
    with pytest.raises(InputError, match="not started"):
        list(transfer_run.unpack(folder, tmp_path / "back"))

    assert transfer_run.main([str(folder)]) == 0
    events = folder / "run" / transfer_run.EVENTS
    lines = events.read_text().splitlines()
    events.write_text("\n".join(lines[:-3]) + "\n" + lines[-3][:20])
    with pytest.raises(InputError, match=r"stopped at step \d"):
        list(transfer_run.unpack(folder, tmp_path / "back"))

    events.write_text("\n".join(lines))
    (folder / "run" / "adapter" / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="damaged or incomplete"):
        list(transfer_run.unpack(folder, tmp_path / "back"))
    assert not (tmp_path / "back").exists()


def test_every_dataset_of_a_run_is_packed_also_under_one_name(spec, home, tmp_path):
    wanted = {}
    for field in ("data.path", "data.validation_path", "train.general_data"):
        (tmp_path / field).mkdir()
        (tmp_path / field / "rows.jsonl").write_text(json.dumps({"text": field}))
        wanted[field] = str(tmp_path / field / "rows.jsonl")
    folders = {field: str(Path(file).parent) for field, file in wanted.items()}
    for number, values in enumerate((wanted, folders)):
        folder = tmp_path / f"packed-{number}"
        transfer_run.pack(spec.with_values(values), folder, home)
        there = transfer_run.spec_in(folder)
        found = there.data.path, there.data.validation_path, there.train.general_data
        for field, path in zip(wanted, map(Path, found), strict=True):
            assert path.is_relative_to(folder)
            file = path / "rows.jsonl" if path.is_dir() else path
            assert json.loads(file.read_text()) == {"text": field}


def test_an_imported_dataset_may_be_packed_for_training_and_validation(spec, home, tmp_path):
    (home.datasets / "mine").mkdir(parents=True)
    (home.datasets / "mine" / "rows.jsonl").write_text("{}")
    both = spec.with_parts(data={"path": "mine", "validation_path": "mine"})
    assert transfer_run.pack(both, tmp_path / "packed", home).data.validation_path == "mine"
    assert (tmp_path / "packed" / "home" / "datasets" / "mine" / "rows.jsonl").is_file()


def test_a_run_that_starts_from_an_adapter_of_this_machine_is_not_packed(spec, home, tmp_path):
    with pytest.raises(SpecError, match=r"train\.init_adapter.*merge"):
        transfer_run.pack(
            spec.with_values({"train.init_adapter": str(tmp_path)}), tmp_path / "packed", home
        )
    assert not (tmp_path / "packed").exists()


def test_a_folder_packed_on_windows_trains_on_linux(spec, home, tmp_path, monkeypatch):
    relative = Path.relative_to
    monkeypatch.setattr(Path, "relative_to", lambda a, b: PureWindowsPath(relative(a, b)))
    monkeypatch.setattr(
        Path, "write_text", lambda file, text, encoding=None, newline=None: file.write_bytes(
            text.replace("\n", newline or "\r\n").encode(encoding or "cp1252")
        )
    )  # fmt: skip
    named = spec.with_values({"name": "海盗"})
    assert transfer_run.pack(named, tmp_path / "packed", home).data.path == "data/train/rows.jsonl"
    for script in ("run.sh", "slurm.sh"):
        assert b"\r" not in (tmp_path / "packed" / script).read_bytes()


def test_a_place_that_is_taken_is_refused(spec, home, tmp_path):
    (tmp_path / "packed").mkdir()
    with pytest.raises(InputError, match="exists already"):
        transfer_run.pack(spec, tmp_path / "packed", home)


def test_ranks_of_a_launcher_wait_as_long_for_rank_0_as_our_own(monkeypatch):
    joined = list[timedelta]()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(
        "torch.distributed.init_process_group", lambda backend, *, timeout: joined.append(timeout)
    )
    assert transfer_run._join() == "cpu"
    assert joined == [distributed_rank.TIMEOUT]


def test_processes_that_run_out_of_memory_are_started_again_with_smaller_batches(
    spec, home, tmp_path, monkeypatch, capsys
):
    folder, sizes = tmp_path / "packed", []
    wanted = {"train.retry_when_out_of_memory": True, "train.per_device_train_batch_size": 4}
    transfer_run.pack(spec.with_values(wanted), folder, home)

    def full(spec, **_):
        sizes.append(spec.train.per_device_train_batch_size)
        raise OutOfMemory("no room")
        yield

    monkeypatch.setattr(train_run, "train", full)
    monkeypatch.setattr(transfer_run, "_join", lambda: "cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for _ in range(2):
        assert transfer_run.main([str(folder)]) == OutOfMemory.exit_code
        assert (folder / "run" / transfer_run.AGAIN).exists()
    assert sizes == [4, 2]
    events = list(transfer_run._events(folder / "run" / transfer_run.EVENTS))
    assert events[0].text.startswith("Out of memory; retrying with per_device_train_batch_size 2")

    def refuses(*_, **__):
        raise MethodError("a setting that nobody made")
        yield

    monkeypatch.setattr(train_run, "train", refuses)
    assert transfer_run.main([str(folder)]) == OutOfMemory.exit_code
    assert capsys.readouterr().err.splitlines()[-1] == "no room"
    edited = transfer_run.read_spec(folder).with_values({"seed": 5})
    (folder / "spec.yaml").write_text(edited.to_yaml())
    monkeypatch.setattr(train_run, "train", full)
    transfer_run.main([str(folder)])
    assert sizes == [4, 2, 4], "the changes were of the spec before"

    accelerate = tmp_path / "accelerate"
    script = (
        "echo x >> starts; [ $(wc -l < starts) = 1 ] && touch run/again; [ $(wc -l < starts) = 2 ]"
    )
    accelerate.write_text(f"#!/bin/sh\n{script}\n")
    accelerate.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    again = subprocess.run(["bash", folder / "run.sh"], env=os.environ | path)
    assert again.returncode == 0 and (folder / "starts").read_text() == "x\n" * 2
    assert not (folder / "run" / transfer_run.CHANGES).exists(), "of the start before"
    failed = subprocess.run(["bash", folder / "run.sh"], env=os.environ | path)
    assert failed.returncode == 1, "it failed of something else"


def test_a_signal_to_the_script_ends_the_training(spec, home, tmp_path):
    folder, accelerate = tmp_path / "packed", tmp_path / "accelerate"
    transfer_run.pack(spec, folder, home)
    accelerate.write_text(
        "#!/bin/sh\ntrap 'sleep 0.1; touch ended; exit 7' TERM\necho started\n"
        "for _ in $(seq 600); do sleep 0.05; done\n"
    )
    accelerate.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(
        ["bash", folder / "run.sh"], env=os.environ | path, stdout=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout and script.stdout.readline() == "started\n"
        script.terminate()
        assert script.wait(10) == 7 and (folder / "ended").exists()
