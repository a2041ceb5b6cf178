"""Plain values of a spec: read from YAML, and changed by assignments such as `method.r=16`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from studio.errors import SpecError


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping or raise a SpecError that names the place."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"There is no spec file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or "").lower() if isinstance(error, OSError) else "it is not text"
        why = "it is a folder" if path.is_dir() else why
        raise SpecError(f"The spec file {path} cannot be read: {why}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise SpecError(f"The spec file {path} is not valid YAML{where}.") from None
    if not isinstance(values, dict):
        raise SpecError(f"The spec file {path} must hold a mapping such as `method: {{r: 16}}`.")
    return values


def merge_values(values: dict[str, Any], assignments: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with dotted keys replaced; a new method name resets the method's fields."""
    merged = {key: dict(v) if isinstance(v, dict) else v for key, v in values.items()}
    for dotted, value in assignments.items():
        *path, last = dotted.split(".")
        target = merged
        for part in path:
            child = target.get(part)
            if isinstance(child, str) and part == "method":
                child = {"name": child}
            if child is not None and not isinstance(child, dict):
                raise SpecError(f'"{dotted}" is not a field: "{part}" has no parts.', field=dotted)
            target[part] = dict(child or {})
            target = target[part]
        if dotted == "method.name" and target.get("name") != value:
            target.clear()
        target[last] = value
    return merged


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `method.r=16` and read the value as YAML.

    Raises:
        SpecError: There is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SpecError(f'"{text}" is not an assignment: write it as method.r=16.')
    try:
        read = yaml.safe_load(value) if value else ""
        quoted = value.lstrip()[:1] in ("'", '"')
        return key.strip(), read if quoted else _number_or(read)
    except yaml.YAMLError:
        return key.strip(), value


def _number_or(value: Any) -> Any:
    # YAML 1.1 reads 1e-4 as text; a person means the number.
    if isinstance(value, str):
        try:
            return float(value) if value.lower() not in {"nan", "inf", "-inf"} else value
        except ValueError:
            return value
    return value
