"""Excel workbooks are tables like others; what cannot be read of them is a sentence."""

import datetime
import zipfile
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from studio.data.conversation_records import Problem, Row
from studio.data.readers import look, read
from studio.errors import DataError

HEADER = ["question", "answer"]


def book(path: Path, *sheets: list[list[Any]], names: tuple[str, ...] = ("One", "Two")) -> Path:
    made = Workbook()
    made.remove(made.active)
    for name, rows in zip(names, sheets, strict=False):
        sheet = made.create_sheet(name)
        for row in rows:
            sheet.append(row)
    made.save(path)
    return path


def items(path: Path) -> list[Any]:
    return list(read(look(path)))


def edited(path: Path, part: str, old: str, new: str) -> Path:
    """Replace text in a part of a workbook."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    assert old.encode() in parts[part]
    parts[part] = parts[part].replace(old.encode(), new.encode())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return path


SHEET = "xl/worksheets/sheet1.xml"


def test_rows_come_with_their_numbers_types_and_line_ends(tmp_path):
    path = book(tmp_path / "a.xlsx", [
        [None, None], HEADER, ["a, b", 'say "hi"\r\nthere'], [None, None], [3, 2.5],
        [datetime.datetime(2026, 1, 31), True], ["only", None],
    ])  # fmt: skip
    found = [(item.line, list(item.values.values())) for item in items(path)]
    assert found == [
        (3, ["a, b", 'say "hi"\nthere']), (5, [3, 2.5]), (6, ["2026-01-31", True]),
        (7, ["only", None]),
    ]  # fmt: skip
    assert list(items(path)[0].values) == HEADER
    assert look(path).notes == ()


def test_the_first_sheet_with_rows_is_read_and_the_others_are_named(tmp_path):
    path = book(tmp_path / "a.xlsx", [], [HEADER, ["a", "b"]], [HEADER, ["c", "d"]],
                names=("Cover", "Rows", "Old"))  # fmt: skip
    assert [item.values["answer"] for item in items(path)] == ["b"]
    (note,) = look(path).notes
    assert '"Rows"' in note and '"Old" is not' in note and "Cover" not in note


def test_columns_without_a_name_and_beyond_the_header(tmp_path):
    path = book(tmp_path / "a.xlsx", [["a", None, "a"], [1, 2, 3], [1, 2, 3, 4]])
    row, beyond = items(path)
    assert row.values == {"a": 1, "column 2": 2, "a (2)": 3}
    assert (beyond.kind, beyond.line) == ("fields", 3) and len(look(path).notes) == 2


def test_formulas_are_read_by_their_saved_values(tmp_path):
    path = book(tmp_path / "a.xlsx", [HEADER, ["a", '="b" & "c"'], ["d", "e"]])
    problem, row = items(path)
    assert isinstance(problem, Problem) and "Cell B2" in problem.text and "save it" in problem.text
    assert row.values == {"question": "d", "answer": "e"}
    edited(path, SHEET, "<v></v>" if "<v></v>" in _part(path) else "<v />", "<v>7</v>")
    assert [type(item) for item in items(path)] == [Row, Row]
    assert items(path)[0].values["answer"] == 7


def test_a_formula_whose_saved_value_is_the_empty_text_keeps_its_row(tmp_path):
    made = [HEADER, ["a", '=IF(1,"","x")'], ['=IF(1,"","y")', None], ["d", "=1+1"]]
    path = book(tmp_path / "a.xlsx", made)
    empty = "<v></v>" if "<v></v>" in _part(path) else "<v />"
    for cell, kind in (("B2", "str"), ("A3", "str")):
        edited(path, SHEET, f'<c r="{cell}">', f'<c r="{cell}" t="{kind}">')
    row, unsaved = items(path)
    assert empty in _part(path) and row.values == {"question": "a", "answer": None}
    assert (unsaved.line, unsaved.kind) == (4, "formula") and "Cell B4" in unsaved.text


@pytest.mark.parametrize(
    ("value", "number_format", "shown"),
    [
        (123, "00000", "00123"), (-123, "00000", "-00123"), (1234567, "00000", "1234567"),
        (123, "General", 123), (7, "0", 7), (1.5, "0.00", 1.5), (2.5, "00", 2.5),
        (0.5, "0%", "50%"), (0.125, "0%", "13%"), (-0.125, "0.0%", "-12.5%"), (1, "0%", "100%"),
        (0.071, "0.00%;[Red]-0.00%", "7.10%"),
    ],
)  # fmt: skip
def test_leading_zeros_and_percentages_are_read_as_excel_shows_them(
    value, number_format, shown, tmp_path
):
    made = Workbook()
    for row in (HEADER, ["a", value]):
        made.active.append(row)
    made.active["B2"].number_format = number_format
    made.save(tmp_path / "a.xlsx")
    (row,) = items(tmp_path / "a.xlsx")
    assert row.values["answer"] == shown and type(row.values["answer"]) is type(shown)


def _part(path: Path) -> str:
    with zipfile.ZipFile(path) as file:
        return file.read(SHEET).decode()


def test_an_error_in_a_cell_drops_its_row(tmp_path):
    path = book(tmp_path / "a.xlsx", [HEADER, ["a", "#REF!"], ["b", "c"]])
    problem, row = items(path)
    assert "B2 holds the error #REF!" in problem.text and row.values["answer"] == "c"


def test_merged_cells(tmp_path):
    made = Workbook()
    for row in (["Our data", None], HEADER, ["a", "b"], [None, "c"]):
        made.active.append(row)
    made.active.merge_cells("A3:A4")
    made.save(tmp_path / "a.xlsx")
    assert "(such as A3:A4)" in look(tmp_path / "a.xlsx").notes[0]
    made.active.merge_cells("A1:B1")
    made.save(tmp_path / "b.xlsx")
    with pytest.raises(DataError, match=r"Row 1 of b.xlsx has merged cells \(A1:B1\)"):
        items(tmp_path / "b.xlsx")


OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xlsx", OLE + "EncryptedPackage".encode("utf-16-le"), "protected with a password"),
        ("a.xls", OLE + "Workbook".encode("utf-16-le"), r"before 2007 \(.xls\): save it as .xlsx"),
        ("a.doc", OLE, "old Office file"),
        ("a.xlsx", b"PK\x03\x04..", "damaged zip archive or Excel workbook"),
        ("a.xlsx", b"question,answer\na,b\n", "not a xlsx file, though its name says so"),
        ("a.docx", {"word/document.xml": "<a/>"}, "a Word document"),
        ("a.ods", {"content.xml": "<a/>"}, "an OpenDocument file"),
        ("a.zip", {"rows.csv": "a,b"}, "a zip archive: unpack it"),
        ("a.xlsx", {"xl/workbook.xml": "<a/>"}, "damaged Excel workbook"),
        ("a.xlsx", {"xl/workbook.xml": '<!DOCTYPE a [<!ENTITY b "c">]><a/>'}, "XML entities"),
        ("a.xlsx", {"xl/workbook.xml": " " * (32 << 20)}, "unpacks to 32 MiB"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_a_sentence(tmp_path, name, content, words):
    path = tmp_path / name
    if isinstance(content, dict):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for part, text in content.items():
                file.writestr(part, text)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        items(path)


def test_an_empty_workbook_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="no sheet holds a value"):
        items(book(tmp_path / "a.xlsx", [[]]))


def test_a_csv_as_excel_writes_it(tmp_path):
    """Semicolons, a byte-order mark or the code page of Windows, CRLF, and `sep=`."""
    text = 'question;answer\r\nWo?;"Köln; am Rhein"\r\nWann?;heute – früh\r\n'
    for content in (text.encode("utf-8-sig"), text.encode("cp1252"), ("sep=;\r\n" + text).encode()):
        path = tmp_path / "a.csv"
        path.write_bytes(content)
        assert [item.values["answer"] for item in items(path)] == [
            "Köln; am Rhein", "heute – früh"
        ]  # fmt: skip
