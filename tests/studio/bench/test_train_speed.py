"""The methods' bench: ratios against full fine-tuning, refusals as rows; no training here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from studio.errors import MethodError, RunError, SpecError
from ui.bench import bench_command
from ui.bench import train_speed as bench
from ui.bench.training_case import SYNTHETIC, BenchCase

CASE = BenchCase(
    model="llama-tiny", data=SYNTHETIC, method="lora", dtype="float32", batch=2,
    steps_per_round=2, rounds=2, learning_rate=1e-3,
)  # fmt: skip
SECONDS = {"full": 4.0, "lora": 2.0}  # of a round of two steps


class FakePeer:
    def __init__(self, name: str, folder: Path) -> None:
        self.method, self.rounds = folder.name, []

    def take_turn(self) -> None:
        if self.method == "loha":
            raise RunError("The peer ours stopped.")
        slow = 10.0 if not self.rounds else 1.0  # the warm-up must not count
        self.rounds.append({
            "seconds": slow * SECONDS[self.method], "tokens": 8, "examples": 4,
            "steps": [{"loss": 3.0, "grad_norm": 1.0}, {"loss": 2.0, "grad_norm": 0.5}],
            "peak_bytes": int(100 * SECONDS[self.method]),
        })  # fmt: skip

    def __enter__(self) -> "FakePeer":
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    def serving(case: BenchCase) -> dict[str, Any]:
        if case.method == "bitfit":
            raise MethodError("This model has no biases.")
        return {"trainable_parameters": 7, "generation_ratio": 1.1}

    monkeypatch.setattr(bench, "serving", serving)
    monkeypatch.setattr(bench, "Peer", FakePeer)
    monkeypatch.setattr(bench, "prepare_case", lambda case, folder, adapter: case)
    monkeypatch.setattr(bench, "own_model", lambda case, folder: case)


def test_every_method_is_held_against_full_fine_tuning(tmp_path):
    full, lora = bench.bench_methods(tmp_path, CASE, "lora")["rows"]
    assert (full["method"], full["step_ratio"], full["memory_ratio"]) == ("full", 1.0, 1.0)
    assert (lora["seconds_per_step"], lora["step_ratio"], lora["memory_ratio"]) == (1.0, 0.5, 0.5)
    assert (lora["first_loss"], lora["last_loss"], lora["grad_norm"]) == (3.0, 2.0, 0.5)


def test_what_is_refused_is_a_row_with_its_sentence(tmp_path):
    result = bench.bench_methods(tmp_path, CASE, "bitfit,loha,lora")
    rows = {row["method"]: row for row in result["rows"]}
    assert rows["bitfit"] == {"method": "bitfit", "error": "This model has no biases."}
    assert rows["loha"] == {"method": "loha", "error": "The peer ours stopped."}
    text = bench.methods_text(result)
    assert "no biases" in text and "0.50" in text


def test_an_unknown_method_is_refused_at_once(tmp_path):
    with pytest.raises(MethodError):
        bench.bench_methods(tmp_path, CASE, "lorra")


def test_a_setting_of_the_studio_is_taken_and_one_that_is_none_refused():
    with pytest.raises(SpecError, match="attn_implementation"):
        bench_command.bench(["train", "--set", "train.attn_implementaton=sdpa"])
    settings = {"train.attn_implementation": "eager"}
    args = replace(CASE, settings=settings).spec().train
    assert (args.attn_implementation, args.per_device_train_batch_size) == ("eager", 2)
