"""The Train page's JSON routes: its fields, and what the form means as it stands.

The page sends the fields that differ from their defaults, as they were typed. They are judged by
`RunSpec.parse`, as on the command line, so that both say the same sentence.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs

from fastapi import APIRouter
from pydantic import BaseModel

from jobs.actions.guide import is_first_start
from jobs.actions.registry import shown_field
from jobs.database import finite
from jobs.job_queue import JobStore
from studio import hardware, presets
from studio.adapters import library
from studio.data.find_dataset import origin_of
from studio.device_setting import CPU
from studio.errors import AdapterError, SpecError, StudioError
from studio.fields import Parameter, parameter, parse_assignment
from studio.home import Home
from studio.methods import methods
from studio.methods.method import Method
from studio.models import find_model as models
from studio.spec import (
    DataSource,
    ModelSource,
    RunSpec,
    assignments,
    command_line,
    differences,
    minimal_yaml,
    read_assignment,
    read_assignments,
)
from studio.train_args import TrainArgs
from studio.training import objectives
from ui import train_page_facts
from ui.language import say, with_titles

PARTS: dict[str, type[BaseModel]] = {
    "": RunSpec, "model": ModelSource, "data": DataSource, "train": TrainArgs,
}  # fmt: skip
Values = dict[str, Any]


class FormState(BaseModel):
    """The question of a part of the page.

    `values` are the fields as typed and `address` what the form is opened from, a preset is laid
    over both; `set` is the form as assignments.
    """

    values: Values = {}
    address: str = ""
    preset: str = ""
    set: list[str] = []


def train_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the route of the Train page, with an answer for each part of it."""
    router = APIRouter(prefix="/api/train")
    parts: dict[str, Callable[[FormState], dict[str, Any]]] = {
        "form": lambda _: drawn(home) | {"first": is_first_start(store)},
        "judge": lambda asked: judged(_asked(asked, home), home),
        "estimate": lambda asked: train_page_facts.forecast(
            read_assignments(asked.set), home, store
        ),
        "rows": lambda asked: train_page_facts.first_rays(read_assignments(asked.set), home),
    }

    @router.post("/{part}")
    def answer(
        part: Literal["form", "judge", "estimate", "rows"], asked: FormState
    ) -> dict[str, Any]:
        try:
            return parts[part](asked)
        except StudioError as why:  # a form on its way to a valid one: an answer, not a failure
            return {**_told(why), "values": finite(_as_given(asked.address))}

    return router


def _told(why: StudioError) -> dict[str, Any]:
    return {"error": {"text": with_titles(why.text), "field": getattr(why, "field", "")}}


def drawn(home: Home) -> dict[str, Any]:
    """Return what the Train page's form is drawn from: fields, methods and choices."""
    choices = (
        ("model.path", train_page_facts.model_choices(home)),
        ("data.path", train_page_facts.data_choices(home)),
        ("train.device", train_page_facts.device_choices()),
        ("train.init_adapter", train_page_facts.adapter_choices(home)),
    )  # fmt: skip
    return {
        "fields": [
            shown(one) for part, record in PARTS.items() for one in form_fields(record, part)
        ],
        "methods": [
            {
                "name": name, "title": method.title, "phase": method.phase.value,
                **explained(method),
                "fields": [shown(one) for one in form_fields(method, "method")],
            }
            for name, method in methods().items()
        ],
        "choices": {path: [(value, label) for label, value in found] for path, found in choices},
    }  # fmt: skip


def explained(method: type[Method]) -> dict[str, str]:
    """Return what the Train page says of a method: its use, then its manual, a sentence a line."""
    text = re.sub(r"(?<![.:\n])\n(?!\n)", " ", method.manual())
    use = re.search(r"When to use it: (.*?)(?=\nCost:|\n\n|\Z)", text, re.DOTALL)
    assert use is not None
    words = " ".join(use[1].split())
    rest = (text[: use.start()] + text[use.end() :]).strip()
    return {"use": words[0].upper() + words[1:], "manual": re.sub(r"\n{3,}", "\n\n", rest)}


