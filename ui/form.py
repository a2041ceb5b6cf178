"""Forms made from fields: a pydantic model's fields become components, and values go back.

Title, help, unit, bounds, choices and "advanced" are read from the field, where they are written
once; a new method's form therefore needs no line here. Values come back as plain dictionaries and
are judged by `RunSpec.parse`, never by a component, so that the page and the command line say the
same sentence. It knows fields and components, not pages.
"""

import html
import json
import re
from collections.abc import Sequence
from typing import Any, cast

from pydantic import BaseModel

from studio.errors import SpecError
from studio.fields import Parameter, parameter, parse_assignment
from studio.methods import methods
from studio.spec import DataSource, ModelSource, RunSpec, TrainArgs

Choices = list[tuple[str, str]]
DEFAULT_METHOD = RunSpec().method.name
PARTS: dict[str, type[BaseModel]] = {"model": ModelSource, "data": DataSource, "train": TrainArgs}


METHOD = Parameter(
    path="method.name", title="Method", help="How the model is adapted.", kind="choice", type=str,
    default=DEFAULT_METHOD, required=False, bounds={}, choices=tuple(methods()),
)  # fmt: skip


def bare(value: str, **options: Any) -> Any:
    """Return an HTML block of gradio without styles and inset of its own."""
    import gradio as gr

    return gr.HTML(value, apply_default_css=False, padding=False, **options)


def element(tag: str, values: dict[str, Any] | None = None) -> str:
    """Return one of our custom elements; its data is one escaped attribute."""
    data = f' data-value="{html.escape(json.dumps(values))}"' if values is not None else ""
    return f"<{tag}{data}></{tag}>"


def heading(words: str, level: int = 2) -> Any:
    """Return a heading."""
    return bare(f"<h{level}>{html.escape(words)}</h{level}>")


def elem_id(path: str) -> str:
    """Return the DOM id of a field: `field-method-lora-r` for `method:lora.r`."""
    return "field-" + path.replace(".", "-").replace(":", "-")


def form_fields(record: type[BaseModel], prefix: str) -> list[Parameter]:
    """Return the fields of a record in its order, without nested records."""
    hidden = {"method", "version", *(["name"] if prefix.startswith("method:") else [])}
    return [
        parameter(f"{prefix}{name}", info)
        for name, info in record.model_fields.items()
        if name not in hidden
        and not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel))
    ]


def _shown(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value)
    return "" if value is None else value


# A field's path in a sentence; not where it stands in an assignment or in quotes.
_PATH = re.compile(r"""(?<![\w.="'`-])(?:model|data|train|method)\.\w+(?![\w="'`]|\.\w)""")


class Form:
    """Components by field, in the order they were added, and the way back to plain values."""

    def __init__(self) -> None:
        self.fields: dict[str, Parameter] = {}
        self.components: dict[str, Any] = {}

    def add(self, field: Parameter, choices: Choices | None = None) -> Any:
        """Create the component of a field inside the open gradio block.

        Args:
            field: The field.
            choices: Labels and values to choose from, instead of the field's own.
        """
        self.fields[field.path] = field
        self.components[field.path] = component = _component(field, choices)
        return component

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return plain nested values for `RunSpec.parse`; blank means default.

        Args:
            values: One per component, in the order they were added.
        """
        given = dict(zip(self.components, values, strict=True))
        method = str(given.get("method.name") or DEFAULT_METHOD)
        spec: dict[str, Any] = {"method": {"name": method}}
        for path, value in given.items():
            part, _, field = path.rpartition(".")
            if value in (None, "", []) or path == "method.name":
                continue
            if part.startswith("method:"):
                if part != f"method:{method}":
                    continue
                part = "method"
            target = spec.setdefault(part, {}) if part else spec
            target[field] = _read(self.fields[path], value)
        return spec

    def wrong(self, values: Sequence[Any], error: SpecError) -> dict[str, str]:
        """Return a mistake as the form shows it: with the labels of its fields, and its field.

        Args:
            values: One per component, in the order they were added.
            error: What is wrong with them.
        """
        method, said = self.read(values)["method"]["name"], set[str]()

        def own(path: str) -> str:
            return path.replace("method.", f"method:{method}.", 1)

        def named(found: re.Match[str]) -> str:
            path = found[0]
            field = self.fields.get(own(path)) or self.fields.get(path)
            if field is None or path in said:
                return path
            said.add(path)
            return f"{field.title.split(' (')[0]} ({path})"

        return {"error": _PATH.sub(named, error.text), "field": elem_id(own(error.field))}

    def write(self, spec: RunSpec) -> list[Any]:
        """Return one value per component that shows `spec`; other methods show their defaults."""
        plain = spec.model_dump(mode="json")
        shown = []
        for path, field in self.fields.items():
            part, _, name = path.rpartition(".")
            owner = plain.get(part, {}) if part else plain
            if part.startswith("method:"):
                owner = plain["method"] if part == f"method:{spec.method.name}" else {}
            value = _shown(owner[name] if name in owner else field.default)
            shown.append(value.split(",") if field.kind == "several" else value)
        return shown


def _read(field: Parameter, value: Any) -> Any:
    if field.kind == "open_choice":
        text = ", ".join(value) if isinstance(value, list | tuple) else str(value).strip()
        if text in field.choices:
            return text
        return [part.strip() for part in text.split(",") if part.strip()]
    if field.kind == "several" and not isinstance(value, str):
        return ",".join(value)
    if field.kind == "text" and field.default == "auto" and isinstance(value, str):
        return parse_assignment(f"value={value.strip()}")[1]
    return value.strip() if isinstance(value, str) else value


def _component(field: Parameter, choices: Choices | None) -> Any:
    import gradio as gr

    value, closed = _shown(field.default), field.kind == "choice"
    common: dict[str, Any] = {
        "label": f"{field.title} ({field.unit})" if field.unit else field.title,
        "info": field.help or None,
        "elem_id": elem_id(field.path),
        "min_width": 120 if closed or choices is None else 240,
    }
    if field.kind == "switch":
        return gr.Checkbox(value, **common)
    if field.kind == "number":
        return gr.Number(value, step=cast(float, field.step or "any"), **common)
    several = field.kind == "several"
    if several or closed or choices or field.choices:
        return gr.Dropdown(
            choices or list(field.choices or (value,)), value=[value] if several else value,
            multiselect=several, filterable=not closed, allow_custom_value=not closed, **common,
        )  # fmt: skip
    return gr.Textbox(value, max_lines=1, **common)
