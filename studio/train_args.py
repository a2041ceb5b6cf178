"""Training settings of a run (`train.…`); names and meanings are those of TrainingArguments."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from studio import device_setting
from studio.errors import SpecError
from studio.evaluation.scores_and_gates import needs_reference, weights_in
from studio.fields import Record, knob
from studio.training.trackers import parse_trackers

Rows = Literal["answers", "pairs", "judged", "prompts", "referenced"]
LOSSES = {
    "sft": "SFT: answers", "dpo": "DPO: pairs", "ipo": "IPO: pairs", "kto": "KTO: judged answers",
    "orpo": "ORPO: pairs, no reference", "simpo": "SimPO: pairs, no reference",
    "cpo": "CPO: pairs, no reference", "grpo": "GRPO: rewards of its own answers",
}  # fmt: skip
START_MODES = {"continue": "training it further", "stack": "stacking a fresh one on it"}
_optimizer = partial(knob, advanced="Optimizer")  # the headings of the form's Advanced section
_evaluation = partial(knob, advanced="Evaluation and checkpoints")
_speed = partial(knob, advanced="Speed and memory")
_devices = partial(knob, advanced="Devices")
_preference = partial(knob, advanced="Preferences")
_grpo = partial(knob, advanced="Rewards", when={"loss": ("grpo",)})
_start = partial(knob, advanced="Start")


class TrainArgs(Record):
    """Training settings; names and meanings are those of transformers' TrainingArguments."""

    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = knob(
        "auto", "Peak learning rate; auto scales the method's default to the model's width and to "
        "the loss.",
    )  # fmt: skip
    loss: Literal["sft", "dpo", "ipo", "kto", "orpo", "simpo", "cpo", "grpo"] = knob(
        "sft", "Learn from answers, from pairs of a better and a worse one, from judged ones, or "
        "from the model's own answers and their scores.", labels=LOSSES,
    )  # fmt: skip
    rewards: str = knob(
        "", "Scores of an answer with their weights, such as number:1, pattern:0.2. Compared with "
        "the row's own answer: exact_match, rouge_l, contains, number; without one: pattern, json, "
        "json_schema.", title="Rewards", max_length=1000, when={"loss": ("grpo",)},
    )  # fmt: skip
    find_learning_rate: bool = knob(
        False,
        "Try four rates, √10 apart around the learning rate, for a quarter of the run each, and "
        "train with the best by held-out loss: twice the time.", title="Find the learning rate",
        advanced="Optimizer",
    )  # fmt: skip
    num_train_epochs: float = knob(
        3, "Passes over the training data.", title="Epochs", gt=0, le=1000,
        when={"max_steps": ("", "-1", "auto")},
    )  # fmt: skip
    max_steps: int = knob(
        -1, "Number of optimizer steps; -1 derives it from the epochs.", title="Steps", ge=-1,
        le=10_000_000, words={"auto": -1},
    )  # fmt: skip
    per_device_train_batch_size: int = knob(
        8, "Rows (or pairs; with grpo, prompts with their answers) per forward and backward pass.",
        title="Batch size", unit="rows", ge=1, le=4096,
    )  # fmt: skip
    gradient_accumulation_steps: int = _optimizer(
        1, "Batches to accumulate gradients over before each optimizer step.",
        title="Gradient accumulation", ge=1, le=4096,
    )  # fmt: skip
    lr_scheduler_type: Literal[
        "cosine", "linear", "constant", "constant_with_warmup", "warmup_stable_decay"
    ] = _optimizer("cosine", "Learning-rate decay after warmup.", title="Learning-rate schedule")
    warmup_steps: int = _optimizer(
        -1, "Steps of linear warmup; -1 uses 5 % of the run.", ge=-1, le=1_000_000,
        words={"auto": -1},
    )  # fmt: skip
    optim: Literal[
        "adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "muon"
    ] = _optimizer(
        "adamw", "Optimizer; the 8-bit ones (CUDA only) and adafactor use less memory.",
        title="Optimizer",
    )  # fmt: skip
    loraplus_lr_ratio: float = _optimizer(
        1.0, "LoRA+: learning rate of B relative to A; 1 is plain LoRA.", gt=0, le=1000,
        title="LoRA+ ratio", when={"method.name": ["lora", "qlora"]},
    )  # fmt: skip
    embedding_lr_ratio: float = _optimizer(
        0.0, "Learning rate of embeddings and of other modules trained in full, relative to the "
        "others; auto is 1 for single tokens and 0.1 for whole modules.", ge=0, le=1000,
        title="Embedding ratio", words={"auto": 0}, when={"method.name": ["lora", "qlora"]},
    )  # fmt: skip
    weight_decay: float = _optimizer(0.0, "Weight decay coefficient.", ge=0, le=10)
    max_grad_norm: float = _optimizer(
        1.0, "Clip the gradient norm to this value; 0 disables clipping.",
        title="Gradient clipping", ge=0, words={"off": 0},
    )  # fmt: skip
    label_smoothing_factor: float = _optimizer(
        0.0, "Fraction of each target spread evenly over the vocabulary.", ge=0, lt=1,
        title="Label smoothing",
    )  # fmt: skip
    neftune_noise_alpha: float = _optimizer(
        0.0, "NEFTune: noise added to the embeddings in training; 5 is usual, 0 disables it.",
        title="NEFTune noise", ge=0, le=1000, words={"off": 0},
    )  # fmt: skip
    beta: Annotated[float, Field(ge=0, le=100)] | Literal["auto"] = _preference(
        "auto", "Weight of the preference: for dpo, ipo and kto a larger one stays closer to the "
        "reference; for orpo the weight of the odds ratio; for simpo 2 to 2.5 is usual; for grpo "
        "the weight of the distance from the base, 0 for none. auto is 0.1, for grpo 0.04.",
        when={"loss": ("dpo", "ipo", "kto", "orpo", "simpo", "cpo", "grpo")},
    )  # fmt: skip
    label_smoothing: float = _preference(
        0.0, "Probability that a pair is labelled the wrong way round.", title="Wrong labels",
        ge=0, lt=0.5, when={"loss": ("dpo", "simpo", "cpo")},
    )  # fmt: skip
    rpo_alpha: float = _preference(
        0.0, "Weight of the SFT loss of the chosen answers added to dpo (RPO); 1 keeps their "
        "probability from falling.", title="RPO alpha", ge=0, le=100, when={"loss": ("dpo",)},
    )  # fmt: skip
    simpo_gamma: float = _preference(
        0.5, "Margin by which the chosen answer's reward should exceed the rejected one's.",
        title="SimPO gamma", ge=0, le=100, when={"loss": ("simpo",)},
    )  # fmt: skip
    cpo_alpha: float = _preference(
        1.0, "Weight of the SFT loss of the chosen answers.", title="CPO alpha", ge=0, le=100,
        when={"loss": ("cpo",)},
    )  # fmt: skip
    desirable_weight: float = _preference(
        1.0, "Weight of answers judged as good.", ge=0, le=100, when={"loss": ("kto",)}
    )
    undesirable_weight: float = _preference(
        1.0, "Weight of answers judged as bad.", ge=0, le=100, when={"loss": ("kto",)}
    )
    reward_pattern: str = _grpo(
        "", "Regular expression of the score pattern.", title="Pattern", max_length=2000
    )
    reward_json_schema: str = _grpo(
        "", "JSON schema of the score json_schema.", title="JSON schema", max_length=20_000, lines=4
    )
    num_generations: int = _grpo(
        8, "Answers to each prompt; they are compared with each other.", title="Answers per prompt",
        ge=1, le=1024,
    )  # fmt: skip
    max_completion_length: int = _grpo(
        256, "Maximum length of an answer.", title="Longest answer", unit="tokens", ge=1,
        le=1_048_576,
    )  # fmt: skip
    temperature: float = _grpo(
        1.0, "Temperature of the answers; a model that is too sure of itself needs more than 1 to "
        "try anything else.", gt=0, le=10,
    )  # fmt: skip
    scale_rewards: Literal["group", "batch", "none"] = _grpo(
        "group", "Divide advantages by the standard deviation of the rewards of their group, of "
        "the whole step, or not at all.",
        labels={"group": "of the group", "batch": "of the step", "none": "not at all"},
    )  # fmt: skip
    num_iterations: int = _grpo(
        1, "Optimizer updates with the same answers; more use each answer better, and epsilon "
        "bounds how far they move.", title="Updates per step", ge=1, le=64,
    )  # fmt: skip
    epsilon: float = _grpo(
        0.2, "Clip the ratio of a token's new and old probability to 1 ± epsilon; without effect "
        "in the first update of a step.", gt=0, lt=1,
    )  # fmt: skip
    init_adapter: str = _start(
        "", "Adapter of the library, run or folder to start from, of the same base; empty starts "
        "with a fresh one.", title="Start from adapter",
    )  # fmt: skip
    init_mode: Literal["continue", "stack"] = _start(
        "continue", "Train that adapter further, with its own rank and modules, or keep it frozen "
        "below a fresh one.", title="Start by", labels=START_MODES,
    )  # fmt: skip
    eval_steps: int = _evaluation(
        0, "Steps between evaluations; 0 evaluates 64 held-out rows up to ten times and "
        "for at most a sixth of the run, -1 never.", ge=-1,
        words={"auto": 0, "never": -1},
    )  # fmt: skip
    save_steps: int = _evaluation(
        0, "Steps between checkpoints; 0 saves about five times per run, -1 only on stop.", ge=-1,
        words={"auto": 0, "only on stop": -1},
    )  # fmt: skip
    save_total_limit: int = _evaluation(
        2, "Maximum number of checkpoints to keep.", title="Checkpoints to keep", ge=1, le=1000
    )
    load_best_model_at_end: bool = _evaluation(
        False, "Publish the checkpoint with the lowest held-out loss as the adapter (after "
        "learning from preferences, with the highest reward accuracy).", title="Best checkpoint",
    )  # fmt: skip
    early_stopping_patience: int = _evaluation(
        0, "Stop after this many evaluations without a lower held-out loss (or a higher reward "
        "accuracy or reward), and publish the best checkpoint; 0 disables early stopping.",
        title="Early stopping", ge=0, le=1000, words={"off": 0},
    )  # fmt: skip
    num_samples: int = _evaluation(
        3, "Validation prompts to answer at every evaluation; 0 disables sampling.", ge=0, le=8,
        words={"none": 0},
    )  # fmt: skip
    sample_prompts: str = _evaluation(
        "", "Prompts to answer instead of validation prompts, separated by |.", max_length=4000,
        lines=2,
    )  # fmt: skip
    measure_forgetting: bool = _evaluation(
        True, "Measure at the end how much the model changed on a general set that the data does "
        "not touch: loss, KL divergence, changed answers; 3 s, or 5 % of a longer run.",
        title="Measure forgetting",
    )  # fmt: skip
    forgetting_curve: bool = _evaluation(
        False, "Measure it at every evaluation too, as a curve over the steps: up to 3 s each.",
        when={"train.measure_forgetting": ["true"]},
    )  # fmt: skip
    general_data: str = _evaluation(
        "", "Dataset of general texts for measuring forgetting; empty uses the embedded set.",
        title="General set", max_length=4000,
    )  # fmt: skip
    report_to: Annotated[str, BeforeValidator(parse_trackers)] = _evaluation(
        "none", "Trackers that get the curves too, between commas: tensorboard, trackio, wandb, "
        "mlflow; each an extra of its own.", title="Trackers", max_length=100,
    )  # fmt: skip
    packing: bool = _speed(True, "Concatenate rows instead of padding them: faster, same losses.")
    gradient_checkpointing: bool = _speed(
        False, "Recompute activations in the backward pass: less memory, slower."
    )
    activation_offloading: bool = _speed(
        False, "With gradient checkpointing on a GPU: keep the layers' inputs in main memory; "
        "results do not change.",
        when={"train.gradient_checkpointing": ["true"], "device": ["gpu"]},
    )  # fmt: skip
    retry_when_out_of_memory: bool = _speed(
        False, "When out of memory, halve the batch size (the effective batch size stays) and "
        "resume from the last checkpoint.",
    )  # fmt: skip
    self_test: bool = _speed(
        True, "Check a base before its first run, once per model and version of transformers: "
        "adapted, packed and cached logits equal the plain ones; off trains without the check.",
        title="Self-test",
    )  # fmt: skip
    together: bool = _speed(
        True, "Share one base model in memory with other runs of the sweep; results do not change.",
        title="Train with sibling runs",
    )  # fmt: skip
    attn_implementation: Literal["auto", "varlen", "sdpa", "eager"] = _speed(
        "auto", "Attention kernel; auto selects the fastest: varlen (all packed rows in one call; "
        "GPU, half precision), or sdpa (row by row; matrix products for short bfloat16 rows on a "
        "CPU).", title="Attention",
    )  # fmt: skip
    tf32: bool = _speed(
        True, "Products of float32 matrices (full fine-tuning) round their inputs to TF32: several "
        "times faster, about as precise as bfloat16.", title="TF32", when={"device": ["gpu"]},
    )  # fmt: skip
    triton_kernels: bool = _speed(
        True, "Own Triton kernels for norms, SwiGLU, rotary positions and the loss, each where a "
        "self-test finds it right and faster on this card.", title="Triton kernels",
        when={"device": ["gpu"]},
    )  # fmt: skip
    device: Annotated[str, BeforeValidator(device_setting.parse_devices)] = _devices(
        "auto", "auto, cpu, one GPU (cuda:0), several GPUs (cuda:0,cuda:2), all (every GPU; "
        "without one, one process per CPU core), or ray (the cluster).", several=True,
    )  # fmt: skip
    num_processes: int = _devices(
        1, "Number of data-parallel processes (one per GPU); results do not change. 1 follows "
        "train.device.", title="Processes", ge=1, le=64,
    )  # fmt: skip
    fsdp: bool = _devices(
        False, "Shard the frozen weights over the processes (FSDP): for a base model too large for "
        "one device.", title="Shard the base", when={"device": ["several"]},
    )  # fmt: skip

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.max_steps == 0:
            raise SpecError(
                "train.max_steps is 0, which trains nothing: give the number of steps, or leave it "
                "out (-1) to derive it from the epochs.", field="train.max_steps",
            )  # fmt: skip
        if self.activation_offloading and not self.gradient_checkpointing:
            raise SpecError(
                "train.activation_offloading requires gradient checkpointing: set "
                "train.gradient_checkpointing=true as well.", field="train.activation_offloading",
            )  # fmt: skip
        device_setting.check_num_processes(self.device, self.num_processes)
        return self

    @property
    def rows(self) -> Rows:
        """Kind of rows that the loss learns from."""
        if self.loss == "grpo":
            scores = weights_in(self.rewards)
            return "referenced" if needs_reference(scores) else "prompts"
        return "answers" if self.loss == "sft" else "judged" if self.loss == "kto" else "pairs"

    @property
    def own_beta(self) -> float:
        """`beta`, with what auto stands for."""
        if self.beta == "auto":
            return 0.04 if self.loss == "grpo" else 0.1
        return self.beta

    @property
    def rows_per_step(self) -> int:
        """Effective batch size: rows of one optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def may_use_several_processes(self) -> bool:
        """True if the run uses several processes, or may on the machine where it starts."""
        return self.device == device_setting.ALL or self.num_devices > 1

    @property
    def num_devices(self) -> int:
        """Number of devices the run uses at once; `all` counts those of this machine."""
        if self.device == device_setting.ALL:
            return len(self.device_names())
        return device_setting.num_devices(self.device, self.num_processes)

    def device_names(self) -> tuple[str, ...]:
        """Return the device of each process of the run on this machine.

        Raises:
            SpecError: This machine does not have them.
        """
        return device_setting.device_names(self.device, self.num_processes, self.rows_per_step)
