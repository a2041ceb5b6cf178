"""Forms and the spec say the same, for every registered method, with no list to keep."""

from typing import Any

import gradio as gr
import pytest

from studio.errors import SpecError
from studio.methods import methods
from studio.spec import RunSpec
from ui.form import METHOD, PARTS, Form, form_fields


@pytest.fixture(scope="module")
def form():
    """The whole form of the Train page."""
    whole = Form()
    with gr.Blocks(analytics_enabled=False):
        whole.add(METHOD)
        for name, cls in PARTS.items():
            for field in form_fields(cls, f"{name}."):
                whole.add(field)
        for field in form_fields(RunSpec, ""):
            whole.add(field)
        for name, method in methods().items():
            for field in form_fields(method, f"method:{name}."):
                whole.add(field)
    return whole


def round_trip(form: Form, spec: RunSpec) -> RunSpec:
    return RunSpec.parse(form.read(form.write(spec)))


@pytest.mark.parametrize("name", list(methods()))
def test_every_field_of_a_method_has_a_component_with_title_and_help(form, name):
    fields = set(methods()[name].model_fields) - {"name"}
    shown = {path.removeprefix(f"method:{name}.") for path in form.fields
             if path.startswith(f"method:{name}.")}  # fmt: skip
    assert shown == fields
    assert all(form.fields[f"method:{name}.{field}"].help for field in fields)


@pytest.mark.parametrize("name", list(methods()))
def test_changed_choices_and_switches_survive_the_form(form, name):
    changed: dict[str, Any] = {}
    for path, shown in form.fields.items():
        if not path.startswith(f"method:{name}."):
            continue
        field = path.rpartition(".")[2]
        value: Any = None
        if shown.kind == "switch":
            value = not shown.default
        elif shown.kind == "choice":
            value = shown.choices[-1]
        else:
            continue
        try:
            RunSpec.parse({"method": {"name": name, **changed, field: value}})
        except SpecError:
            continue  # the method itself forbids this combination
        changed[field] = value
    spec = RunSpec.parse({"method": {"name": name, **changed}})
    assert round_trip(form, spec) == spec
    usual = RunSpec(method=methods()[name]())
    assert round_trip(form, usual) == usual


def test_values_of_every_kind_survive_the_form_and_a_blank_field_means_the_default(form):
    spec = RunSpec.parse(
        {
            "name": "a name",
            "seed": 7,
            "model": {"path": "/models/x", "quantization": "nf4"},
            "data": {"path": "rows.jsonl", "max_length": 64, "validation_fraction": 0.2},
            "method": {"name": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]},
            "train": {"learning_rate": 1e-3, "max_steps": 5, "packing": False},
        }
    )
    assert round_trip(form, spec) == spec
    blank: list[Any] = [None] * len(form.components)
    assert RunSpec.parse(form.read(blank)) == RunSpec()


def test_a_learning_rate_may_be_a_word_or_a_number(form):
    values = dict(zip(form.components, form.write(RunSpec()), strict=True))
    for typed, meant in (("auto", "auto"), ("1e-4", 1e-4), (" 0.003 ", 0.003)):
        values["train.learning_rate"] = typed
        assert RunSpec.parse(form.read(list(values.values()))).train.learning_rate == meant


def test_devices_picked_together_are_one_set(form):
    spec = RunSpec.parse({"train": {"device": "cuda:2,cuda:0"}})
    values = dict(zip(form.components, form.write(spec), strict=True))
    assert values["train.device"] == ["cuda:2", "cuda:0"]
    assert round_trip(form, spec) == spec
    values["train.device"] = []
    assert RunSpec.parse(form.read(list(values.values()))).train.device == "auto"


def test_a_wrong_value_names_its_field(form):
    values = dict(zip(form.components, form.write(RunSpec()), strict=True))
    values["train.per_device_train_batch_size"] = 0
    with pytest.raises(SpecError) as error:
        RunSpec.parse(form.read(list(values.values())))
    assert error.value.field == "train.per_device_train_batch_size"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train.max_steps is 0: wrong.", "Steps (train.max_steps) is 0: wrong."),
        ("method.r is 0.", "Rank (method.r) is 0."),
        ("Lower method.r; method.r is 9.", "Lower Rank (method.r); method.r is 9."),
        ('"train.max_step" is not a field.', '"train.max_step" is not a field.'),
        ("Take model.quantization=none.", "Take model.quantization=none."),
    ],
)
def test_a_mistake_is_told_with_the_label_of_its_field(form, text, told):
    said = form.wrong(form.write(RunSpec()), SpecError(text, field="method.r"))
    assert said == {"error": told, "field": "field-method-lora-r"}
