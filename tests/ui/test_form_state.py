"""The command line, the YAML and the address that the page shows mean the very same spec."""

import shlex
from urllib.parse import parse_qs

import pytest
import yaml

from studio.errors import SpecError
from studio.fields import parse_assignment
from studio.methods import methods
from studio.spec import RunSpec
from studio.spec_text import command_line
from ui import form_state

SPECS = [
    RunSpec(),
    *(RunSpec(method=method()) for method in methods().values()),
    RunSpec.parse(
        {
            "name": "it's a 'name' with $HOME, 1e-4 & ünïcode",
            "model": {"path": "/models/a folder"},
            "data": {"path": "~/rows.jsonl", "split": "1e-4"},
            "method": {"name": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]},
            "train": {"learning_rate": 3e-5, "max_steps": 9, "packing": False},
        }
    ),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_command_line_the_yaml_and_the_address_mean_the_same(spec):
    words = shlex.split(command_line(spec))
    assert words[:2] == ["studio", "train"]
    pairs = list(zip(words[2::2], words[3::2], strict=True))
    named = {"--model": "model.path", "--data": "data.path", "--method": "method.name",
             "--name": "name"}  # fmt: skip
    given = {named[flag]: value for flag, value in pairs if flag in named}
    given |= dict(parse_assignment(value) for flag, value in pairs if flag == "--set")
    assert RunSpec().with_values(given) == spec
    assert RunSpec.parse(yaml.safe_load(form_state.minimal_yaml(spec))) == spec
    assert form_state.from_query(parse_qs(form_state.query(spec)).get("set", [])) == spec


def test_an_address_may_name_a_preset_and_the_default_needs_no_words(home):
    assert form_state.query(RunSpec()) == ""
    assert command_line(RunSpec()) == (
        "studio train --model starter --data starter:pirate --method lora"
    )
    spec = form_state.from_address(home, "?preset=low+memory&set=method.r%3D4")
    assert (spec.method.r, spec.train.optim) == (4, "adafactor")
    assert form_state.from_address(home, "") == RunSpec()
    with pytest.raises(SpecError, match="no preset"):
        form_state.from_address(home, "?preset=large")
