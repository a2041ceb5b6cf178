"""The X-ray shows what the loop gets, token by token."""

import json

import pytest

from studio.data.model_tokenizer import backend_from_folder
from studio.data.prepare_run_data import prepare
from studio.data.xray import xray
from studio.errors import DataError
from studio.spec import DataSource


@pytest.mark.parametrize(
    ("model", "context", "name"),
    [
        ("models/stories260k", 128, "identity.json"),
        ("models/tarot-gpt2", 64, "openai_messages_math.jsonl"),
        ("tokenizers/minimind", 256, "glaive_toolcall_en_demo.json"),
        ("models/tarot-gpt2", 64, "tinyshakespeare.txt"),
    ],
)
def test_ids_and_labels_are_those_of_the_loop(real, home, model, context, name):
    backend = backend_from_folder(real / model)
    source = DataSource(path=str(real / "data" / name), validation_fraction=0)

    made = prepare(source, backend, context_length=context, seed=0, home=home)
    shown = xray(source, backend, context_length=context, count=12, home=home)

    assert len(shown) == 12
    for row, example in zip(shown, made.train, strict=False):
        kept = [t for t in row.tokens if t.state != "truncated"]
        assert [t.id for t in kept] == example.input_ids.tolist()
        labels = [t.id if t.state == "trained" else -100 for t in kept]
        assert labels == example.labels.tolist()


@pytest.mark.parametrize(
    "model", ["models/stories260k", "models/tarot-gpt2", "tokenizers/minimind"]
)
def test_the_texts_of_the_tokens_make_the_text(real, model, tmp_path):
    path = tmp_path / "a.jsonl"
    answer = "Größe 🙂🙃 日本語\n    def f():\n" * 6
    path.write_text(json.dumps({"question": "Wie?", "answer": answer}) + "\n")

    row = xray(DataSource(path=str(path)), backend_from_folder(real / model),
               context_length=4096)[0]  # fmt: skip

    assert "".join(token.text for token in row.tokens) == row.text
    assert answer in row.text


def test_rows_are_found_by_number_length_or_chance(tmp_path, byte_backend):
    backend = byte_backend(["</s>"], eos="</s>")
    path = tmp_path / "a.jsonl"
    lengths = [3, 9, 1, 7]
    path.write_text(
        "".join(json.dumps({"question": "q", "answer": "a" * n}) + "\n" for n in lengths)
    )
    source = DataSource(path=str(path))

    def rows(**kwargs):
        return [x.row for x in xray(source, backend, context_length=64, **kwargs)]

    assert rows(pick="longest", count=2) == [2, 4]
    assert rows(pick="shortest", count=1) == [3]
    assert rows(rows=[4, 1]) == [4, 1]
    assert rows(pick="random", count=2, seed=3) == rows(pick="random", count=2, seed=3)
    with pytest.raises(DataError, match="no row 9"):
        rows(rows=[9])


def test_a_dropped_row_says_why_and_a_cut_row_what_was_cut(tmp_path, byte_backend):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"question": "q", "answer": "abcdefghijklmnop"}\n{"question": "q", "answer": ""}\n'
    )

    cut, dropped = xray(DataSource(path=str(path)), byte_backend(["</s>"], eos="</s>"),
                        context_length=8)  # fmt: skip

    assert dropped.problem == '"answer" is empty.'
    # "q", a line end, sixteen letters and the end token are 19 tokens; 8 stay, 2 of them masked.
    assert (cut.num_tokens, cut.num_trained, cut.num_truncated) == (19, 6, 11)
    assert cut.tokens[-1].special and cut.tokens[-1].state == "truncated"
