"""What is rarely meant is said before a launch."""

import pytest

from studio.data.import_dataset import check_file
from studio.data.prepare_run_data import prepare
from studio.spec import DataSource
from tests.studio.data.conftest import write_rows


def pair(question, answer):
    return {"question": question, "answer": answer}


def warnings_of(path, backend, **options):
    source = DataSource(path=str(path), validation_fraction=0, **options)
    return prepare(source, backend, context_length=2048, seed=0).report.warnings


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([pair("q", "a")], "The dataset has one row only."),
        ([pair("same", "same"), pair("q", "a")], "The answer repeats the question in 1 row."),
        ([{"messages": [{"role": role, "content": "x"} for _ in range(600)
                        for role in ("user", "assistant")]}, {"messages": []}],
         "One conversation has 1,200 messages"),
        ([{"instruction": "Say hi", "input": ""}, {"instruction": "Say ho", "input": ""}],
         '"instruction" looks like a prompt, but no column holds an answer'),
    ],
)  # fmt: skip
def test_smells_of_rows_are_in_check_and_report(tmp_path, byte_backend, rows, words):
    path = write_rows(tmp_path / "a.jsonl", rows)
    backend = byte_backend(["<e>"], eos="<e>")

    assert any(words in warning for warning in check_file(path).warnings)
    assert any(words in warning for warning in warnings_of(path, backend))


def test_answers_of_one_token_and_rows_beyond_the_limit_are_counted(tmp_path, byte_backend):
    backend = byte_backend(["<e>"], eos="<e>")
    short = write_rows(tmp_path / "a.jsonl", [pair(f"question {i}", "y") for i in range(4)])
    long = write_rows(tmp_path / "b.jsonl", [pair("q", "y" * 99 + str(i)) for i in range(4)])

    assert "In 4 of 4 rows at most one token is trained beside the end." in warnings_of(
        short, backend
    )
    assert "Most rows (4 of 4) are longer than what is kept of a row." in warnings_of(
        long, backend, max_length=32
    )


def test_ordinary_rows_have_no_smell(tmp_path, byte_backend):
    path = write_rows(
        tmp_path / "a.jsonl", [pair(f"question {i}", f"answer {i}") for i in range(4)]
    )

    assert not warnings_of(path, byte_backend(["<e>"], eos="<e>"))
