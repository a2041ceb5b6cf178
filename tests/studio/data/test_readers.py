"""Every format is read strictly, and every fault is told with its line."""

import gzip
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from studio.data import mapping_preview
from studio.data.column_mapping import Mapping, as_text
from studio.data.conversation_records import Dropped, Row
from studio.data.curate_dataset import Filter, apply_step
from studio.data.find_dataset import find
from studio.data.import_dataset import check_file, import_dataset
from studio.data.readers import look, read
from studio.errors import DataError
from studio.spec import DataSource

ROWS = [{"question": "a, b", "answer": 'say "hi"\nthere'}, {"question": "c", "answer": "d"}]


def packed(data: bytes) -> bytes:
    """Pack with gzip, without the time, so that tests are called the same in every process."""
    return gzip.compress(data, mtime=0)


def values(path):
    return [item.values for item in read(look(path))]


def table_file(path, table):
    """Write a table as Parquet or Arrow, as the name says."""
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    return path


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8")
    return path


JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
COLUMNS = {key: [row[key] for row in ROWS] for key in ROWS[0]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.jsonl", JSONL.rstrip()),
        ("a.jsonl", JSONL.replace("\n", "\r\n")),
        ("a.jsonl", "\ufeff" + JSONL),
        ("a.jsonl", json.dumps(ROWS)),
        ("a.json", JSONL),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", json.dumps(COLUMNS)),
        ("a.json", json.dumps({"version": 1, "data": ROWS})),
        ("a.json", "\n".join(json.dumps(row, indent=1) for row in ROWS)),
        ("a.csv", 'question,answer\n"a, b","say ""hi""\nthere"\nc,d\n'),
        ("a.csv", 'question;answer\na, b;"say ""hi""\nthere"\nc;d\n'),
        ("a.tsv", 'question\tanswer\na, b\t"say ""hi""\nthere"\nc\td\n'),
        ("a.jsonl", JSONL.encode("utf-16")),
        ("a.jsonl", JSONL.encode("utf-16-le")),
        ("a.csv", 'question,answer\n"a, b","say ""hi""\nthere"\nc,d\n'.encode("utf-16-be")),
        ("a.jsonl.gz", packed(JSONL.encode())),
        ("a.jsonl.zst", pa.compress(JSONL.encode(), codec="zstd", asbytes=True)),
    ],
)
def test_the_same_rows_come_from_every_form(tmp_path, name, content):
    assert values(write(tmp_path / name, content)) == ROWS


def test_parquet_rows_keep_nested_values(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "é"}], "n": 1}, {"messages": [], "n": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")

    assert values(tmp_path / "a.parquet") == rows


@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "gsm8k_test.parquet", "alpaca_en_demo.json",
                                  "identity.json", "glaive_toolcall_en_demo.json",
                                  "openai_messages_math.jsonl", "tinyshakespeare.txt",
                                  "banking77_train.csv"])  # fmt: skip
def test_real_files_have_the_row_counts_of_their_readme(real, name):
    readme = (real / "README.md").read_text()
    line = next(line for line in readme.splitlines() if line.startswith(f"| `data/{name}`"))
    expected = int(line.split("|")[3].strip().replace(",", ""))

    items = list(read(look(real / "data" / name)))

    assert len(items) == expected and all(isinstance(item, Row) for item in items)


@pytest.mark.parametrize("rows", [1, 3, 20_000])
def test_a_json_array_on_one_line_names_the_column_in_the_file(tmp_path, rows):
    text = "[" + '{"question": "q"},' * rows + "]"

    with pytest.raises(DataError, match=f"line 1, column {len(text):,}: expecting value"):
        values(write(tmp_path / "a.json", text))


