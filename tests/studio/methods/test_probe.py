"""The capability table is what a probe finds, and every method says what a person must know."""

import json

import pytest

from studio.backbone import probe
from studio.methods import methods


def test_the_table_is_what_the_probe_finds():
    assert json.loads(probe.CAPABILITIES.read_text()) == probe.table()


@pytest.mark.parametrize("name", methods())
def test_every_method_has_a_manual(name):
    cls = methods()[name]
    assert all(part in cls.manual() for part in ("When to use it:", "Cost:", "Source: ", "arXiv:"))
    assert cls.paper.startswith("arXiv:") and cls.title
    for field, info in cls.model_fields.items():
        assert field == "name" or info.description, f"{name}.{field} has no help"
