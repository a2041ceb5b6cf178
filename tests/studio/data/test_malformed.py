"""No file may crash, hang, execute or fill the memory: each comes out as the corpus says."""

import os
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from studio.data.import_dataset import check_file
from tests.studio.data.malformed import cases

CASES = cases()


def test_the_corpus_is_large_and_its_names_differ():
    assert len(CASES) >= 120
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_malformed_file_comes_out_as_expected(case, tmp_path):
    path = case.make(tmp_path)

    report = check_file(path)

    assert not os.path.exists("/tmp/adapter-studio-was-executed")
    report.model_dump_json()
    if case.extra.get("any"):
        return
    if not case.kept:
        assert not report.ok and report.error is not None, report
        assert case.refused in report.error.text, report.error.text
        assert "Traceback" not in report.error.text and len(report.error.text) < 2000
        return
    assert report.ok, report.error
    assert (report.rows.read, report.rows.kept) == (case.read, case.kept)
    assert report.rows.dropped == case.read - case.kept
    assert tuple((p.line, p.kind) for p in report.problems) == case.problems
    assert case.warned in " ".join(report.warnings)


FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ENDINGS = st.sampled_from(["jsonl", "json", "csv", "tsv", "txt", "md", "parquet", "jsonl.gz"])
PIECES = st.sampled_from(
    [b'{"question": "q", "answer": "a"}', b'{"messages": [{"role": "user", "content": "x"}]}',
     b"question,answer", b"q,a", b'"', b'""', b"\n", b"\r\n", b"\r", b"\x00", b"\xff\xfe", b"\xef",
     b"[", b"]", b"{", b"}", b",", b":", b"\\", b"\\ud800", b"NaN", b"1e999", b"PAR1", b"\x1f\x8b",
     b"\t", b";", b"|", b" ", b"null", b'"text": ', "é🙂\u2028\u202e".encode()]
)  # fmt: skip


@FUZZ
@given(ending=ENDINGS, pieces=st.lists(st.one_of(PIECES, st.binary(max_size=20)), max_size=40))
def test_any_bytes_are_read_or_refused(ending, pieces, tmp_path):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"".join(pieces))

    report = check_file(path)

    report.model_dump_json()
    assert report.ok == (report.error is None)
    assert report.rows.read == report.rows.kept + report.rows.dropped


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
KEYS = st.one_of(
    st.sampled_from(["role", "content", "from", "value", "messages", "tool_calls", "function",
                     "name", "arguments", "text", "question"]),
    st.text(string.printable, max_size=8),
)  # fmt: skip


def _around(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(LEAVES, st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=5))


VALUES = _around(_around(_around(LEAVES)))  # three deep: conversations with tool calls
COLUMNS = st.sampled_from(
    ["question", "answer", "messages", "conversations", "text", "label", "prompt", "completion",
     "instruction", "input", "output", "chosen", "rejected", "tools", "system", "history", "x.y"]
)  # fmt: skip
