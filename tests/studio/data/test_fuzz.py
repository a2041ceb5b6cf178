"""Good files damaged at random, and any mapping on any rows: used, dropped or refused, never worse.

`FUZZ_EXAMPLES=5000 pytest tests/studio/data/test_fuzz.py tests/studio/data/test_malformed.py` looks
longer; what was found became a case of its own below or in `malformed.py`.
"""

import gzip
import io
import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from studio.data import mapping_preview
from studio.data.column_mapping import PARTS, Mapping
from studio.data.conversation_records import Conversation, Document, Problem, Row, content_hash
from studio.data.import_dataset import check_file, import_dataset
from studio.data.row_converters import converter, record_converter
from studio.data.template.choose_template import choose
from studio.data.xray import xray
from studio.errors import DataError, StudioError
from studio.home import open_home
from studio.spec import DataSource
from tests.studio.data.test_malformed import COLUMNS, VALUES

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ROWS = [
    {"question": f"What is {n}?", "answer": f'It is "{n}", né 🙂\n', "tags": [n, None]}
    for n in range(8)
]


def _good_files() -> dict[str, bytes]:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    csv = b"question,answer\r\n" + b'"a, b","c\nd"\r\n' * 5
    return {
        "a.jsonl": lines,
        "a.json": json.dumps(ROWS, indent=1).encode(),
        "b.json": json.dumps({"data": ROWS, "version": 1}).encode("utf-16"),
        "a.csv": csv,
        "a.tsv": csv.replace(b",", b"\t"),
        "a.parquet": table.getvalue(),
        "a.jsonl.gz": gzip.compress(lines),
        "a.txt": "Zwölf Boxkämpfer\njagen Viktor\n".encode("latin-1") * 4,
    }


GOOD = _good_files()
CUT = st.tuples(st.just("cut"), st.floats(0, 1), st.floats(0, 0.3))
TWICE = st.tuples(st.just("twice"), st.floats(0, 1), st.floats(0, 0.3))
PUT = st.tuples(st.just("put"), st.floats(0, 1), st.binary(min_size=1, max_size=12))


def damaged(data: bytes, harms: list) -> bytes:
    for kind, where, what in harms:
        at = int(where * len(data))
        if kind == "put":
            data = data[:at] + what + data[at + len(what) // 2 :]
        else:
            end = at + int(what * len(data))
            data = data[:at] + data[end:] if kind == "cut" else data[:end] + data[at:]
    return data


@FUZZ
@given(name=st.sampled_from(sorted(GOOD)), harms=st.lists(st.one_of(CUT, TWICE, PUT), max_size=4))
def test_a_damaged_file_is_read_or_refused(name, harms, tmp_path):
    path = tmp_path / name
    path.write_bytes(damaged(GOOD[name], harms))

    report = check_file(path)

    report.model_dump_json()
    assert report.ok == (report.error is None)
    assert report.rows.read == report.rows.kept + report.rows.dropped
    if report.ok:
        assert json.dumps(mapping_preview.columns(DataSource(path=str(path)))).isascii()


@st.composite
def mappings(draw: st.DrawFn) -> Mapping:
    form = draw(st.sampled_from(sorted(PARTS)))
    needed, optional = PARTS[form]
    values: dict = {"format": form, "columns": {}, "templates": {}, "constants": {}}
    for part in [*needed, *draw(st.lists(st.sampled_from([*optional, *needed])))]:
        kind = draw(st.sampled_from(["columns", "columns", "templates", "constants"]))
        text = draw(COLUMNS)
        values[kind][part] = {"templates": f"{{{text}}} and {{{{x}}}}"}.get(kind, text)
    values["roles"] = draw(
        st.dictionaries(st.sampled_from(["x", "bot"]), st.sampled_from(["user", "assistant"]))
    )
    return Mapping.model_validate(values).checked()


@FUZZ
@given(mapping=mappings(), rows=st.lists(st.dictionaries(COLUMNS, VALUES, max_size=5), max_size=6))
def test_any_mapping_makes_something_of_any_row(byte_backend, mapping, rows):
    convert = converter(mapping)
    made = [convert(Row(number, row)) for number, row in enumerate(rows)]
    assert all(isinstance(one, Conversation | Document | Problem) for one in made)
    as_records = record_converter(mapping)
    for number, row in enumerate(rows):
        found = as_records(Row(number, row))
        assert isinstance(found, Problem) or all(content_hash(one) for one in found)
    usable = [one for one in made if not isinstance(one, Problem)]
    template = choose(byte_backend(["</s>"], eos="</s>"), "auto")
    encoded = template.encode_batch(usable, "assistant")
    for index in range(len(usable)):
        one = encoded.row(index)
        assert isinstance(one, Problem) or len(one.ids) == len(one.trained)
        assert encoded.teaches[index] == (not isinstance(one, Problem) and one.trained[1:].any())


@FUZZ
@given(rows=st.lists(st.dictionaries(COLUMNS, VALUES, max_size=5), min_size=1, max_size=6))
def test_what_is_imported_is_what_was_read(byte_backend, rows):
    backend = byte_backend(["</s>"], eos="</s>")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        home, report = open_home(Path(folder) / "home"), check_file(file)
        assert report.rows.read == report.rows.kept + report.rows.dropped
        assert all(1 <= problem.line <= len(rows) for problem in report.problems)
        try:
            made = import_dataset(home, DataSource(path=str(file))).snapshot
        except DataError as error:
            assert report.error is not None and report.error.text == error.text
            return
        assert report.ok and made.meta.findings.rows == report.rows
        assert len(made.page(0, 100)) == made.meta.rows == sum(1 for _ in made.rows())
        try:
            shown = xray(DataSource(path=made.meta.name), backend, context_length=64, home=home)
        except StudioError as error:
            assert error.text
        else:
            assert all(one.problem or one.tokens for one in shown)
