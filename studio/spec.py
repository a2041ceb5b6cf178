"""RunSpec, the validated settings of a training run: model, data, method, training, seed.

The form edits it, the queue stores it as JSON, `runs/<id>/spec.yaml` holds it, `studio train`
accepts it, and the adapter's passport embeds it. As text it is what differs from the defaults: a
command, a short YAML file, assignments, the query of a page's address.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlencode

import yaml
from pydantic import BeforeValidator, SerializeAsAny, model_validator
from pydantic.fields import FieldInfo

from studio.data.column_mapping import RowFormat
from studio.data.template import ChatTemplateKwargs
from studio.errors import SpecError
from studio.fields import Record, knob, merge_values, parse_assignment, read_yaml, validated
from studio.methods import Method, methods, named
from studio.train_args import TrainArgs

VERSION: Literal[1] = 1


class ModelSource(Record):
    """Base model: source, precision and quantization."""

    path: str = knob("starter", "A model folder, a hub id, or the embedded starter.", title="Model")
    revision: str = knob(
        "", "Branch, tag or commit on the hub.", advanced=True, when={"model": ["hub"]}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto",
        "Precision of the frozen weights; auto uses bfloat16 on a GPU that has it, keeps bfloat16 "
        "files of 50 M parameters and more on a CPU that has it (see `studio doctor`), and uses "
        "float32 on other CPUs.", title="Precision", advanced=True,
    )  # fmt: skip
    quantization: Literal["none", "int8", "nf4"] = knob(
        "none",
        "Load the frozen weights in 8 bit (half the memory, nearly exact) or in 4 bit (nf4, QLoRA: "
        "a quarter of the memory); slower steps.", advanced=True,
        labels={"none": "none", "int8": "8 bit", "nf4": "4 bit (nf4)"},
    )  # fmt: skip


class DataSource(Record):
    """Dataset: source, row format, chat template and validation split."""

    path: str = knob(
        "starter:pirate", "A file, a folder, a hub id, or a demo dataset.", title="Dataset"
    )
    subset: str = knob(
        "", "Configuration of a hub dataset or of a folder with a dataset card.", advanced=True,
        when={"data": ["hub", "folder"]},
    )  # fmt: skip
    split: str = knob(
        "train", "Split to train on, of a hub dataset or of a folder with splits.", advanced=True,
        when={"data": ["hub", "folder"]},
    )  # fmt: skip
    format: Literal["auto", RowFormat] = knob(
        "auto", "Row format; auto detects it from the columns.", advanced=True
    )
    judged: Literal["refuse", "good"] = knob(
        "refuse",
        "Files of answers judged as good or bad (KTO): refuse, or train the good answers only.",
        title="Judged answers", advanced=True,
    )  # fmt: skip
    pairs: Literal["best", "all"] = knob(
        "best",
        "Pairs made of several scored answers: the best against the worst, or each against all "
        "that score less.", title="Pairs of scored answers", advanced=True,
        labels={"best": "best against worst", "all": "all pairs"},
    )  # fmt: skip
    margin: float = knob(
        0, "Least difference between the scores of a pair.", title="Margin", ge=0, advanced=True
    )
    chat_template: Literal["auto", "chatml", "alpaca", "vicuna", "plain"] = knob(
        "auto",
        "Template that formats conversations; auto uses the model's own, else chatml or plain.",
        title="Chat template", advanced=True, labels={
            "auto": "the model's own", "chatml": "ChatML", "alpaca": "Alpaca", "vicuna": "Vicuna",
            "plain": "plain",
        },
    )  # fmt: skip
    chat_template_kwargs: ChatTemplateKwargs = knob(
        "", "Settings that the model's own template reads, such as enable_thinking=false or "
        "reasoning_effort=high.", title="Template settings", advanced=True,
    )  # fmt: skip
    train_on: Literal["assistant", "last", "all"] = knob(
        "assistant", "Tokens that carry loss: every answer, only the last one, or all tokens.",
        title="Train on", advanced=True,
        labels={"assistant": "every answer", "last": "the last answer", "all": "everything"},
    )  # fmt: skip
    thoughts: Literal["template", "turns", "keep"] = knob(
        "template",
        "Thoughts that the chat template cuts: template leaves them out, turns trains each answer "
        "as it was generated (one row per answer), keep writes all of them into one row.",
        title="Cut thoughts", advanced=True,
    )  # fmt: skip
    accept_lost: bool = knob(
        False,
        "Train rows of which the chat template cuts part of an answer; they are refused otherwise.",
        title="Accept lost parts", advanced=True,
    )  # fmt: skip
    control_tokens: Literal["auto", "text", "tokens"] = knob(
        "auto",
        "Control tokens in texts: auto reads them as tokens in chats rendered already, whose "
        "answers are trained, and of text files the end of text; text never, tokens always.",
        title="Control tokens", advanced=True,
    )  # fmt: skip
    max_length: int = knob(
        1024,
        "Truncate longer rows to this length, or to the model's context length if that is shorter.",
        title="Maximum length", unit="tokens", ge=8, le=1_048_576, advanced=True,
    )  # fmt: skip
    validation_fraction: float = knob(
        0.05, "Fraction of rows held out to measure the held-out loss (at most 256 rows).",
        title="Validation fraction", ge=0, lt=1, advanced=True,
    )  # fmt: skip
    validation_path: str = knob(
        "",
        "Validation file to use instead of held-out rows; of an imported dataset with a split, "
        "its held-out rows.",
        advanced=True,
    )
    validation_split: str = knob(
        "", "Split to evaluate on instead of held-out rows: of the validation file, else of the "
        "dataset.", advanced=True,
    )  # fmt: skip


def _read_method(value: Any) -> Any:
    if isinstance(value, str):
        return named(value)()
    if isinstance(value, dict):
        name = value.get("name", "lora")
        return validated(named(str(name)), value, "method")
    return value


class RunSpec(Record):
    """Complete settings of a run."""

    name: str = knob("", "Name of the run and its adapter.", title="Name", max_length=120)
    model: ModelSource = ModelSource()
    data: DataSource = DataSource()
    method: Annotated[SerializeAsAny[Method], BeforeValidator(_read_method)] = knob("lora", "")
    train: TrainArgs = TrainArgs()
    seed: int = knob(
        0, "Random seed; runs with equal settings and seed are equal.", ge=0, le=2**31 - 1,
        advanced=True,
    )  # fmt: skip
    version: Literal[1] = VERSION

    model_config = Record.model_config | {"validate_default": True}

    @model_validator(mode="before")
    @classmethod
    def _quantized_for_the_method(cls, values: Any) -> Any:
        """Load the base as the method needs it: QLoRA in 4 bit."""
        if not isinstance(values, dict) or "method" not in values:
            return values
        wanted = getattr(_read_method(values["method"]), "quantization", "none")
        model = values.get("model", {})
        if wanted == "none" or not isinstance(model, dict | ModelSource):
            return values
        return values | {"model": {**dict(model), "quantization": wanted}}

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Read a spec file.

        Raises:
            SpecError: The file is missing, is not a YAML mapping, or has invalid fields.
        """
        return cls.parse(read_yaml(path))

    def to_yaml(self) -> str:
        """Return the whole spec as YAML, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def with_parts(self, **parts: dict[str, Any]) -> Self:
        """Return a copy with valid values in place of fields, such as `train={"fsdp": False}`."""
        changed = {name: getattr(self, name).model_copy(update=v) for name, v in parts.items()}
        return self.model_copy(update=changed)

    def on_this_machine(self) -> Self:
        """Return a copy with the devices and number of processes that it gets on this machine.

        Raises:
            SpecError: This machine does not have them.
        """
        names = self.train.device_names()
        train = {"device": ",".join(dict.fromkeys(names)), "num_processes": len(names)}
        return self.with_parts(train=train)

    def with_values(self, assignments: dict[str, Any]) -> Self:
        """Return a validated copy with dotted fields replaced, as in `--set method.r=16`.

        A method that quantizes the base leaves it quantized for no other method.
        """
        if "method.name" in assignments and self.method.quantization != "none":
            assignments = {"model.quantization": "none"} | assignments
        return type(self).parse(merge_values(self.model_dump(mode="json"), assignments))


# -- as text ---------------------------------------------------------------------------------------


def differences(spec: RunSpec) -> dict[str, Any]:
    """Return the dotted fields in which `spec` differs from the defaults (of its own method)."""
    plain = spec.model_dump(mode="json")
    usual = RunSpec(method=named(spec.method.name)()).model_dump(mode="json")
    found: dict[str, Any] = {}
    if spec.method.name != RunSpec().method.name:
        found["method.name"] = spec.method.name
    for part, value in plain.items():
        if not isinstance(value, dict):
            if value != usual[part]:
                found[part] = value
            continue
        for field, inner in value.items():
            if inner != usual[part].get(field):
                found[f"{part}.{field}"] = inner
    return found


def command_line(spec: RunSpec) -> str:
    """Return the `studio train` command that launches this very spec."""
    words = ["studio", "train", "--model", spec.model.path, "--data", spec.data.path]
    words += ["--method", spec.method.name]
    if spec.name:
        words += ["--name", spec.name]
    for path, value in differences(spec).items():
        if path not in ("model.path", "data.path", "method.name", "name"):
            words += ["--set", f"{path}={written(value)}"]
    return shlex.join(words)


@cache
def settings() -> tuple[tuple[str, FieldInfo], ...]:
    """Return every setting of a run, of each method too, as path and field."""
    records: list[tuple[str, type[Record]]] = [
        *(("method.", one) for one in reversed(methods().values())), ("model.", ModelSource),
        ("data.", DataSource), ("train.", TrainArgs), ("", RunSpec),
    ]  # fmt: skip
    return tuple(
        (part + name, info)
        for part, record in records for name, info in record.model_fields.items()
        if part or name in ("name", "seed")
    )  # fmt: skip


def read_assignment(text: str) -> tuple[str, Any]:
    """Return a setting and its value, as in `method.r=16`; one of text keeps what is written.

    Raises:
        SpecError: It has no field or no `=`.
    """
    path, value = parse_assignment(text)
    given, setting = text.partition("=")[2].strip(), dict(settings()).get(path)
    bare = not given.startswith(("'", '"')) and not isinstance(value, list)
    return path, given if bare and setting and setting.annotation is str else value


def written(value: Any) -> str:
    """Return a value as `--set` reads it."""
    if not isinstance(value, str):
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
        return text.strip().removesuffix("...").strip()
    # Quoted where it would be read back as something else than this text.
    return value if _reads_back(value) else json.dumps(value, ensure_ascii=False)


def _reads_back(text: str) -> bool:
    try:
        return bool(parse_assignment(f"text={text}")[1] == text)
    except SpecError:
        return False


def minimal_yaml(spec: RunSpec) -> str:
    """Return the shortest spec file that means the same."""
    plain = spec.model_dump(include={"name"} if spec.name else set()) | {
        "model": {"path": spec.model.path},
        "data": {"path": spec.data.path},
        "method": {"name": spec.method.name},
    }
    return yaml.safe_dump(
        merge_values(plain, differences(spec)), sort_keys=False, allow_unicode=True
    )


def assignments(spec: RunSpec) -> list[str]:
    """Return what differs from the defaults, as `method.r=32`."""
    return [f"{path}={written(value)}" for path, value in differences(spec).items()]


def address_query(spec: RunSpec) -> str:
    """Return the query of the address that opens the form with it: `set=method.r%3D32&…`."""
    return urlencode([("set", one) for one in assignments(spec)])


def read_assignments(texts: Iterable[str]) -> RunSpec:
    """Return the run that `assignments` wrote.

    Raises:
        SpecError: An assignment names no field or a wrong value.
    """
    return RunSpec().with_values(dict(map(read_assignment, texts)))
