"""Write a run as text: what differs from the defaults, and the command that launches it.

Computed once from the spec; forms, addresses, files and reports are only ways to show it.
"""

import json
import shlex
from functools import cache
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from studio.errors import SpecError
from studio.fields import Record, parse_assignment
from studio.methods import methods, named
from studio.spec import DataSource, ModelSource, RunSpec
from studio.train_args import TrainArgs


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
    rest = differences(spec)
    words = ["studio", "train", "--model", spec.model.path, "--data", spec.data.path]
    words += ["--method", spec.method.name]
    if spec.name:
        words += ["--name", spec.name]
    for path in ("model.path", "data.path", "method.name", "name"):
        rest.pop(path, None)
    for path, value in rest.items():
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
