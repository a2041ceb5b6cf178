"""RunSpec: one frozen object from the form to the adapter's passport.

The form edits it, the queue stores it as JSON, `runs/<id>/spec.yaml` holds it, `studio train`
accepts it, the passport embeds it. It knows what a run is, not how to do it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    model_validator,
)

from studio import devices
from studio.errors import SpecError
from studio.fields import Record, knob, merge_values, read_yaml, validated
from studio.methods import Method, methods, named

VERSION: Literal[1] = 1


class ModelSource(Record):
    """Where the base model comes from and how it is loaded."""

    path: str = knob("starter", "A folder, a hub id, or the embedded starter.", title="Model")
    revision: str = knob("", "Branch, tag or commit on the hub.", advanced=True)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto",
        "Precision of the frozen weights; auto takes bfloat16 on a GPU and float32 on a CPU, where "
        "bfloat16 is twice as fast if the processor has it (`studio doctor` tells).",
        title="Precision",
        advanced=True,
    )
    quantization: Literal["none", "nf4"] = knob(
        "none",
        "Load the frozen weights in 4 bit (QLoRA): a quarter of the memory, slower steps.",
        advanced=True,
    )


class DataSource(Record):
    """Where the examples come from and how they become tokens and labels."""

    path: str = knob("starter:pirate", "A file, a folder, a hub id, or a demo.", title="Dataset")
    subset: str = knob("", "Configuration name on the hub.", advanced=True)
    split: str = knob("train", "Split on the hub.", advanced=True)
    format: Literal[
        "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "question_answer",
        "preference", "labelled", "text",
    ] = knob("auto", "How rows are read; auto looks at the columns.", advanced=True)  # fmt: skip
    chat_template: Literal["auto", "chatml", "alpaca", "vicuna", "plain"] = knob(
        "auto",
        "How a conversation becomes text; auto takes the model's own, else chatml or plain.",
        title="Chat template",
        advanced=True,
    )
    train_on: Literal["assistant", "last", "all"] = knob(
        "assistant",
        "Which tokens carry loss: every answer, only the last one, or everything.",
        title="Train on",
        advanced=True,
    )
    max_length: int = knob(
        1024,
        "Longer rows are cut here, and at the model's own context if that is shorter.",
        title="Maximum length",
        unit="tokens",
        ge=8,
        le=1_048_576,
        advanced=True,
    )
    validation_fraction: float = knob(
        0.05,
        "Share of rows held out for the evaluation loss (at most 256 rows).",
        title="Held-out share",
        ge=0,
        lt=1,
        advanced=True,
    )
    validation_path: str = knob("", "A file to evaluate on instead.", advanced=True)


# Headings of the form's Advanced part.
OPTIMIZER = "Optimizer"
EVALUATION = "Evaluation and checkpoints"
SPEED = "Speed and memory"
DEVICES = "Devices"


class TrainArgs(Record):
    """How the optimiser walks; names and meanings are those of transformers' TrainingArguments."""

    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = knob(
        "auto",
        "Step size; auto takes the method's own, scaled to the model's width.",
        title="Learning rate",
    )
    num_train_epochs: float = knob(
        3, "Passes over the data.", title="Epochs", gt=0, le=1000, step=0.5
    )
    max_steps: int = knob(
        -1, "Optimizer steps; -1 lets the epochs decide.", title="Steps", ge=-1, le=10_000_000
    )
    per_device_train_batch_size: int = knob(
        8, "Rows that are computed at once.", title="Batch size", unit="rows", ge=1, le=4096
    )
    gradient_accumulation_steps: int = knob(
        1,
        "Batches summed before each step.",
        title="Accumulation",
        ge=1,
        le=4096,
        advanced=OPTIMIZER,
    )
    lr_scheduler_type: Literal[
        "cosine", "linear", "constant", "constant_with_warmup", "warmup_stable_decay"
    ] = knob("cosine", "How the step size falls.", title="Schedule", advanced=OPTIMIZER)
    warmup_steps: int = knob(
        -1, "Steps until the full step size; -1 takes 5 %.", ge=-1, le=1_000_000, advanced=OPTIMIZER
    )
    optim: Literal[
        "adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "muon"
    ] = knob(
        "adamw",
        "What turns gradients into steps; 8 bit (CUDA only) and adafactor need less memory.",
        title="Optimizer",
        advanced=OPTIMIZER,
    )  # fmt: skip
    loraplus_lr_ratio: float = knob(
        1.0, "LoRA+: how many times faster B learns than A; 1 is plain LoRA.", gt=0, le=1000,
        title="LoRA+ ratio", advanced=OPTIMIZER,
    )  # fmt: skip
    weight_decay: float = knob(0.0, "Pull of the weights to zero.", ge=0, le=10, advanced=OPTIMIZER)
    max_grad_norm: float = knob(
        1.0, "Longer gradients are shortened to this; 0 never.", ge=0, advanced=OPTIMIZER
    )
    label_smoothing_factor: float = knob(
        0.0, "Share of each target given to all tokens alike.", title="Label smoothing", ge=0, lt=1,
        advanced=OPTIMIZER,
    )  # fmt: skip
    neftune_noise_alpha: float = knob(
        0.0, "NEFTune: noise on the embeddings while training; 5 is usual, 0 none.",
        title="NEFTune noise", ge=0, le=1000, advanced=OPTIMIZER,
    )  # fmt: skip
    eval_steps: int = knob(
        0, "Steps between evaluations; 0 makes about ten, -1 none.", ge=-1, advanced=EVALUATION
    )
    save_steps: int = knob(
        0,
        "Steps between checkpoints; 0 makes about five, -1 only at stop.",
        ge=-1,
        advanced=EVALUATION,
    )
    save_total_limit: int = knob(2, "Checkpoints kept.", ge=1, le=1000, advanced=EVALUATION)
    load_best_model_at_end: bool = knob(
        False, "Keep the checkpoint with the best held-out loss, and make it the adapter.",
        title="Best checkpoint", advanced=EVALUATION,
    )  # fmt: skip
    early_stopping_patience: int = knob(
        0, "End after so many evaluations without a better held-out loss (the best one is kept); "
        "0 never.", title="Early stopping", ge=0, le=1000, advanced=EVALUATION,
    )  # fmt: skip
    num_samples: int = knob(
        3, "Held-out prompts answered at every evaluation; 0 none.", ge=0, le=8, advanced=EVALUATION
    )
    sample_prompts: str = knob(
        "",
        "Your own prompts to answer instead, separated by |.",
        max_length=4000,
        advanced=EVALUATION,
    )
    packing: bool = knob(
        True, "Concatenate rows instead of padding them; same losses, faster.", advanced=SPEED
    )
    gradient_checkpointing: bool = knob(
        False, "Recompute activations instead of keeping them: less memory, slower.", advanced=SPEED
    )
    activation_offloading: bool = knob(
        False, "With gradient checkpointing on a GPU: layers' inputs wait in main memory; same "
        "result.",
        title="Offload activations", advanced=SPEED,
    )  # fmt: skip
    retry_when_out_of_memory: bool = knob(
        False, "When memory runs out, halve the batch (the effective one stays) and go on from the "
        "last checkpoint.", title="Make it fit by itself", advanced=SPEED,
    )  # fmt: skip
    together: bool = knob(
        True, "Runs of one sweep on one model and its data share one base in memory; same results.",
        title="With its siblings", advanced=SPEED,
    )  # fmt: skip
    attn_implementation: Literal["auto", "varlen", "sdpa", "eager"] = knob(
        "auto", "auto takes the fastest: varlen (all packed rows at once; GPU, half precision), or "
        "sdpa (row by row) with plain products for short rows in bfloat16 on a CPU.",
        title="Attention", advanced=SPEED,
    )  # fmt: skip
    device: Annotated[str, BeforeValidator(devices.read)] = knob(
        "auto", "auto, cpu, a GPU (cuda:0), several at once (cuda:0,cuda:2), all (every GPU; "
        "without one a CPU process a core), or ray: the cluster.", title="Devices",
        advanced=DEVICES, several=True,
    )  # fmt: skip
    num_processes: int = knob(
        1,
        "Processes (one a GPU, or CPU processes) that share each step's rows; same result. "
        "Several devices, or all, bring their own number.",
        title="Processes",
        ge=1,
        le=64,
        advanced=DEVICES,
    )
    fsdp: bool = knob(
        False, "Each process keeps only its part of the frozen weights: for a base too large for "
        "one.", title="Share the base", advanced=DEVICES,
    )  # fmt: skip

    @model_validator(mode="after")
    def _offloads_what_is_recomputed(self) -> Self:
        if self.activation_offloading and not self.gradient_checkpointing:
            raise SpecError(
                "train.activation_offloading moves away what layers are recomputed from: set "
                "train.gradient_checkpointing=true as well.",
                field="train.activation_offloading",
            )
        return self

    @model_validator(mode="after")
    def _devices_agree(self) -> Self:
        devices.check_agreement(self.device, self.num_processes)
        return self


