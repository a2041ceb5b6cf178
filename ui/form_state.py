"""Every form state is also a YAML file and an address: the same few differences.

It knows the spec, not the form.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlencode

import yaml

from studio.errors import SpecError
from studio.home import Home
from studio.presets import apply_preset
from studio.spec import RunSpec
from studio.spec_text import differences, read_assignment, written


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
    return [f"{path}={written(value)}" for path, value in differences(spec).items()]


def query(spec: RunSpec) -> str:
    """Return the address query that opens the form as it is: `set=method.r%3D32&…`."""
    return urlencode([("set", one) for one in assignments(spec)])


def from_query(assignments: Iterable[str]) -> RunSpec:
    """Read what `query` wrote.

    Raises:
        SpecError: An assignment names no field or a wrong value.
    """
    return RunSpec().with_values(dict(map(read_assignment, assignments)))


def as_given(address: str) -> dict[str, Any]:
    """Return the fields of an address with the values that it gives, wrong ones too."""
    found: dict[str, Any] = {}
    for text in parse_qs(address.lstrip("?")).get("set", []):
        with suppress(SpecError):
            found |= [read_assignment(text)]
    return found


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