@pytest.mark.parametrize("declared", ["sep=;", '"sep=;"'])
def test_the_separator_that_a_spreadsheet_declares_is_no_row(tmp_path, declared):
    path = write(tmp_path / "a.csv", f"{declared}\r\nquestion;answer\r\na, b, c;d\r\n")

    assert values(path) == [{"question": "a, b, c", "answer": "d"}]


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("a.json", '{"data": [\n{"q": 1},\n{"q": 2}\n]}', 2),
        ("a.json", '{"data": [\n{"q": 1}\n]}', 1),
        ("a.json", '{"data": [{"q": 1},\n{"q": 2}]}', 2),
        ("a.json", '{"version":\n1, "data": [\n{"q": 1},\n{"q": 2}]}', 2),
        ("a.json", '{"q": 1},\n{"q": 2},\n', 2),
        ("a", '{"data": [\n{"q": 1},\n{"q": 2}\n]}', 2),
        ("a.json", '{"q": 1}\n{"q": 2}\n', 2),
        ("a.json", '{"q": [{"r": 1}]}\n{"q": 2}\n', 2),
        ("a.json", '{"q\n{"q": 1}\n{"q": 2}\n', 2),
        ("a.jsonl", '{"q": [\n{"q": 1}\n{"q": 2}\n', 2),
    ],
)
def test_an_object_of_rows_is_one_document_however_its_lines_are_broken(
    tmp_path, name, text, count
):
    path = tmp_path / name
    path.write_text(text)

    rows = [item for item in read(look(path)) if isinstance(item, Row)]

    assert len(rows) == count and all("q" in row.values for row in rows)


def test_a_json_array_that_breaks_names_line_and_column(tmp_path):
    path = write(tmp_path / "a.json", '[\n {"a": 1},\n {"a": 2}\n {"a": 3}\n]')

    with pytest.raises(DataError, match=r"line 4, column 2: a comma .* The 2 rows before"):
        list(read(look(path)))


def test_integers_of_any_size_stay_integers(tmp_path):
    large = 123456789012345678901234567890
    path = write(tmp_path / "a.jsonl", json.dumps({"a": large, "b": 1.5, "c": -(2**64)}) + "\n")

    (row,) = values(path)

    assert row == {"a": large, "b": 1.5, "c": -(2**64)} and type(row["c"]) is int


CALLS = [
    {"calls": [{"name": "f", "arguments": {"city": "Oslo"}}], "note": None},
    {"calls": [{"name": "g", "arguments": {"depth": 3}}], "note": "x"},
]


def test_keys_that_arrow_adds_to_structs_are_taken_out(tmp_path):
    pq.write_table(pa.Table.from_pylist(CALLS), tmp_path / "a.parquet")

    assert values(tmp_path / "a.parquet") == CALLS


ODD = {
    "time": pa.array([datetime(2024, 1, 2), datetime(2024, 1, 2, 3, 4, 5, 600)]),
    "zone": pa.array([datetime(2024, 1, 2, tzinfo=UTC)] * 2),
    "day": pa.array([date(2024, 1, 2)] * 2),
    "price": pa.array([Decimal("1.50"), Decimal("2.00")]),
    "span": pa.array([timedelta(hours=1)] * 2),
    "text": pa.array(["größer".encode(), b"plain"]),
    "noise": pa.array([b"\xff\xfe", b"\x00\xff"]),
    "nested": pa.array([[{"at": datetime(2024, 1, 2), "raw": b"abc"}]] * 2),
    "pairs": pa.array([[("a", datetime(2024, 1, 2))]] * 2, pa.map_(pa.string(), pa.timestamp("s"))),
    "class": pa.array([1, 0]),
}


def as_read(row, name):
    try:
        return as_text(row.values[name], name)
    except Dropped as dropped:
        return dropped.kind


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_cells_that_json_has_no_form_for_read_alike_before_and_after_an_import(
    home, tmp_path, suffix
):
    classes = {"class": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    table = pa.table({"prompt": ["p", "q"], "completion": ["a", "b"], **ODD})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": classes}})}
    )
    path = table_file(tmp_path / f"a{suffix}", table)
    import_dataset(home, DataSource(path=str(path)), name="a")

    rows = [list(read(look(path))), list(find(DataSource(path="a"), home).rows())]
    direct, imported = (
        {name: [as_read(row, name) for row in some] for name in table.column_names} for some in rows
    )

    assert direct == imported
    assert direct["time"] == ["2024-01-02 00:00:00", "2024-01-02 03:04:05.000600"]
    assert direct["text"] == direct["noise"] == ["type"] * 2 and direct["class"] == ["yes", "no"]


@pytest.mark.parametrize("features", [
    [1], {"class": {"_type": "ClassLabel", "names": 5}}, {"class": 1}, None,
])  # fmt: skip
def test_metadata_of_another_program_names_no_classes(tmp_path, features):
    table = pa.table({"question": ["p", "q"], "class": [0, 1]})
    said = json.dumps({"info": {"features": features}}) if features else "[" * 6000
    path = table_file(tmp_path / "a.parquet", table.replace_schema_metadata({"huggingface": said}))
    assert [row.values["class"] for row in read(look(path))] == [0, 1]