def _asked(asked: FormState, home: Home) -> RunSpec:
    given = parse_qs(asked.address.lstrip("?"))
    spec = read_assignments(given.get("set", []))
    for name in given.get("preset", []):
        spec = presets.apply_preset(home, name, spec)
    if asked.values:
        spec = RunSpec().with_values(typed(asked.values))
    return presets.apply_preset(home, asked.preset, spec) if asked.preset else spec


def _as_given(address: str) -> Values:
    """Return the fields of an address with the values that it gives, wrong ones too."""
    found: Values = {}
    for text in parse_qs(address.lstrip("?")).get("set", []):
        with suppress(SpecError):
            found |= [read_assignment(text)]
    return found


def form_fields(record: type[BaseModel], part: str) -> list[Parameter]:
    """Return a record's fields in the Train page's form, in order, without nested records."""
    hidden = {"method", "version", *(["name"] if part == "method" else [])}
    return [
        parameter(f"{part}.{name}" if part else name, info)
        for name, info in record.model_fields.items()
        if name not in hidden
        and not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel))
    ]


def shown(one: Parameter) -> dict[str, Any]:
    """Return a field as the Train page draws it; values shown as words are not in its help."""
    for value in one.words.values():
        one_clause = rf"[;,] {value} [^;,.]*"
        one = replace(one, help=re.sub(one_clause, "", one.help))
    return shown_field(one)


def typed(values: Values) -> Values:
    """Return the values of fields from texts typed into the Train page; empty means the default."""
    method = methods().get(str(values.get("method.name")), methods()["lora"])
    known = {
        one.path: one
        for part, record in (*PARTS.items(), ("method", method))
        for one in form_fields(record, part)
    }
    read: Values = {}
    for path, value in values.items():
        field, text = known.get(path), value.strip() if isinstance(value, str) else value
        if text in ("", None):
            continue
        if field is not None and field.lines:
            text = value
        if isinstance(text, str) and field is not None:
            words = field.words | {say(word): code for word, code in field.words.items()}
            if text in words:
                text = words[text]
            elif field.kind == "number" or (field.kind == "text" and field.default == "auto"):
                text = parse_assignment(f"value={text}")[1]
            elif field.kind == "open_choice" and text not in field.choices:
                text = [part.strip() for part in text.split(",") if part.strip()]
        read[path] = text
    return read


def _with_adapter_name(values: Values, home: Home) -> Values:
    """Return the values with the adapter to start from by its name, as the form offers it."""
    folder = Path(values.get("train.init_adapter", ""))
    if folder.is_absolute():
        with suppress(AdapterError):
            name = library.name_of(folder)
            if library.resolve(home, name) == folder:  # not another one of the same name
                return values | {"train.init_adapter": name}
    return values


def judged(spec: RunSpec, home: Home) -> dict[str, Any]:
    """Return what the Train page's form means: its differences, a line on model and data each.

    Where a setting of the loss is missing, or the method does not allow it, the differences alone,
    so that an address opens the form that it describes.
    """
    changed = _with_adapter_name(differences(spec), home)
    try:
        objectives.check(spec)
    except StudioError as why:
        return {**_told(why), "values": changed}
    seen = train_page_facts.looked_at(spec, home)
    lines: dict[str, Any] = {"warnings": []}
    for name, line in (
        ("model", lambda: train_page_facts.model_line(spec.model, home)),
        ("data", lambda: train_page_facts.data_note(seen, home)),
        ("warnings", lambda: list(train_page_facts.warnings(seen, home))),
    ):
        try:
            lines[name] = line()
        except StudioError as error:
            if name != "warnings":
                lines[name], lines[f"{name}_wrong"] = with_titles(error.text), True
    device = spec.train.device
    gpu = hardware.is_card(device) or (device in ("auto", "all") and len(hardware.devices()) > 1)
    kinds = [models.origin_of(spec.model.path).kind, *train_page_facts.model_traits(seen.model)]
    return {
        "values": changed, "set": assignments(spec),
        "command": command_line(spec), "yaml": minimal_yaml(spec),
        "sizes": train_page_facts.method_sizes(seen),
        "facts": {
            "device": ["gpu" if gpu else CPU, *["several"] * spec.train.may_use_several_processes],
            "model": kinds, "data": [origin_of(spec.data.path, home).kind],
        },
        **lines,
    }  # fmt: skip
