"""Losses of preferences against TRL's trainers: loss, rewards and gradients of the same batch."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file

from studio.training.preference_loss import Preference, Rewards
from studio.training.training_session import Session
from tests.studio.tiny import tiny_tokenizer
from tests.studio.training.conftest import Example, Rows, make_model, make_session
from tests.studio.training.peer import require_gradients_of

PAIRS = [
    ("what is one?", "one is a number", "no"), ("say hi", "hi there.", "go away, please go"),
    ("b", "be kind", "bad"), ("count: one two", "three four five", "six seven"),
    ("where is it", "here", "over there I think"), ("and now?", "now it is late", "later"),
]  # fmt: skip
JUDGED = [(prompt, answer, i % 2 == 0 or i == 3) for i, (prompt, *answers) in enumerate(PAIRS)
          for answer in answers[:1]]  # fmt: skip
LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {}, "dpo, smoothed": {"label_smoothing": 0.1, "beta": 0.3},
    "dpo with sft": {"rpo_alpha": 0.7}, "ipo": {"beta": 0.2},
    "kto": {"desirable_weight": 0.8, "undesirable_weight": 1.3},
    "orpo": {"beta": 0.3}, "simpo": {"beta": 2.0, "simpo_gamma": 1.0},
    "cpo": {"cpo_alpha": 0.4, "label_smoothing": 0.2},
}  # fmt: skip


def rows_of(loss: str) -> Rows:
    """Rows as TRL tokenises the same texts: the prompt's characters, the answer's, the end."""
    tokens = tiny_tokenizer()

    def row(prompt: str, answer: str, number: int, good: bool) -> Example:
        before, after = tokens(prompt)["input_ids"], [*tokens(answer)["input_ids"], 1]
        labels = [-100] * len(before) + after
        made = Example(np.array(before + after, np.int32), np.array(labels, np.int32), number)
        made.good = good
        return made

    if loss == "kto":
        return Rows([row(*one[:2], i, one[2]) for i, one in enumerate(JUDGED)], [])
    pairs = [("b", *one[1:]) for one in PAIRS] if loss == "orpo" else PAIRS
    answers = [(i, one[0], one[1 + side], side) for i, one in enumerate(pairs) for side in (0, 1)]
    made = Rows([row(p, a, i, not side) for i, p, a, side in answers], [])
    made.rows_per_example = 2
    return made


def ours(name: str, folder: Path, **train: Any) -> tuple[Session, float, dict[str, Any]]:
    """Return a session after one backward pass of its first step, the loss and the rewards."""
    loss = name.partition(" ")[0].rstrip(",")
    rows = rows_of(loss)
    # Dropout off, all rows in one batch, in their order.
    own = make_session(
        rows, method={"name": "lora", "r": 4, "target_modules": ["q_proj", "up_proj"]},
        train={"loss": loss, **LOSSES[name], "max_steps": 2, "per_device_train_batch_size": 6,
               **train},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for parameter in own.parameters:
        parameter.data.normal_(0, 0.2, generator=generator)
    assert isinstance(own.preference, Preference)
    list(own.preference.prepare_reference(folder))
    passed = own.forward_backward(own)
    rewards = Rewards.of([float(one) for one in passed.sums])
    return own, float(sum(passed.losses)), rewards._asdict()


def trainer_of(name: str, folder: Path) -> Any:
    """Return TRL's trainer of a loss, on the same base and texts."""
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    loss, own = name.partition(" ")[0].rstrip(","), dict(LOSSES[name])
    kind, config = {
        "dpo": (DPOTrainer, DPOConfig), "ipo": (DPOTrainer, DPOConfig),
        "kto": (KTOTrainer, KTOConfig), "orpo": (ORPOTrainer, ORPOConfig),
        "simpo": (CPOTrainer, CPOConfig), "cpo": (CPOTrainer, CPOConfig),
    }[loss]  # fmt: skip
    if loss == "dpo":
        weight = own.pop("rpo_alpha", 0.0)
        kinds = ["robust" if "label_smoothing" in own else "sigmoid", *(["sft"] if weight else [])]
        own |= {"loss_type": kinds, "loss_weights": [1.0, weight][: len(kinds)]}
    own |= {"ipo": {"loss_type": ["ipo"]}, "simpo": {"loss_type": "simpo", "cpo_alpha": 0.0}}.get(
        loss, {}
    )
    pairs = [("b", *one[1:]) for one in PAIRS] if loss == "orpo" else PAIRS
    columns = (
        ("prompt", "completion", "label") if loss == "kto" else ("prompt", "chosen", "rejected")
    )
    data = [dict(zip(columns, one, strict=True)) for one in (JUDGED if loss == "kto" else pairs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(
            model=make_model(pad_token_id=0, eos_token_id=1, bos_token_id=None),
            args=config(
                output_dir=str(folder), per_device_train_batch_size=6, use_cpu=True, bf16=False,
                gradient_checkpointing=False, report_to=[], **own,
            ),
            train_dataset=Dataset.from_list(data), processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "up_proj"],
                                   task_type="CAUSAL_LM"),
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOSSES)
def test_loss_rewards_and_gradients_equal_those_of_trl(name, tmp_path):
    pytest.importorskip("trl", reason='the oracle is in the extra "test"')
    own, loss, rewards = ours(name, tmp_path)
    own.backbone.save(own.name, tmp_path)
    trainer = trainer_of(name, tmp_path / "trl")
    set_peft_model_state_dict(trainer.model, load_file(tmp_path / "adapter_model.safetensors"))
    batch = next(iter(torch.utils.data.DataLoader(
        trainer.train_dataset, batch_size=6, collate_fn=trainer.data_collator)))  # fmt: skip
    found = trainer.compute_loss(trainer.model.train(), batch)
    found.backward()
    assert loss == pytest.approx(float(found), rel=1e-5)
    noted = getattr(trainer, "_metrics", None) or trainer._stored_metrics
    for theirs, mine in {"rewards/chosen": "rewards_chosen", "rewards/rejected": "rewards_rejected",
                         "rewards/margins": "rewards_margins", "logps/chosen": "logps_chosen",
                         "rewards/accuracies": "rewards_accuracies"}.items():  # fmt: skip
        if theirs == "logps/chosen" and name in ("orpo", "simpo"):
            continue  # theirs is per token
        if theirs in noted["train"]:
            # Differences of sums near 50, which float32 rounds by 4e-6.
            wanted = pytest.approx(noted["train"][theirs][-1], rel=1e-4, abs=2e-6)
            assert rewards[mine] == wanted, theirs
    require_gradients_of(trainer.model, own)
