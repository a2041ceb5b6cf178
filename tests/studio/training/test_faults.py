"""Every way a run can end badly, and what is left afterwards."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from studio.errors import DataError, DeviceLost, DiskFull, Diverged, OutOfMemory
from studio.home import is_whole
from studio.spec import RunSpec
from studio.training import checkpoint
from studio.training.explain_errors import advice, explain_errors
from studio.training.loss import loss_sum
from studio.training.training_events import Saved, Step
from tests.studio.training.conftest import make_rows, run_all


def test_an_infinite_loss_names_step_and_rows_and_keeps_the_checkpoint(
    session, tmp_path, monkeypatch
):
    own = session(train={"max_steps": 6, "per_device_train_batch_size": 2, "save_steps": 2})

    def broken(*args: object) -> torch.Tensor:
        return loss_sum(*args) * (float("nan") if own.progress.step == 3 else 1.0)

    monkeypatch.setattr("studio.training.training_session.loss_sum", broken)
    with pytest.raises(Diverged) as error:
        run_all(own, tmp_path)
    rows = sorted(own.prepared.train[r].row for r in own.plan.step_rows(3))
    assert f"step 4, in rows {rows[0]}, {rows[1]} of" in error.value.text
    assert "train.learning_rate" in error.value.text
    kept = checkpoint.newest(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.name == "step-00000002"


FULL = (
    "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "HIP out of memory. Tried to allocate 2.00 GiB",
    "MPS backend out of memory (MPS allocated: 9.01 GB)", "std::bad_alloc",
    "XPU out of memory. Tried to allocate 2.00 GiB", "DefaultCPUAllocator: not enough memory",
)  # fmt: skip
DEVICES = (
    (RuntimeError("CUDA error: no kernel image is available for execution on the device"),
     "no kernels for this GPU.*studio doctor"),
    (RuntimeError("The NVIDIA driver on your system is too old (found version 12040)."),
     "driver is too old"),
    (RuntimeError("CUDA driver version is insufficient for CUDA runtime version"),
     "driver is too old"),
    (RuntimeError("CUDA error: device-side assert triggered"), "outside its range.*device=cpu"),
    (TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
               "float64. Please use float32 instead."), "Apple GPU lacks.*device=cpu"),
    (NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device."),
     "Apple GPU lacks.*device=cpu"),
    (RuntimeError("The installed bitsandbytes library was compiled without GPU support."),
     "bitsandbytes has no library for this GPU.*quantization=none"),
    (RuntimeError("CUDA error: unspecified launch failure"), "failed or disappeared at step 3"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OutOfMemory,
         r"at step 3.*per_device_train_batch_size=4.*gradient_accumulation_steps=2"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), OutOfMemory,
         "at step 3"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), DiskFull, ""),
        (KeyError("a bug of ours"), KeyError, "a bug of ours"),
        *((RuntimeError(text), OutOfMemory, "at step 3") for text in FULL),
        *((error, DeviceLost, words) for error, words in DEVICES),
    ],
)  # fmt: skip
def test_what_libraries_raise_is_explained_and_our_own_bugs_pass(raised, expected, words):
    spec = RunSpec.parse({"train": {"per_device_train_batch_size": 8}})
    with pytest.raises(expected, match=words or None), explain_errors(spec, lambda: "at step 3"):
        raise raised
    least = advice(RunSpec.parse({"train": {"per_device_train_batch_size": 1}}))
    assert "batch_size" not in least and "gradient_checkpointing" in least


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    session, tmp_path, monkeypatch
):
    own = session(train={"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 1})
    own.step()
    own.save(tmp_path)
    own.step()

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(DiskFull):
        own.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert is_whole(tmp_path / "step-00000001")


def test_a_damaged_checkpoint_is_passed_over(session, tmp_path):
    own = session(train={"max_steps": 4, "save_steps": 2, "save_total_limit": 5})
    run_all(own, tmp_path)
    newest = tmp_path / "checkpoints" / "step-00000004"
    weights = newest / "adapter.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    kept = checkpoint.newest(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.name == "step-00000002"


def test_other_data_than_the_checkpoints_is_refused(session, tmp_path):
    train = {"max_steps": 4, "save_steps": 2}
    run_all(session(train=train), tmp_path)
    changed = make_rows()
    changed.data_hash = "other"
    with pytest.raises(DataError, match="data changed since step-00000004"):
        run_all(session(changed, train=train), tmp_path)


def test_a_token_beyond_the_vocabulary_names_the_row(session):
    rows = make_rows()
    for example in rows.train:
        example.input_ids[0] = 500
    with pytest.raises(DataError, match="token 500"):
        session(rows).step()


CRASH = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.studio.training.conftest import make_session
from studio import home
from studio.training import training_loop
run_dir = Path(sys.argv[1])
session = make_session(train={"max_steps": 8, "save_steps": 2})
real = home._write_manifest
def killed(folder):
    if session.progress.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    real(folder)
home._write_manifest = killed
list(training_loop.run(session, run_dir=run_dir, control=lambda: None))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_kill_in_the_middle_of_a_checkpoint_resumes_from_the_one_before(session, tmp_path):
    root = str(Path(__file__).resolve().parents[3])
    answer = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path), root], env={**os.environ, "PYTHONPATH": root}
    )
    assert answer.returncode == -signal.SIGKILL
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert any(name.startswith(".tmp-") for name in left)
    own = session(train={"max_steps": 8, "save_steps": 2})
    events = run_all(own, tmp_path)
    assert next(e.step for e in events if isinstance(e, Step)) == 5
    assert [e.step for e in events if isinstance(e, Saved)] == [6, 8]
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))
    straight = session(train={"max_steps": 8, "save_steps": 2})
    run_all(straight, tmp_path / "straight")
    for a, b in zip(own.adapter.state().values(), straight.adapter.state().values(), strict=True):
        assert torch.equal(a, b)
