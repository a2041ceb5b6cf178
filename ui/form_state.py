"""Every form state is also a command line, a YAML file and an address: the same few differences.

What differs from the defaults is computed once from the spec; the three texts are only ways to
write it. It knows the spec, not the form.
"""

import json
import shlex
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, urlencode

import yaml

from studio.errors import SpecError
from studio.fields import parse_assignment
from studio.home import Home
from studio.methods import named
from studio.presets import apply_preset
from studio.spec import RunSpec


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
        words += ["--set", f"{path}={_written(value)}"]
    return shlex.join(words)


def minimal_yaml(spec: RunSpec) -> str:
    """Return the shortest spec file that means the same."""
    nested: dict[str, Any] = {
        **({"name": spec.name} if spec.name else {}),
        "model": {"path": spec.model.path},
        "data": {"path": spec.data.path},
        "method": {"name": spec.method.name},
    }
    for path, value in differences(spec).items():
        part, _, field = path.rpartition(".")
        (nested.setdefault(part, {}) if part else nested)[field] = value
    return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)


def assignments(spec: RunSpec) -> list[str]:
    """Return what differs from the defaults, as `method.r=32`."""
    return [f"{path}={_written(value)}" for path, value in differences(spec).items()]


def query(spec: RunSpec) -> str:
    """Return the address query that opens the form as it is: `set=method.r%3D32&…`."""
    return urlencode([("set", one) for one in assignments(spec)])


def from_query(assignments: Iterable[str]) -> RunSpec:
    """Read what `query` wrote.

    Raises:
        SpecError: An assignment names no field or a wrong value.
    """
    return RunSpec().with_values(dict(parse_assignment(text) for text in assignments))


def from_address(home: Home, address: str) -> RunSpec:
    """Return the run that the query of a page's address describes: `preset=…`, `set=…`.

    Raises:
        SpecError: An assignment or preset is unknown or invalid.
    """
    given = parse_qs(address.lstrip("?"))
    spec = from_query(given.get("set", []))
    for name in given.get("preset", []):
        spec = apply_preset(home, name, spec)
    return spec


def _written(value: Any) -> str:
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