def _read_method(value: Any) -> Any:
    if isinstance(value, str):
        return named(value)()
    if isinstance(value, dict):
        name = value.get("name", "lora")
        return validated(named(str(name)), value, "method")
    return value


class RunSpec(Record):
    """Everything that decides a run."""

    name: str = knob("", "What to call the run and its adapter.", title="Name", max_length=120)
    model: ModelSource = ModelSource()
    data: DataSource = DataSource()
    method: Annotated[SerializeAsAny[Method], BeforeValidator(_read_method)] = knob("lora", "")
    train: TrainArgs = TrainArgs()
    seed: int = knob(0, "Same seed, same run.", ge=0, le=2**31 - 1, advanced=True)
    version: Literal[1] = VERSION

    model_config = Record.model_config | {"validate_default": True}

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Validate plain values.

        Raises:
            SpecError: Names every wrong field, the value got and the nearest known key.
        """
        return validated(cls, values)

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Read a spec file.

        Raises:
            SpecError: The file is missing, is no YAML mapping, or holds wrong fields.
        """
        return cls.parse(read_yaml(path))

    def to_yaml(self) -> str:
        """Return the whole spec as YAML, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def with_values(self, assignments: dict[str, Any]) -> Self:
        """Return a copy with dotted fields replaced, as in `--set method.r=16`."""
        return type(self).parse(merge_values(self.model_dump(mode="json"), assignments))


def known_fields() -> dict[str, tuple[str, ...]]:
    """Return the dotted fields of the spec by part, for help and completion."""
    parts: dict[str, type[BaseModel]] = {
        "model": ModelSource, "data": DataSource, "train": TrainArgs,
    }  # fmt: skip
    fields = {part: tuple(cls.model_fields) for part, cls in parts.items()}
    for name, method in methods().items():
        fields[f"method:{name}"] = tuple(method.model_fields)
    return fields
