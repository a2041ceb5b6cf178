"""The case that all peers train on: a folder with a model, a fresh adapter, rows in step order.

The target case is a 30 M-parameter Llama shape (hidden 384, 8 layers, vocabulary 32,000, grouped
queries) with instruct rows of log-normal length (median 60, at most 512) of which the last 40 %
carry loss. Random weights are fine: speed and memory do not depend on them. All peers start from
the same adapter file, so their losses must agree.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from studio.data.template.template import IGNORED
from studio.errors import InputError
from studio.spec import RunSpec

if TYPE_CHECKING:
    from studio.training.batching import TokenRow

SHAPES: dict[str, dict[str, Any]] = {
    "llama-30m": {
        "vocab_size": 32_000, "hidden_size": 384, "intermediate_size": 1536,
        "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "tie_word_embeddings": True,
    },
    "llama-tiny": {
        "vocab_size": 2_000, "hidden_size": 64, "intermediate_size": 176,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "tie_word_embeddings": True,
    },
    "qwen2-400m": {
        "model_type": "qwen2", "vocab_size": 32_000, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "llama-1b": {
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "llama-8b": {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 8192, "tie_word_embeddings": False,
    },
}  # fmt: skip
SYNTHETIC = "instruct-rows"
MEDIAN, LONGEST, SHORTEST, SIGMA, ANSWER_SHARE = 60, 512, 8, 0.9, 0.4
SYNTHETIC_ROWS = 512
SIBLINGS = "siblings.json"  # loss and gradient norm of every sibling's steps, in the case's folder


@dataclass(frozen=True, slots=True)
class BenchRow:
    """A row as `studio.data` would give it."""

    input_ids: np.ndarray
    labels: np.ndarray
    row: int
    weights: None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchCase:
    """Settings of a case, beside its files."""

    model: str
    data: str
    method: str
    dtype: str
    batch: int
    steps_per_round: int
    rounds: int
    learning_rate: float
    siblings: int = 1
    loss: str = "sft"
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of this studio alone, such as `{"train.attn_implementation": "sdpa"}`."""

    @property
    def width(self) -> int:
        """Rows of an example: two of a pair, chosen and rejected."""
        return 1 if self.loss == "sft" else 2

    @property
    def steps(self) -> int:
        """All steps, those of the round that warms up included."""
        return self.steps_per_round * (self.rounds + 1)

    def spec(self) -> RunSpec:
        """The run that every peer imitates."""
        plain = RunSpec.parse(
            {
                "model": {"path": self.model, "dtype": self.dtype},
                "method": {"name": self.method},
                "train": {
                    "loss": self.loss,
                    "max_steps": self.steps,
                    "per_device_train_batch_size": self.batch,
                    "learning_rate": self.learning_rate,
                    "lr_scheduler_type": "constant",
                    "eval_steps": -1,
                    "save_steps": -1,
                },
            }
        )
        return plain.with_values(self.settings)


def make_rows(count: int, *, vocabulary: int, seed: int = 0) -> list[BenchRow]:
    """Make the rows of a training case, of log-normal length; the last 40 % carry loss."""
    generator = np.random.default_rng(seed)
    lengths = np.exp(generator.normal(np.log(MEDIAN), SIGMA, count))
    rows = []
    for number, length in enumerate(np.clip(lengths, SHORTEST, LONGEST).astype(int)):
        ids = generator.integers(3, vocabulary, length).astype(np.int32)
        labels = ids.copy()
        labels[: length - max(1, int(ANSWER_SHARE * length))] = IGNORED
        rows.append(BenchRow(ids, labels, number))
    return rows


def make_pairs(count: int, *, vocabulary: int, seed: int = 0) -> list[BenchRow]:
    """Make the pairs of a case as two adjacent rows: one prompt, answers of random lengths."""
    rows = make_rows(2 * count, vocabulary=vocabulary, seed=seed)
    for chosen, other in zip(rows[::2], rows[1::2], strict=True):
        prompt = chosen.input_ids[chosen.labels == IGNORED]
        answer = other.input_ids[other.labels != IGNORED]
        rows[other.row] = BenchRow(
            np.concatenate([prompt, answer]),
            np.concatenate([np.full_like(prompt, IGNORED), answer]), other.row,
        )  # fmt: skip
    return rows


