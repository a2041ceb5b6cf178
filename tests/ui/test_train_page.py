"""The Train page's form and the spec say the same, for every registered method."""

import json
import math

import pytest

from jobs.sweeps import parse_values
from studio.data.import_dataset import import_dataset
from studio.errors import SpecError
from studio.fields import parse_assignment
from studio.methods import methods
from studio.spec import DataSource, RunSpec
from tests.jobs.conftest import begin
from tests.ui.conftest import client_of, put_adapter
from ui.language import with_titles
from ui.train_page import PARTS, form_fields, train_routes, typed


@pytest.fixture
def client(home, store):
    return client_of(train_routes(home, store))


def judge(client, **asked):
    return client.post("/api/train/judge", json=asked).json()


def spec_of(values) -> RunSpec:
    return RunSpec().with_values(typed(values))


def test_a_text_of_several_lines_survives_the_form():
    words = " Be brief.\n\nAnswer in one line. \n"
    asked = {"method.name": "prompt_tuning", "method.prompt_tuning_init_text": words}
    assert typed(asked | {"name": " mine "}) == asked | {"name": "mine"}
    assert typed({"train.reward_json_schema": " \n"}) == {}


def test_an_address_may_name_a_preset(client):
    values = judge(client, address="?preset=low+memory&set=method.r%3D4")["values"]
    assert (values["method.r"], values["train.optim"]) == (4, "adafactor")
    assert judge(client, address="")["values"] == {}
    assert "no preset" in judge(client, address="?preset=large")["error"]["text"]


def test_an_address_with_a_wrong_field_keeps_the_others(client):
    asked = "?set=train.max_step=50&set=method.r=8&set=train.learning_rate=.nan&set=name"
    found = judge(client, address=asked)
    assert "set" not in found and found["error"]["text"]
    given = {"train.max_step": 50, "method.r": 8, "train.learning_rate": None}
    assert found["values"] == given


@pytest.mark.parametrize("name", list(methods()))
def test_every_field_of_a_method_is_drawn_with_its_help_and_survives_the_form(client, name):
    (method,) = [
        one
        for one in client.post("/api/train/form", json={}).json()["methods"]
        if one["name"] == name
    ]
    shown = {one["name"].removeprefix("method."): one for one in method["fields"]}
    assert shown.keys() == set(methods()[name].model_fields) - {"name"}
    assert all(one["help"] for one in shown.values())
    changed = {"method.name": name}
    for field, one in shown.items():
        value = not one["default"] if one["type"] == "switch" else None
        if one["type"] == "choice":
            value = one["choices"][-1][0]
        if value is None:
            continue
        try:
            spec_of(changed | {f"method.{field}": value})
        except SpecError:
            continue  # the method itself forbids this combination
        changed[f"method.{field}"] = value
    spec = spec_of(changed)
    found = judge(client, values=changed)
    assert RunSpec().with_values(dict(map(parse_assignment, found["set"]))) == spec
    assert (
        judge(client, address="&".join(f"set={one}" for one in found["set"]))["set"] == found["set"]
    )


@pytest.mark.parametrize(
    ("path", "text", "meant"),
    [
        ("train.learning_rate", "", "auto"), ("train.learning_rate", "1e-4", 1e-4),
        ("train.learning_rate", " 0,001 ", 0.001), ("train.max_steps", "", -1),
        ("train.eval_steps", "never", -1), ("train.save_steps", "only on stop", -1),
        ("train.max_grad_norm", "off", 0.0), ("train.max_steps", "5", 5),
        ("method.target_modules", "q_proj, v_proj", ("q_proj", "v_proj")),
        ("method.target_modules", "attention", "attention"), ("train.packing", False, False),
        ("train.device", "cuda:2,cuda:0", "cuda:2,cuda:0"), ("name", "1e5", "1e5"),
    ],
)  # fmt: skip
def test_what_is_typed_is_read_and_an_empty_field_is_the_default(path, text, meant):
    part, _, field = path.rpartition(".")
    spec = spec_of({path: text})
    assert getattr(getattr(spec, part) if part else spec, field) == meant


