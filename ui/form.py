"""Forms made from fields: a pydantic model's fields become components, and values go back.

Title, help, unit, bounds, choices and "advanced" are read from the field, where they are written
once; a new method's form therefore needs no line here. Values come back as plain dictionaries and
are judged by `RunSpec.parse`, never by a component, so that the page and the command line say the
same sentence. It knows fields and components, not pages.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from studio.errors import SpecError
from studio.fields import parse_assignment
from studio.methods import methods
from studio.spec import DataSource, ModelSource, RunSpec, TrainArgs

Kind = Literal["switch", "choice", "number", "text", "open_choice", "several"]
PARTS: dict[str, type[BaseModel]] = {"model": ModelSource, "data": DataSource, "train": TrainArgs}


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """One field as the form shows it; `path` is dotted, as in `--set`."""

    path: str
    title: str
    help: str
    unit: str
    advanced: bool
    kind: Kind
    default: Any
    heading: str = ""
    choices: tuple[str, ...] = ()
    step: float | None = None

    @property
    def elem_id(self) -> str:
        """The DOM id, so that an error can point at its field."""
        return elem_id(self.path)


def elem_id(path: str) -> str:
    """Turn `method:lora.r` into `field-method-lora-r`."""
    return "field-" + path.replace(".", "-").replace(":", "-")


def knobs(cls: type[BaseModel], prefix: str) -> list[Knob]:
    """Return the knobs of a record in its own order; nested records are left to their own form."""
    return [
        _knob(f"{prefix}{name}", name, info)
        for name, info in cls.model_fields.items()
        if not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel))
        and name not in {"method", "version"}
        and not (prefix.startswith("method:") and name == "name")
    ]


def _knob(path: str, name: str, info: FieldInfo) -> Knob:
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    kind, choices = ("several", ()) if extra.get("several") else _kind(info.annotation)
    return Knob(
        path=path,
        title=info.title or name.replace("_", " ").capitalize(),
        help=info.description or "",
        unit=str(extra.get("unit") or ""),
        advanced=bool(extra.get("advanced")),
        heading=advanced if isinstance(advanced := extra.get("advanced"), str) else "",
        kind=kind,
        choices=choices,
        default=_shown(info.get_default(call_default_factory=True)),
        step=float(str(extra["step"])) if extra.get("step") else None,
    )


def _kind(annotation: Any) -> tuple[Kind, tuple[str, ...]]:
    if annotation is bool:
        return "switch", ()
    if annotation in (int, float):
        return "number", ()
    if get_origin(annotation) is Literal:
        return "choice", tuple(str(value) for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        words = [str(v) for p in parts if get_origin(p) is Literal for v in get_args(p)]
        if len(parts) == 1:
            return _kind(parts[0])
        if words and (len(words) > 1 or any(get_origin(part) is tuple for part in parts)):
            return "open_choice", tuple(words)
    return "text", ()


def _shown(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value)
    return "" if value is None else value


# A field's path in a sentence; not where it stands in an assignment or in quotes.
_PATH = re.compile(r"""(?<![\w.="'`-])(?:model|data|train|method)\.\w+(?![\w="'`]|\.\w)""")


class Form:
    """Components by field, in the order they were added, and the way back to plain values."""

    def __init__(self) -> None:
        self.knobs: dict[str, Knob] = {}
        self.components: dict[str, Any] = {}

    def add(self, knob: Knob, component: Any = None) -> Any:
        """Create the component of a knob (or take the one given) inside the open gradio block."""
        self.knobs[knob.path] = knob
        self.components[knob.path] = component if component is not None else _component(knob)
        return self.components[knob.path]

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return plain nested values for `RunSpec.parse`; blank means default.

        Args:
            values: One per component, in the order they were added.
        """
        given = dict(zip(self.components, values, strict=True))
        method = str(given.get("method.name") or "lora")
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
            target[field] = _read(self.knobs[path], value)
        return spec

    def wrong(self, values: Sequence[Any], error: SpecError) -> dict[str, str]:
        """Return a mistake as the form tells it: with its fields' labels, and where to look.

        Args:
            values: One per component, in the order they were added.
            error: What is wrong with them.
        """
        method, said = self.read(values)["method"]["name"], set[str]()

        def own(path: str) -> str:
            return path.replace("method.", f"method:{method}.", 1)

        def named(found: re.Match[str]) -> str:
            path = found[0]
            knob = self.knobs.get(own(path)) or self.knobs.get(path)
            if knob is None or path in said:
                return path
            said.add(path)
            return f"{knob.title.split(' (')[0]} ({path})"

        return {"error": _PATH.sub(named, error.text), "field": elem_id(own(error.field))}

    def write(self, spec: RunSpec) -> list[Any]:
        """Return one value per component that shows `spec`; other methods show their defaults."""
        plain = spec.model_dump(mode="json")
        shown = []
        for path, knob in self.knobs.items():
            part, _, field = path.rpartition(".")
            owner = plain.get(part, {}) if part else plain
            if part.startswith("method:"):
                owner = plain["method"] if part == f"method:{spec.method.name}" else {}
            value = _shown(owner[field]) if field in owner else knob.default
            shown.append(value.split(",") if knob.kind == "several" else value)
        return shown


def _read(knob: Knob, value: Any) -> Any:
    if knob.kind == "open_choice":
        text = ", ".join(value) if isinstance(value, list | tuple) else str(value).strip()
        if text in knob.choices:
            return text
        return [part.strip() for part in text.split(",") if part.strip()]
    if knob.kind == "several" and not isinstance(value, str):
        return ",".join(value)
    if knob.kind == "text" and knob.default == "auto" and isinstance(value, str):
        return parse_assignment(f"value={value.strip()}")[1]
    return value.strip() if isinstance(value, str) else value


def _component(knob: Knob) -> Any:
    import gradio as gr

    label = f"{knob.title} ({knob.unit})" if knob.unit else knob.title
    common = {"label": label, "value": knob.default, "elem_id": knob.elem_id, "min_width": 120}
    info = knob.help or None
    if knob.kind == "switch":
        return gr.Checkbox(info=info, **common)
    if knob.kind == "choice":
        return gr.Dropdown(list(knob.choices), info=info, filterable=False, **common)
    if knob.kind == "several":
        common["value"] = [knob.default]
        return gr.Dropdown([knob.default], info=info, multiselect=True, allow_custom_value=True,
                           **common)  # fmt: skip
    if knob.kind == "open_choice":
        return gr.Dropdown(list(knob.choices), info=info, allow_custom_value=True, **common)
    if knob.kind == "number":
        return gr.Number(info=info, step=cast(float, knob.step or "any"), **common)
    return gr.Textbox(info=info, max_lines=1, **common)


def method_choices() -> list[tuple[str, str]]:
    """Return (title, name) of every registered method."""
    return [(method.title, name) for name, method in methods().items()]
