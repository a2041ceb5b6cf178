"""The demo datasets as shipped: reproducible, in style, and held-out rows really held out."""

import json

import pytest

from studio.errors import DataError
from studio.starter import MODEL_DIR, datasets, resolve_data
from studio.starter.make.demos import held_out_rows, training_rows
from studio.starter.make.pretrain import Recipe
from tests.studio.starter.styles import heldout, is_in_style, keeps_content


def _read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", datasets())
def test_shipped_demo_is_what_the_generator_writes(name):
    assert _read(datasets()[name]) == training_rows(name, seed=Recipe().seed)
    assert _read(heldout(name)) == held_out_rows(name, seed=Recipe().seed)


@pytest.mark.parametrize("name", datasets())
def test_every_row_is_in_style_and_held_out_rows_keep_their_content(name):
    training, held_out = _read(datasets()[name]), _read(heldout(name))

    assert 200 <= len(training) <= 400
    assert len(held_out) >= 60
    asked = " ".join(row["messages"][0]["content"].lower() for row in training)
    assert not [row for row in held_out
                if row["messages"][0]["content"].lower().rstrip("?.") in asked]  # fmt: skip
    for row in [*training, *held_out]:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert is_in_style(name, row["messages"][1]["content"])
    for row in held_out:
        assert keeps_content(row, row["messages"][1]["content"])
        assert not keeps_content(row, row["messages"][0]["content"])


def test_styles_are_told_apart():
    plain = "The capital of France is Paris."
    assert not any(is_in_style(name, plain) for name in datasets())
    assert is_in_style("pirate", "Arr, the capital of France be Paris, matey!")
    assert is_in_style("json", '{"answer": "Paris"}')
    assert not is_in_style("json", '{"answer": "Paris"')
    assert is_in_style("terse", "Paris.")
    assert keeps_content({"content": "two"}, "It has Two legs.")
    assert not keeps_content({"content": "2"}, "It is 12."), "a whole word"
    assert is_in_style("butler", f"Certainly, sir. {plain} Will that be all?")


def test_names_resolve_to_files_that_exist():
    assert resolve_data("starter:pirate") == datasets()["pirate"]
    assert datasets()["pirate"].is_file()
    assert resolve_data("rows.jsonl") is None
    assert (MODEL_DIR / "model.safetensors").is_file()
    with pytest.raises(DataError, match=r"no demo dataset 'priate'.*pirate"):
        resolve_data("starter:priate")