@pytest.mark.parametrize("where", ["answer", "other"])
def test_half_a_character_is_dropped_before_and_after_an_import(home, tmp_path, where):
    rows = [{"question": f"q{n}", "answer": "a", "other": "b"} for n in range(3)]
    rows[1][where] = "half \ud83d"
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    made = import_dataset(home, DataSource(path=str(path)), name="a").snapshot

    kept = made.meta.findings.rows.kept
    assert kept == check_file("a", home=home).rows.kept == (2 if where == "answer" else 3)
    assert [row.values for row in made.rows()] == rows
    page = mapping_preview.preview(DataSource(path="a"), None, home=home)
    assert json.dumps(page, ensure_ascii=False).encode()


def test_integers_beyond_all_floats_are_kept_and_are_no_scores(home, tmp_path):
    rows = [{"prompt": "p", "responses": ["a", "b"], "scores": [10**400, 1, n]} for n in (2, 3)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    assert "tell no question" in check_file(path).error.text

    mapping = Mapping(
        format="question_answer", columns={"question": "prompt", "answer": "scores.2"}
    )
    made = import_dataset(home, DataSource(path=str(path)), name="a", mapping=mapping).snapshot

    assert [row.values for row in made.rows()] == rows
    with pytest.raises(DataError, match="keeps none"):
        apply_step(home, "a", Filter(column="scores.0", operator="less", value="1"))


@pytest.mark.parametrize("form", ["file", "stream", "compressed"])
def test_arrow_files_are_read_like_parquet(tmp_path, form):
    table = pa.Table.from_pylist(CALLS * 100)
    path = tmp_path / "data-00000-of-00001.arrow"
    if form == "stream":
        writer = pa.ipc.new_stream(path, table.schema)
    else:
        codec = pa.ipc.IpcWriteOptions(compression="zstd" if form == "compressed" else None)
        writer = pa.ipc.new_file(path, table.schema, options=codec)
    with writer:
        writer.write_table(table, max_chunksize=150)

    assert values(path) == CALLS * 100


def test_a_damaged_arrow_file_is_refused_with_its_name(tmp_path):
    table = pa.Table.from_pylist(CALLS)
    path = tmp_path / "a.arrow"
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    path.write_bytes(path.read_bytes()[:300])

    with pytest.raises(DataError, match=r"a\.arrow is a damaged Arrow file"):
        values(path)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_floats_of_a_column_with_gaps_become_integers_with_a_note(tmp_path, suffix):
    table = pa.table({"n": [1.0, None, 3.0], "nan": [float("nan"), 2.0, 0.0],
                      "real": [0.5, None, 1.0], "full": [1.0, 2.0, 3.0]})  # fmt: skip
    path = table_file(tmp_path / f"a.{suffix}", table)

    rows = values(path)

    assert [row["n"] for row in rows] == [1, None, 3] and type(rows[0]["n"]) is int
    assert [row["nan"] for row in rows] == [None, 2, 0]
    assert type(rows[0]["full"]) is float and rows[0]["real"] == 0.5
    notes = find(DataSource(path=str(path))).notes
    assert [note.split('"')[1] for note in notes] == ["n", "nan"]


def test_a_column_is_of_one_kind_in_all_files_of_a_dataset(tmp_path):
    for name, columns in (
        ("a", {"n": [1.0, None], "x": [1.0, None]}),
        ("b", {"n": [1.0, 2.0], "x": [1.5, 2.0]}),
        ("c", {"n": [2, 3]}),
    ):
        table_file(tmp_path / f"{name}.parquet", pa.table(columns))

    found = [row.values for row in find(DataSource(path=str(tmp_path))).rows()]

    assert str([row["n"] for row in found]) == "[1, None, 1, 2, 2, 3]"
    assert str([row["x"] for row in found[:4]]) == "[1.0, None, 1.5, 2.0]"


def test_columns_without_a_name_of_their_own_are_numbered_and_noted(tmp_path):
    path = write(tmp_path / "a.csv", "a,,a\n1,2,3\n")

    assert values(path) == [{"a": "1", "column 2": "2", "a (2)": "3"}]
    assert look(path).notes == (
        'One column has no name in a.csv: read as "column 2".',
        'One column has the name of an earlier one in a.csv: read as "a (2)".',
    )
