"""The X-ray shows what the loop gets, token by token."""

import pytest

from studio.data.model_tokenizer import backend_from_folder
from studio.data.prepare_run_data import prepare
from studio.data.xray import xray
from studio.errors import DataError
from studio.spec import DataSource
from tests.studio.data.conftest import assert_same, write_rows


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
    assert_same(shown, made.train[:12])


@pytest.mark.parametrize(
    "model", ["models/stories260k", "models/tarot-gpt2", "tokenizers/minimind"]
)
def test_the_texts_of_the_tokens_make_the_text(real, model, tmp_path):
    answer = "Größe 🙂🙃 日本語\n    def f():\n" * 6
    path = write_rows(tmp_path / "a.jsonl", [{"question": "Wie?", "answer": answer}])

    row = xray(DataSource(path=path), backend_from_folder(real / model),
               context_length=4096)[0]  # fmt: skip

    assert "".join(token.text for token in row.tokens) == row.text
    assert answer in row.text


def test_rows_are_found_by_number_length_or_chance(tmp_path, byte_backend):
    backend = byte_backend(["</s>"], eos="</s>")
    made = [{"question": "q", "answer": "a" * length} for length in (3, 9, 1, 7)]
    source = DataSource(path=write_rows(tmp_path / "a.jsonl", made))

    def rows(**kwargs):
        return [x.row for x in xray(source, backend, context_length=64, **kwargs)]

    assert rows(pick="longest", count=2) == [2, 4]
    assert rows(pick="shortest", count=1) == [3]
    assert rows(rows=[4, 1]) == [4, 1]
    assert rows(pick="random", count=2, seed=3) == rows(pick="random", count=2, seed=3)
    with pytest.raises(DataError, match="no row 9"):
        rows(rows=[9])


def test_a_dropped_row_says_why_and_a_cut_row_what_was_cut(tmp_path, byte_backend):
    answers = [{"question": "q", "answer": text} for text in ("abcdefghijklmnop", "")]
    path = write_rows(tmp_path / "a.jsonl", answers)

    cut, dropped = xray(DataSource(path=path), byte_backend(["</s>"], eos="</s>"),
                        context_length=8)  # fmt: skip

    assert dropped.problem == '"answer" is empty.'
    # "q", a line end, sixteen letters and the end token are 19 tokens; 8 stay, 2 of them masked.
    assert (cut.num_tokens, cut.num_trained, cut.num_truncated) == (19, 6, 11)
    assert cut.tokens[-1].special and cut.tokens[-1].state == "truncated"
