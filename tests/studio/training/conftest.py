"""A tiny Llama made in memory and rows of random tokens: everything a session needs."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from studio.job_request import Command
from studio.models.find_model import ModelFacts
from studio.models.loading import Loaded
from studio.spec import RunSpec
from studio.training import distributed, training_loop
from studio.training.train_run import open_session
from studio.training.training_events import Evaluated, Step
from studio.training.training_session import Session

VOCABULARY = 97


@dataclass
class Example:
    input_ids: np.ndarray
    labels: np.ndarray
    row: int
    source: str = ""
    weights: np.ndarray | None = None


@dataclass
class Rows:
    """What `prepare` would have returned."""

    train: list[Example]
    validation: list[Example]
    template: str = "none"
    data_hash: str = "abc"
    rows_per_example: int = 1
    sources: dict[str, tuple[int, int]] = field(default_factory=dict)
    report: Any = field(
        default_factory=lambda: SimpleNamespace(
            rows=SimpleNamespace(read=24, kept=24, dropped=0),
            train_examples=20,
            validation_examples=4,
            format="messages",
            truncated=0,
            overlap=0,
            model_dump=lambda mode: {"read": 24},
        )
    )


def make_rows(count: int = 24, *, seed: int = 0, shortest: int = 3, longest: int = 12) -> Rows:
    """Rows whose second half carries loss; a token is its neighbour plus three, so it learns."""
    generator = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        length = int(generator.integers(shortest, longest))
        start = int(generator.integers(0, VOCABULARY))
        ids = ((start + 3 * np.arange(length)) % VOCABULARY).astype(np.int32)
        labels = ids.copy()
        labels[: length // 2] = -100
        examples.append(Example(ids, labels, number))
    return Rows(examples[: count - 4], examples[count - 4 :])


def make_model(**config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    values = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "tie_word_embeddings": False, **config,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**values)).eval()


def make_loaded(device: str = "cpu") -> Loaded:
    """A fresh tiny model as `load` would have given it, without a tokenizer."""
    model = make_model().to(device)
    known = ModelFacts(
        path=Path("tiny"), architecture="LlamaForCausalLM", model_type="llama",
        parameters=model.num_parameters(), hidden_size=32, num_layers=2, context_length=64,
        vocab_size=VOCABULARY, has_chat_template=False, size_bytes=0, weights_dtype="F32",
        fingerprint="f",
    )  # fmt: skip
    return Loaded(
        model=model, tokenizer=None, device=torch.device(device), dtype=torch.float32, facts=known
    )


def make_session(rows: Rows | None = None, device: str = "cpu", **spec: Any) -> Session:
    """A session over a fresh tiny model; the same spec gives the same session."""
    spec = {"train": {"max_steps": 6, "per_device_train_batch_size": 4}, **spec}
    return open_session(
        RunSpec.parse(spec), loaded=make_loaded(device), prepared=rows or make_rows()
    )


@pytest.fixture
def session():
    """Make sessions; see `make_session`."""
    torch.manual_seed(0)
    return make_session


def run_all(session: Session, run_dir: Path, stop_at: int = -1) -> list[Any]:
    """Run the whole loop and return its events; `stop_at` is the step at which it is stopped."""

    def control() -> Command:
        return "stop" if session.progress.step == stop_at else None

    return list(training_loop.run(session, run_dir=run_dir, control=control))


def but_for_pace(events: list[Any]) -> list[dict[str, Any]]:
    """Return steps and evaluations without what depends on the machine."""
    pace = {"tokens_per_second": None, "memory_bytes": None}
    return [one.as_dict() | pace for one in events if isinstance(one, Step | Evaluated)]


@pytest.fixture
def forked_ranks(nursery, monkeypatch):
    """Fork the ranks of distributed runs; their start is most of a short one."""
    if nursery:
        pipes = {name: getattr(subprocess, name) for name in ("PIPE", "TimeoutExpired")}
        started = SimpleNamespace(Popen=nursery.popen, **pipes)
        monkeypatch.setattr(distributed, "subprocess", started)
