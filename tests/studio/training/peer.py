"""The golden tests' peer: Hugging Face's Trainer over PEFT, on the same rows in the same order."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from studio.training.batching import pad
from studio.training.training_session import Session

CPU = torch.device("cpu")


class Ordered(transformers.Trainer):
    """Takes the rows as they come and notes each batch's loss."""

    losses: list[float]

    def _get_train_sampler(self, *args: object) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *args: object, **options: object) -> torch.Tensor:
        self.losses.append(float(loss := super().training_step(*args, **options)))
        return loss


def collate(batch: list) -> dict[str, torch.Tensor]:
    padded = pad(batch, CPU)
    labels = np.full(padded.ids_BT.shape, -100)
    for i, example in enumerate(batch):
        labels[i, : len(example.labels)] = example.labels
    return {
        "input_ids": padded.ids_BT, "attention_mask": padded.mask_BT,
        "labels": torch.from_numpy(labels),
    }  # fmt: skip


def train_with_hf(
    model: Any, rows: list, folder: Path, *, steps: int, accumulation: int = 1, **arguments: Any
) -> tuple[list[float], list[float]]:
    """Train for some steps of 4 rows (times accumulation); returns losses and gradient norms."""
    options = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": steps,
        "gradient_accumulation_steps": accumulation, "learning_rate": 1e-3, "logging_steps": 1,
        "lr_scheduler_type": "constant", "report_to": [], "use_cpu": True, "save_strategy": "no",
        "disable_tqdm": True, "remove_unused_columns": False,
    }  # fmt: skip
    trainer = Ordered(
        model=model, args=transformers.TrainingArguments(**{**options, **arguments}),
        train_dataset=rows, data_collator=collate,
    )  # fmt: skip
    trainer.losses = []
    trainer.train()
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return np.array(trainer.losses).reshape(steps, accumulation).sum(1).tolist(), norms


def require_gradients_of(model: torch.nn.Module, own: Session) -> None:
    """Compare the gradients of a session's adapter with those of PEFT's."""
    theirs = {n.split("layers.")[1]: p.grad for n, p in model.named_parameters()
              if p.grad is not None}  # fmt: skip
    assert len(theirs) == len(own.parameters) == 8
    for key, parameter in own.adapter.named_parameters():
        site, _, part = key.rpartition("/")
        path = f"{site.split('layers.')[1]}.{part}.default.weight"
        torch.testing.assert_close(parameter.grad, theirs[path], rtol=1e-3, atol=1e-6)