def test_a_code_is_never_shown_as_one():
    for part, record in (*PARTS.items(), *(("method", one) for one in methods().values())):
        for one in form_fields(record, part):
            if isinstance(one.default, int | float) and one.default < 0:
                assert one.default in one.words.values(), f"{one.path} shows {one.default}"
    assert RunSpec().train.max_steps in {-1}
    epochs = next(one for one in form_fields(PARTS["train"], "train") if one.title == "Epochs")
    assert {"", "-1", "auto"} <= {*epochs.when["max_steps"]}  # each derives the steps from them


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"train.per_device_train_batch_size": "0"}, "train.per_device_train_batch_size",
         "“Batch size” is 0"),
        ({"train.max_steps": "0"}, "train.max_steps", "“Steps” is 0, which trains nothing"),
        ({"method.r": "many"}, "method.r", "“Rank” is 'many'"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_the_title_of_its_field(client, values, field, words):
    error = judge(client, values=values)["error"]
    assert error["field"] == field and words in error["text"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Lower method.r; method.r is 9.", "Lower “Rank”; “Rank” is 9."),
        ('"train.max_step" is not a field.', '"train.max_step" is not a field.'),
        ("Take model.quantization=none.", "Take “Quantization” = none."),
        ("Read /a/data.path or data.jsonl.", "Read /a/data.path or data.jsonl."),
        ("rows are kept (data.thoughts).", "rows are kept (“Cut thoughts”)."),
    ],
)
def test_sentences_of_pages_name_fields_by_their_titles(text, told):
    assert with_titles(text) == told


def test_settings_that_are_valid_and_rarely_meant_are_remarked_on(client):
    said = judge(client, values={"train.learning_rate": "1e9"})["warnings"]
    assert len(said) == 1 and "learning rate 1e9 is" in said[0] and "LoRA" in said[0]
    assert judge(client, values={"train.learning_rate": "0.001"})["warnings"] == []


def test_sizes_are_those_of_each_method_on_the_model(client):
    sizes = judge(client)["sizes"]
    assert sizes["lora"] == {"parameters": 233472, "bytes": 933888}
    assert sizes["bitfit"]["parameters"] == 0, "the starter has no biases"
    assert sizes.keys() == methods().keys()
    assert judge(client, values={"model.path": "someone/model"})["sizes"] == {}


def test_the_first_rows_and_what_the_context_cuts_follow_the_form(client, home, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "word " * 5, "completion": "answer " * n} for n in (2, 3, 4, *[40] * 6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = import_dataset(home, DataSource(path=str(file)), name="some").snapshot.meta.name
    asked = {"set": [f"data.path={name}", "data.max_length=32"]}
    shown = client.post("/api/train/rows", json=asked).json()["rows"]
    assert [row["row"] for row in shown] == [1, 2, 3]
    assert {token["state"] for token in shown[0]["tokens"]} == {"trained", "masked"}
    found = client.post("/api/train/estimate", json=asked).json()
    assert found["cut"] | {"longest": 0, "context": 0} == {
        "rows": 6, "of": 9, "limit": 32, "start": 0, "longest": 0, "context": 0,
    }  # fmt: skip
    steps = math.ceil(found["rows"] * 3 / min(8, found["rows"]))
    assert found["auto"]["train.max_steps"] == f"{steps} steps"
    missing = client.post("/api/train/rows", json={"set": ["data.path=/no/rows.csv"]}).json()
    assert "no file or folder /no/rows.csv" in missing["unknown"]


def test_the_first_pairs_have_both_their_answers(client, tmp_path):
    file = tmp_path / "pairs.jsonl"
    pair = {"prompt": "a?", "chosen": "yes", "rejected": "no"}
    file.write_text("".join(json.dumps(pair) + "\n" for _ in range(9)))
    asked = {"set": [f"data.path={file}", "train.loss=dpo"]}
    shown = client.post("/api/train/rows", json=asked).json()["rows"]
    assert [(row["row"], row["side"]) for row in shown] == [
        (1, "chosen"), (1, "rejected"), (2, "chosen"), (2, "rejected"),
    ]  # fmt: skip


def test_a_sweep_may_name_settings_as_the_page_does():
    assert parse_values("Learning rate = 1e-3, 0.01") == ("train.learning_rate", [1e-3, 0.01])
    assert parse_values("Rank=4,8") == ("method.r", [4, 8])
    assert parse_values("seed=0,1") == ("seed", [0, 1])


def test_the_time_is_corrected_by_the_last_run_of_this_method_on_this_model(client, store):
    def seconds(**values):
        found = client.post("/api/train/estimate", json={"set": ["train.max_steps=20"]}).json()
        assert found["epochs"] == "0.526"
        return found["seconds"], found["like"]

    before, like = seconds()
    assert like is None
    store.submit(RunSpec().with_values({"name": "slow", "train.max_steps": 20}))
    claim = begin(store)
    store.claims.finish(claim, "succeeded", result={"seconds": 3 * before})
    after, like = seconds()
    assert like == "slow" and after == pytest.approx(3 * before, rel=0.05)


def test_a_form_of_a_run_names_the_adapter_that_it_starts_from(client, home):
    folder = put_adapter(home.run(3) / "adapter", "pirate")
    told = judge(client, values={"train.init_adapter": str(folder)})
    assert told["values"]["train.init_adapter"] == "pirate"
    to_come = str(home.run(4) / "adapter")
    told = judge(client, values={"train.init_adapter": to_come})
    assert told["values"]["train.init_adapter"] == to_come