def prepare_case(case: BenchCase, folder: Path, *, adapter: bool = True) -> BenchCase:
    """Write a case: `folder/{model, adapter, rows.json, case.json}`; return it with its paths.

    Without `adapter` every peer starts its own. `rows.json` holds the rows in the order of the
    steps, the same for every peer.
    """
    from studio.backbone import Backbone
    from studio.models.find_model import resolve

    folder.mkdir(parents=True, exist_ok=True)
    local = own_model(case, folder)
    path = resolve(local.spec().model)
    local = replace(local, model=str(path))
    model = load_bare(path, case.dtype)
    rows = _rows(local, model.config.get_text_config())
    if adapter:
        backbone = Backbone(model)
        backbone.attach("bench", local.spec().method, seed=0)
        (folder / "adapter").mkdir()
        backbone.save("bench", folder / "adapter", base=str(path))
    count = case.steps * case.batch * case.width
    ordered = [rows[i % len(rows)] for i in range(count)]
    values = [[row.input_ids.tolist(), row.labels.tolist()] for row in ordered]
    (folder / "rows.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "case.json").write_text(json.dumps(asdict(local)), encoding="utf-8")
    return local


def own_model(case: BenchCase, folder: Path) -> BenchCase:
    """Return the training case with a model folder written in place of a shape."""
    if case.model not in SHAPES:
        return case
    make_model(case.model, folder / "model", dtype=case.dtype)
    return replace(case, model=str(folder / "model"))


def sibling_rates(case: BenchCase, count: int) -> list[float]:
    """Return the learning rate of each sibling of a training case."""
    return [case.learning_rate * 0.5**number for number in range(count)]


def read_case(folder: Path) -> tuple[BenchCase, list[BenchRow]]:
    """Read the training case that `prepare_case` wrote."""
    rows = [
        BenchRow(np.array(ids, np.int32), np.array(labels, np.int32), number)
        for number, (ids, labels) in enumerate(
            json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        )
    ]
    return BenchCase(**json.loads((folder / "case.json").read_text(encoding="utf-8"))), rows


def load_bare(path: Path, dtype: str) -> Any:
    """Load the model of a training case without its tokenizer.

    Every weight is read once: mapped from a file they would come in with the first step and count
    as memory that training takes above the base.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True
    )
    for tensor in model.state_dict().values():
        tensor.sum()
    return model.to(bench_device()).eval()


def bench_device() -> str:
    """Return the device on which all peers train the case."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _rows(case: BenchCase, config: Any) -> Sequence[TokenRow]:
    if case.data == SYNTHETIC:
        make = make_rows if case.loss == "sft" else make_pairs
        return make(SYNTHETIC_ROWS, vocabulary=config.vocab_size)
    if case.loss != "sft":
        raise InputError(f"--loss {case.loss} is measured on --data {SYNTHETIC} alone.")
    from studio.data.prepare_run_data import prepare
    from studio.models.find_model import resolve
    from studio.models.loading import tokenizer_at

    spec = case.spec().with_values({"data.path": case.data})
    prepared = prepare(
        spec.data, tokenizer_at(resolve(spec.model)), seed=0, home=None,
        context_length=config.max_position_embeddings,
    )  # fmt: skip
    order = np.random.default_rng(0).permutation(len(prepared.train))
    return [prepared.train[int(i)] for i in order[: case.steps * case.batch]]


def make_model(shape: str, folder: Path, *, dtype: str = "float32", seed: int = 0) -> None:
    """Write a randomly initialised model of a known shape for a case; its tokens are numbers.

    No token ends an answer.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(seed)
    sizes = {"model_type": "llama", **SHAPES[shape]}
    config = AutoConfig.for_model(**sizes, bos_token_id=None, eos_token_id=None)
    AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).save_pretrained(folder)
    words = {f"{number}": number for number in range(config.vocab_size)}
    tokenizer: Any = Tokenizer(models.WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="0").save_pretrained(folder)
