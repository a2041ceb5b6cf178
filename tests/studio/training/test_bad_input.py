"""What a user or a machine can get wrong: one sentence each, and what was saved stays.

Elsewhere: a dataset smaller than the batch (`test_steps_and_learning_rate.py`), a batch that cannot
fit even at one row (`test_estimate.py`), an absent device (`test_find_model.py`), a full memory
or disk and a kill in a checkpoint (`test_faults.py`).
"""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch

from studio.data.prepare_run_data import prepare
from studio.errors import DeviceLost, Diverged, MethodError, SpecError
from studio.models.loading import tokenizer_at
from studio.spec import DataSource, RunSpec
from studio.starter import MODEL_DIR
from studio.training import checkpoint, objectives, training_loop
from studio.training.explain_errors import explain_errors
from studio.training.optimizer import _MAKERS
from studio.training.training_session import Session
from tests.studio.training.conftest import run_all


def drain(session: Session, run_dir: Path) -> None:
    with explain_errors(session.spec, lambda: f"at step {session.progress.step + 1}"):
        run_all(session, run_dir)


EXPLODING = {
    "max_steps": 20, "per_device_train_batch_size": 4, "learning_rate": 1e30, "save_steps": 1,
    "lr_scheduler_type": "constant", "eval_steps": -1, "optim": "lion",
}  # fmt: skip


def test_a_learning_rate_that_explodes_ends_with_the_rate_and_keeps_the_checkpoint(
    session, tmp_path
):
    own = session(method={"name": "lora", "r": 4}, train=EXPLODING)
    with pytest.raises(
        Diverged, match=r"Lower train.learning_rate \(1e\+30, 1e\+30 at this step\)"
    ) as error:
        drain(own, tmp_path)
    assert "\n" not in error.value.text
    kept = checkpoint.newest(tmp_path / "checkpoints")
    assert kept is not None
    assert int(kept.name[5:]) == own.progress.step


def test_float16_that_overflows_names_the_dtype_before_the_rate(session, tmp_path):
    own = session(method={"name": "lora", "r": 4}, train=EXPLODING)
    own.loaded.dtype = torch.float16  # as if loaded so; the loss overflows in float32, too
    with pytest.raises(Diverged, match=r"set model.dtype to bfloat16 .* or lower train.learning_r"):
        drain(own, tmp_path)


def test_a_device_that_vanishes_in_the_middle_is_one_sentence_and_the_run_goes_on_later(
    session, tmp_path, monkeypatch
):
    args = {"max_steps": 6, "save_steps": 2, "eval_steps": -1}
    own = session(train=args)
    real = Session.step

    def step(self: Session) -> Any:
        if self.progress.step == 3:
            raise RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE …")
        return real(self)

    with monkeypatch.context() as broken:
        broken.setattr(Session, "step", step)
        with pytest.raises(DeviceLost, match="at step 4 .*launch failure.*checkpoint is intact"):
            drain(own, tmp_path)
    again = session(train=args)
    drain_again = list(training_loop.run(again, run_dir=tmp_path, control=lambda: "stop"))
    assert drain_again[0].step == 2


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_an_optimizer_whose_library_is_missing_names_it(optim, monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("bitsandbytes"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SpecError, match=f"{optim}, which needs bitsandbytes: `pip install"):
        _MAKERS[optim]([], torch.device("cuda:0"))


def test_rows_longer_than_the_models_context_are_cut_and_counted(tmp_path, home):
    long = tmp_path / "long.jsonl"
    row = '{"prompt": "' + "word " * 40 + '", "completion": "' + "answer " * 400 + '"}\n'
    long.write_text(row.replace("word", "one") + row)
    found = prepare(
        DataSource(path=str(long), max_length=4096, validation_fraction=0),
        tokenizer_at(MODEL_DIR), context_length=64, seed=0, home=home,
    )  # fmt: skip
    assert {len(example.input_ids) for example in found.train} == {64}
    assert found.report.truncated == 2
    assert found.report.context_length == 64


def test_an_attention_that_this_device_has_not_is_one_sentence(session):
    with pytest.raises(SpecError, match="runs on a GPU, and this run is on cpu") as caught:
        session(train={"attn_implementation": "varlen"})
    assert caught.value.field == "train.attn_implementation"


def test_offloading_says_what_it_needs(session):
    with pytest.raises(SpecError, match="gradient_checkpointing=true as well"):
        session(train={"activation_offloading": True})
    with pytest.raises(SpecError, match="from a GPU to main memory, and this run is on cpu"):
        session(train={"activation_offloading": True, "gradient_checkpointing": True})


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_weights_that_are_quantised_are_not_trained_themselves(quantization):
    spec = RunSpec.parse({"method": "full", "model": {"quantization": quantization}})
    with pytest.raises(MethodError, match=f"cannot be trained in {quantization}: set"):
        objectives.check(spec)
