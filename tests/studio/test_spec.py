"""The spec: what it accepts, what it says about mistakes, and that it survives every trip."""

import json
import shlex
from urllib.parse import parse_qs

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.errors import InputError, SpecError
from studio.fields import parse_assignment
from studio.methods import methods
from studio.spec import (
    RunSpec,
    address_query,
    command_line,
    minimal_yaml,
    read_assignment,
    read_assignments,
    written,
)


@pytest.mark.parametrize("method", sorted(methods()))
def test_a_spec_survives_yaml_and_json(method, tmp_path):
    spec = RunSpec.parse({"name": "née", "method": method, "train": {"max_steps": 7}})
    file = tmp_path / "spec.yaml"
    file.write_text(spec.to_yaml(), encoding="utf-8")

    assert RunSpec.from_yaml(file) == spec
    assert RunSpec.parse(json.loads(spec.model_dump_json())) == spec


@pytest.mark.parametrize(
    ("assignment", "field", "sentence"),
    [
        ("method.rr=3", "method.rr", '"method.rr" is not a field. Did you mean "r"?'),
        ("trian.max_steps=1", "trian", 'Did you mean "train"?'),
        ("method.r=0", "method.r", "method.r is 0: input should be greater than or equal to 1."),
        (
            "train.learning_rate=fast",
            "train.learning_rate",
            "train.learning_rate is 'fast': input should be a number or 'auto'.",
        ),
        (
            "method.target_modules=q_proj",
            "method.target_modules",
            "'all-linear', 'attention' or 'mlp' or a list such as [q_proj, v_proj].",
        ),
        ("seed=-1", "seed", "seed is -1"),
        ("version=2", "version", "version is 2"),
        ("seed.x=1", "seed.x", '"seed" has no parts'),
    ],
)
def test_a_wrong_field_is_named_with_the_value_and_the_way_out(assignment, field, sentence):
    with pytest.raises(SpecError) as caught:
        RunSpec().with_values(dict([parse_assignment(assignment)]))

    assert sentence in caught.value.text
    assert caught.value.field == field


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(InputError, match='Did you mean "lora"'):
        RunSpec.parse({"method": "lorra"})


@pytest.mark.parametrize("text", ["2024", "no", "null", "1e5", "a #1", "{3}"])
def test_a_setting_of_text_keeps_what_is_written(text):
    spec = RunSpec().with_values(dict([read_assignment(f"data.path={text}")]))
    assert spec.data.path == text
    assert dict(map(read_assignment, [f"data.path={written(text)}"])) == {"data.path": text}


def test_the_order_of_assignments_does_not_matter():
    one = RunSpec().with_values({"method.r": 4, "method.name": "loha"})
    assert one == RunSpec().with_values({"method.name": "loha", "method.r": 4})
    assert one.method.r == 4


def test_a_new_method_forgets_the_fields_of_the_old_one():
    spec = RunSpec().with_values({"method.r": 4}).with_values({"method.name": "bitfit"})

    assert spec.method.name == "bitfit"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1e-4", 1e-4), ("a=16", 16), ("a=true", True), ("a='16'", "16"), ("a=", ""),
        ("a=[q, v]", ["q", "v"]), ("a=nan", "nan"), ("a={", "{"), ("a=b=c", "b=c"),
        ("a=What is C #3?", "What is C #3?"), ("a=# hi", "# hi"), ("a=is this: a?", "is this: a?"),
        ("a=1:30", "1:30"), ("a=2024-06-01", "2024-06-01"), ("a=null", None), ("a=5 # x", 5),
    ],
)  # fmt: skip
def test_an_assignment_is_read_as_a_person_means_it(text, value):
    assert parse_assignment(text) == ("a", value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: [", "not valid YAML at line 1"),
        (b"- 1", "must hold a mapping"),
        (b"\xff", "cannot be read: it is not text."),
    ],
)
def test_a_broken_spec_file_is_one_sentence(tmp_path, content, sentence):
    file = tmp_path / "spec.yaml"
    file.write_bytes(content)

    with pytest.raises(SpecError, match=sentence):
        RunSpec.from_yaml(file)


def test_a_missing_spec_file_is_one_sentence(tmp_path):
    with pytest.raises(SpecError, match=r"cannot be read: it is a folder\."):
        RunSpec.from_yaml(tmp_path)
    with pytest.raises(SpecError, match="There is no spec file"):
        RunSpec.from_yaml(tmp_path / "none.yaml")


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
_PARTS = st.sampled_from(["name", "model", "data", "method", "train", "seed", "version", "other"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_PARTS, _PLAIN, max_size=4))
def test_any_plain_values_make_a_spec_or_a_sentence(values):
    try:
        spec = RunSpec.parse(values)
    except InputError as error:
        assert error.text
    else:
        assert RunSpec.parse(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        *(({"train": {"learning_rate": rate}}, f"train.learning_rate is {rate}: {wish}")
          for rate, wish in (
              (-1, "input should be greater than 0 or 'auto'."),
              (0.0, "input should be greater than 0 or 'auto'."),
              (float("inf"), "input should be a finite number or 'auto'."),
              (float("nan"), "input should be a finite number or 'auto'."),
          )),
        ({"method": {"name": "bottleneck", "scaling": float("inf")}},
         "method.scaling is inf: input should be a finite number."),
        ({"seed": 1e30}, "seed is 1e+30: input should be a whole number with fewer digits."),
        ({"seed": 1.5}, "seed is 1.5: input should be a whole number."),
        ({"model": 5}, "model is 5: input should be fields of its own, such as path."),
        ({"data": None}, "data is empty: input should be fields of its own, such as path."),
        ({"method": 5}, "method is 5: input should be fields of its own, such as name."),
        (
            {"train": {"packing": "maybe"}},
            "train.packing is 'maybe': input should be true or false.",
        ),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_in_plain_words(values, sentence):
    with pytest.raises(SpecError) as error:
        RunSpec.parse(values)
    assert error.value.text == sentence


def test_a_wrong_value_is_not_repeated_beyond_reason():
    with pytest.raises(SpecError) as error:
        RunSpec.parse({"name": "x" * 5000})
    assert len(error.value.text) < 200
    assert error.value.text.endswith(
        "… (5000 characters): input should be text of at most 120 characters."
    )


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
    assert RunSpec.parse(yaml.safe_load(minimal_yaml(spec))) == spec
    assert read_assignments(parse_qs(address_query(spec)).get("set", [])) == spec


def test_the_default_needs_no_words():
    assert address_query(RunSpec()) == ""
    assert command_line(RunSpec()) == (
        "studio train --model starter --data starter:pirate --method lora"
    )


def test_a_variant_that_is_a_setting_here_is_named():
    with pytest.raises(InputError, match="It is lora with method.use_dora=true here"):
        RunSpec.parse({"method": "DoRA"})
