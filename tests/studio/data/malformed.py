"""Hostile and careless files, made by a script, each with what must come of it.

`cases()` is the whole corpus. An outcome is either a refusal (words that its sentence must hold)
or rows: how many are read and kept, and the kind of every problem by line.
"""

import gzip
import io
import json
import os
import pickle
import random
import socket
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Q, A = "question", "answer"
GOOD = '{"question": "q", "answer": "a"}'
GOOD_CSV = "question,answer\n"


@dataclass(frozen=True)
class Case:
    """A file and its outcome; `content` is bytes, text, or a function that makes the path."""

    name: str
    file: str
    content: bytes | str | Callable[[Path], object]
    refused: str = ""
    read: int = 0
    kept: int = 0
    problems: tuple[tuple[int, str], ...] = ()
    warned: str = ""
    extra: dict = field(default_factory=dict)

    def make(self, folder: Path) -> Path:
        """Write the file and return its path."""
        path = folder / self.file
        if callable(self.content):
            made = self.content(path)
            return made if isinstance(made, Path) else path
        data = self.content
        path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
        return path


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def _between(line: str | bytes) -> bytes:
    """A line between good ones: rows 1, 3, 4 are good, line 2 is the one."""
    middle = line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass")
    good = GOOD.encode()
    return b"\n".join([good, middle, good, good]) + b"\n"


def _one_bad(name: str, line: str | bytes, kind: str) -> Case:
    return Case(f"jsonl {name}", "a.jsonl", _between(line), read=4, kept=3, problems=((2, kind),))


def jsonl_lines() -> list[Case]:
    """One bad line among good ones, in every way a line can be bad."""
    deep = '{"question": ' + "[" * 3000 + "]" * 3000 + ', "answer": "a"}'
    return [
        _one_bad("cut short", '{"question": "q", "ans', "json"),
        _one_bad("only a brace", "{", "json"),
        _one_bad("closing brace", "}", "json"),
        _one_bad("no quotes", "{question: 'q', answer: 'a'}", "json"),
        _one_bad("single quotes", "{'question': 'q', 'answer': 'a'}", "json"),
        _one_bad("python None", '{"question": None, "answer": "a"}', "json"),
        _one_bad("python True", '{"question": True, "answer": "a"}', "json"),
        _one_bad("trailing comma", '{"question": "q", "answer": "a",}', "json"),
        _one_bad("two objects", GOOD + GOOD, "json"),
        _one_bad("comma at the end", GOOD + ",", "json"),
        _one_bad("comment", "// a comment", "json"),
        _one_bad("plain words", "hello there", "json"),
        _one_bad("NaN", '{"question": "q", "answer": NaN}', "json"),
        _one_bad("Infinity", '{"question": "q", "answer": -Infinity}', "json"),
        _one_bad("deep nesting", deep, "json"),
        _one_bad("deep object with a long number",
                 '{"question": "q", "answer": "a", "m": ' + '{"x": ' * 900 + "9" * 30 + "}" * 901,
                 "json"),
        _one_bad("array line", '["q", "a"]', "not_object"),
        _one_bad("string line", '"q"', "not_object"),
        _one_bad("number line", "17", "not_object"),
        _one_bad("null line", "null", "not_object"),
        _one_bad("true line", "true", "not_object"),
        _one_bad("duplicate key", '{"question": "q", "answer": "a", "answer": "b"}',
                 "duplicate_key"),
        _one_bad("duplicate key with a space", '{"question" : "q", "answer" : "a", "answer" : "b"}',
                 "duplicate_key"),
        _one_bad("nested duplicate key",
                 '{"question": "q", "answer": "a", "m": {"x": 1, "x": 2}}', "duplicate_key"),
        _one_bad("lone surrogate escape", '{"question": "\\ud800", "answer": "a"}', "json"),
        _one_bad("half surrogate pair", '{"question": "q", "answer": "\\udc00x"}', "json"),
        _one_bad("raw surrogate bytes", b'{"question": "\xed\xa0\x80", "answer": "a"}', "encoding"),
        _one_bad("stray byte", b'{"question": "caf\xfe\x81", "answer": "a"}', "encoding"),
        Case("jsonl one accent in latin-1", "a.jsonl",
             _between(b'{"question": "caf\xe9", "answer": "a"}'), read=4, kept=4,
             warned="Windows-1252"),
        _one_bad("overlong slash", b'{"question": "\xc0\xaf", "answer": "a"}', "encoding"),
        _one_bad("NUL inside", b'{"question": "q\x00", "answer": "a"}', "control"),
        _one_bad("NUL escaped", '{"question": "q", "answer": "a\\u0000"}', "control"),
        _one_bad("raw newline escape missing", '{"question": "q\tq", "answer": "a"}', "json"),
        _one_bad("bad escape", '{"question": "\\x41", "answer": "a"}', "json"),
        _one_bad("html", "<html><script>alert(1)</script></html>", "json"),
        _one_bad("yaml", "question: q", "json"),
        _one_bad("number of thousands of digits", f'{{"question": "q", "answer": {"9" * 5000}}}',
                 "json"),
        _one_bad("missing answer", '{"question": "q"}', "missing"),
        _one_bad("missing question", '{"answer": "a"}', "missing"),
        _one_bad("empty object", "{}", "missing"),
        _one_bad("other columns", '{"prompt": "q", "completion": "a"}', "missing"),
        _one_bad("empty answer", '{"question": "q", "answer": ""}', "empty_answer"),
        _one_bad("white answer", '{"question": "q", "answer": " \\n\\t"}', "empty_answer"),
        _one_bad("null answer", '{"question": "q", "answer": null}', "empty_answer"),
        _one_bad("empty question", '{"question": "", "answer": "a"}', "empty_prompt"),
        _one_bad("object answer", '{"question": "q", "answer": {"text": "a"}}', "type"),
        _one_bad("list answer", '{"question": "q", "answer": ["a", "b"]}', "type"),
        _one_bad("list of objects", '{"question": [{"x": 1}, {"y": 2}], "answer": "a"}', "type"),
    ]  # fmt: skip


def jsonl_files() -> list[Case]:
    """Whole JSON lines files that are odd or useless."""
    million = (GOOD + "\n") * 20_000 + "{broken\n" + (GOOD + "\n") * 10
    big = json.dumps({Q: "x" * (10 << 20), A: "a"})
    wide = json.dumps({f"c{i}": "v" for i in range(10_000)} | {Q: "q", A: "a"})
    return [
        Case("jsonl number answer", "a.jsonl", _lines(GOOD, '{"question": "q", "answer": 4}'),
             read=2, kept=2),
        Case("jsonl boolean answer", "a.jsonl", _lines(GOOD, '{"question": 1, "answer": true}'),
             read=2, kept=2),
        Case("jsonl blank lines", "a.jsonl", "\n\n" + GOOD + "\n\n \n" + GOOD + "\n\n",
             read=2, kept=2),
        Case("jsonl crlf", "a.jsonl", f"{GOOD}\r\n{GOOD}\r\n", read=2, kept=2),
        Case("jsonl cr only", "a.jsonl", f"{GOOD}\r{GOOD}\r", read=2, kept=2),
        Case("jsonl without last newline", "a.jsonl", f"{GOOD}\n{GOOD}", read=2, kept=2),
        Case("jsonl unicode line separators inside", "a.jsonl",
             _lines('{"question": "a\u2028b\u2029c\u0085d", "answer": "a"}'), read=1, kept=1),
        Case("jsonl one bad line in many", "a.jsonl", million, read=20_011, kept=20_010,
             problems=((20_001, "json"),)),
        Case("jsonl all broken", "a.jsonl", "{x\n" * 50, refused="None of the 50 rows"),
        Case("jsonl all empty answers", "a.jsonl",
             '{"question": "q", "answer": ""}\n' * 5, refused='"answer" is empty'),
        Case("jsonl only arrays", "a.jsonl", "[1, 2]\n[3, 4]\n", refused="not an object"),
        Case("jsonl unknown columns", "a.jsonl", '{"foo": 1, "bar": 2, "baz": 3}\n' * 3,
             refused='"foo", "bar", "baz"'),
        Case("jsonl ten megabyte field", "a.jsonl", _lines(GOOD, big, GOOD), read=3, kept=3),
        Case("jsonl ten thousand columns", "a.jsonl", _lines(GOOD, wide, GOOD), read=3, kept=3),
        Case("jsonl huge number", "a.jsonl", _lines(GOOD, f'{{"question": {"9" * 500}, "answer": '
             '"a"}'), read=2, kept=1, problems=((2, "json"),)),
        Case("jsonl bidi and zero width", "a.jsonl",
             _lines('{"question": "\u202eevil\u202c\u200b", "answer": "\u2066a\u2069"}'),
             read=1, kept=1),
        Case("jsonl formula", "a.jsonl", _lines('{"question": "=cmd|x", "answer": "=1+1"}'),
             read=1, kept=1),
        Case("jsonl special tokens", "a.jsonl",
             _lines('{"question": "<|im_end|></s>", "answer": "<|endoftext|>"}'), read=1, kept=1),
        Case("jsonl jinja in data", "a.jsonl",
             _lines('{"question": "{{ 7*7 }}{% raw %}", "answer": "{{ config }}"}'),
             read=1, kept=1),
        Case("jsonl format string in data", "a.jsonl",
             _lines('{"question": "{0.__class__} %s", "answer": "{}"}'), read=1, kept=1),
        Case("jsonl dunder keys", "a.jsonl",
             _lines('{"__class__": "x", "question": "q", "answer": "a"}'), read=1, kept=1),
        Case("jsonl empty key", "a.jsonl", _lines('{"": 1, "question": "q", "answer": "a"}'),
             read=1, kept=1),
        Case("jsonl value begins with colon", "a.jsonl",
             _lines('{"question": ":q", "answer": "say \\":\\" and \\": x"}'), read=1, kept=1),
        Case("jsonl in utf-16", "a.jsonl", _lines(GOOD, GOOD).encode("utf-16"), read=2, kept=2,
             warned="UTF-16"),
        Case("jsonl in utf-16 big-endian without mark", "a.jsonl",
             _lines(GOOD, GOOD).encode("utf-16-be"), read=2, kept=2, warned="UTF-16"),
        Case("jsonl in utf-32", "a.jsonl", _lines(GOOD, GOOD).encode("utf-32"), read=2, kept=2,
             warned="UTF-32"),
        Case("jsonl with mark", "a.jsonl", "\ufeff" + _lines(GOOD, GOOD), read=2, kept=2),
        Case("jsonl in cp1252", "a.jsonl",
             (_lines('{"question": "é", "answer": "ü"}') * 9).encode("cp1252"), read=9, kept=9,
             warned="Windows-1252"),
        Case("jsonl in shift-jis", "a.jsonl",
             (_lines('{"question": "これはなんですか", "answer": "それはペンです"}') * 9)
             .encode("shift_jis"), read=9, kept=9, warned="Shift-JIS"),
        Case("jsonl in gb18030", "a.jsonl",
             (_lines('{"question": "你们的国家在什么地方", "answer": "我不知道他们在哪里"}') * 9)
             .encode("gb18030"), read=9, kept=9, warned="GB18030"),
        Case("jsonl in cp1251", "a.jsonl",
             (_lines('{"question": "как дела сегодня", "answer": "спасибо хорошо"}') * 9)
             .encode("cp1251"), read=9, kept=9, warned="Windows-1251"),
        Case("jsonl utf-16 cut in half a character", "a.jsonl",
             _lines(GOOD, GOOD).encode("utf-16")[:-1], read=2, kept=2),
        Case("jsonl pretty printed", "a.jsonl", json.dumps(json.loads(GOOD), indent=2),
             read=1, kept=1),
        Case("jsonl that is an array", "a.jsonl", f"[{GOOD},\n{GOOD}]", read=2, kept=2),
    ]  # fmt: skip


def conversations() -> list[Case]:
    """Messages that are no conversation."""
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}

    def one(name: str, messages: object, kind: str) -> Case:
        rows = [good, {"messages": messages}, good]
        text = _lines(*(json.dumps(row) for row in rows))
        return Case(f"messages {name}", "a.jsonl", text, read=3, kept=2, problems=((2, kind),))

    user, bot = good["messages"]
    return [
        one("no answer", [user], "no_answer"),
        one("empty list", [], "no_answer"),
        one("null", None, "type"),
        one("number", 5, "type"),
        one("text", "hello", "json"),
        one("list of text", ["q", "a"], "type"),
        one("unknown role", [user, {"role": "wizard", "content": "a"}], "roles"),
        one("no role", [user, {"content": "a"}], "roles"),
        one("number role", [user, {"role": 3, "content": "a"}], "roles"),
        one("empty answer", [user, {"role": "assistant", "content": ""}], "empty_answer"),
        one("null answer", [user, {"role": "assistant", "content": None}], "empty_answer"),
        one("empty question", [{"role": "user", "content": " "}, bot], "empty_prompt"),
        one("picture", [{"role": "user", "content": [{"type": "image_url"}]}, bot], "type"),
        one("NUL", [user, {"role": "assistant", "content": "a\x00"}], "control"),
        one("nameless tool call",
            [user, {"role": "assistant", "content": "", "tool_calls": [{"x": 1}]}], "type"),
        one("tool calls that are text",
            [user, {"role": "assistant", "content": "", "tool_calls": "call"}], "type"),
        Case("messages ending in a question", "a.jsonl",
             _lines(json.dumps({"messages": [user, bot, user]})), read=1, kept=1,
             warned="end with a question"),
        Case("messages as text in csv", "a.csv",
             'messages\n"' + json.dumps(good["messages"]).replace('"', '""') + '"\n',
             read=1, kept=1),
        Case("messages with bad json in csv", "a.csv",
             'messages\n"' + json.dumps(good["messages"]).replace('"', '""') + '"\n[{broken\n',
             read=2, kept=1, problems=((3, "json"),)),
        Case("sharegpt tools that are no json", "a.jsonl", _lines(
             json.dumps({"conversations": [{"from": "human", "value": "q"},
                                           {"from": "gpt", "value": "a"}], "tools": "[]"}),
             json.dumps({"conversations": [{"from": "human", "value": "q"},
                                           {"from": "gpt", "value": "a"}], "tools": "[{"})),
             read=2, kept=1, problems=((2, "json"),)),
    ]  # fmt: skip


def documents() -> list[Case]:
    """JSON documents that are cut, damaged, or of another shape."""
    rows = [json.loads(GOOD)] * 3
    deep = "[" * 100_000 + "]" * 100_000
    return [
        Case("json cut in a string", "a.json", json.dumps(rows)[:-10], refused="cut short"),
        Case("json cut after a comma", "a.json", f"[{GOOD},", refused="cut short"),
        Case("json without closing bracket", "a.json", f"[{GOOD}", refused="before its closing"),
        Case("json missing comma", "a.json", f"[{GOOD}\n{GOOD}]", refused="line 2, column 1"),
        Case("json trailing comma", "a.json", f"[{GOOD},]", refused="line 1"),
        Case("json text after the array", "a.json", f"[{GOOD}] hello", refused="after the closing"),
        Case("json NaN", "a.json", f'[{GOOD}, {{"question": "q", "answer": NaN}}]', refused="NaN"),
        Case("json comment", "a.json", f"[{GOOD}, // no\n{GOOD}]", refused="line 1"),
        Case("json empty array", "a.json", "[]", refused="holds no rows"),
        Case("json empty object", "a.json", "{}", refused="columns"),
        Case("json a number", "a.json", "42", refused=""),
        Case("json a string", "a.json", '"hello"', refused=""),
        Case("json array of numbers", "a.json", "[1, 2, 3]", refused="not an object"),
        Case("json array of arrays", "a.json", "[[1], [2]]", refused="not an object"),
        Case("json mixed elements", "a.json", f"[{GOOD},\n5,\n{GOOD},\nnull]", read=4, kept=2,
             problems=((2, "not_object"), (4, "not_object"))),
        Case("json duplicate key", "a.json", f'[{GOOD},\n{{"question": "q", "question": "r", '
             '"answer": "a"}]', read=2, kept=1, problems=((2, "duplicate_key"),)),
        Case("json duplicate key deep inside", "a.json",
             f'[{GOOD},\n{{"question": "q", "answer": "a", "m": [{{"x": {{"y": 1, "y": 2}}}}]}}]',
             read=2, kept=1, problems=((2, "duplicate_key"),)),
        Case("json element of 300 levels", "a.json",
             f'[{GOOD},\n{{"question": "q", "answer": "a", "m": ' + "[" * 300 + "]" * 300 + "}]",
             read=2, kept=1, problems=((2, "json"),)),
        Case("json deep nesting", "a.json", deep, refused="nested too deeply"),
        Case("json deep object", "a.json", '{"a":' * 5000 + "1" + "}" * 5000, refused=""),
        Case("json lone surrogate", "a.json", f'[{GOOD},\n{{"question": "\\ud800", "answer": '
             '"a"}]', read=2, kept=1, problems=((2, "encoding"),)),
        Case("json bad utf-8", "a.json", f"[{GOOD},".encode() + b'\n{"question": "\xff"}]',
             refused="not UTF-8"),
        Case("json columns of unequal length", "a.json",
             json.dumps({Q: ["a", "b"], A: ["c"]}), refused="unequal length"),
        Case("json columns", "a.json", json.dumps({Q: ["a", "b"], A: ["c", "d"]}), read=2, kept=2),
        Case("json one object", "a.json", GOOD, read=1, kept=1),
        Case("json pretty", "a.json", json.dumps(rows, indent=4), read=3, kept=3),
        Case("json huge number", "a.json", f'[{{"question": {"9" * 400}, "answer": "a"}}]',
             read=1, kept=1),
        Case("json too many digits", "a.json", f'[{{"question": {"9" * 9000}, "answer": "a"}}]',
             refused="line 1"),
        Case("json utf-16", "a.json", json.dumps(rows).encode("utf-16"), read=3, kept=3),
        Case("json html page", "a.json", "<!doctype html><html></html>", refused=""),
    ]  # fmt: skip


def tables() -> list[Case]:
    """Comma separated tables that were written by hand or by bad programs."""
    return [
        Case("csv too few fields", "a.csv", GOOD_CSV + "q,a\nq\nq,a\n", read=3, kept=2,
             problems=((3, "fields"),)),
        Case("csv too many fields", "a.csv", GOOD_CSV + "q,a\nq,a,b\n", read=2, kept=1,
             problems=((3, "fields"),)),
        Case("csv open quote", "a.csv", GOOD_CSV + 'q,"a\nq,a\nq,a\n', read=3, kept=2,
             problems=((2, "quote"),)),
        Case("csv open quote at the end", "a.csv", GOOD_CSV + 'q,a\nq,"a', read=2, kept=1,
             problems=((3, "quote"),)),
        Case("csv text after a quote", "a.csv", GOOD_CSV + 'q,"a"b\nq,a\n', read=2, kept=1,
             problems=((2, "quote"),)),
        Case("csv open quote in the header", "a.csv", '"question,answer\nq,a\n', refused="header"),
        Case("csv quoted newlines", "a.csv", GOOD_CSV + '"q\n\nq","a"\nq,a\n', read=2, kept=2),
        Case("csv doubled quotes", "a.csv", GOOD_CSV + '"say ""q""",a\n', read=1, kept=1),
        Case("csv duplicate columns", "a.csv", "question,answer,answer\nq,a,b\n", read=1, kept=1),
        Case("csv empty column names", "a.csv", "question,answer,,\nq,a,,\n", read=1, kept=1),
        Case("csv header only", "a.csv", GOOD_CSV, refused="no rows"),
        Case("csv blank lines", "a.csv", "\n\n" + GOOD_CSV + "\nq,a\n\n", read=1, kept=1),
        Case("csv NUL byte", "a.csv", GOOD_CSV + "q,a\nq\x00,a\n", read=2, kept=1,
             problems=((3, "control"),)),
        Case("csv bad utf-8", "a.csv", GOOD_CSV.encode() + b"q,a\n" * 9 + b"q\xff,a\nq,a\n",
             read=11, kept=10, problems=((11, "encoding"),)),
        Case("csv ten thousand columns", "a.csv", ",".join(f"c{i}" for i in range(10_000)) + "\n",
             refused="10,000 columns"),
        Case("csv ten megabyte field", "a.csv", GOOD_CSV + "q," + "a" * (10 << 20) + "\nq,a\n",
             read=2, kept=2),
        Case("csv field over the limit", "a.csv", GOOD_CSV + "q," + "a" * (17 << 20) + "\nq,a\n",
             read=2, kept=1, problems=((2, "too_long"),)),
        Case("csv semicolons", "a.csv", "question;answer\nq, r;a\n", read=1, kept=1),
        Case("csv tabs", "a.csv", "question\tanswer\nq, r\ta\n", read=1, kept=1),
        Case("csv formulas", "a.csv", GOOD_CSV + '=HYPERLINK("x"),@SUM(1)\n+1,-1\n',
             read=2, kept=2),
        Case("csv script", "a.csv", GOOD_CSV + "<script>alert(1)</script>,<img src=x>\n",
             read=1, kept=1),
        Case("csv utf-16", "a.csv", (GOOD_CSV + "q,ä\n").encode("utf-16"), read=1, kept=1,
             warned="UTF-16"),
        Case("csv with mark", "a.csv", "\ufeff" + GOOD_CSV + "q,a\n", read=1, kept=1),
        Case("csv cr only", "a.csv", "question,answer\rq,a\r", read=1, kept=1),
        Case("csv empty answers", "a.csv", GOOD_CSV + "q,\nq,a\n", read=2, kept=1,
             problems=((2, "empty_answer"),)),
        Case("csv all fields quoted and padded", "a.csv", '"question","answer"\n"q ","a"\n',
             read=1, kept=1),
        Case("csv header with spaces and case", "a.csv", " Question , ANSWER \nq,a\n",
             read=1, kept=1),
        Case("csv that is json lines", "a.csv", _lines(GOOD, GOOD), read=2, kept=2),
        Case("csv only numbers", "a.csv", "1,2\n3,4\n", refused="columns"),
        Case("tsv with commas", "a.tsv", "question\tanswer\nq, q\ta, a\n", read=1, kept=1),
        Case("tsv short row", "a.tsv", "question\tanswer\nq\nq\ta\n", read=2, kept=1,
             problems=((2, "fields"),)),
    ]  # fmt: skip


def _parquet(path: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def _cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def _bomb(path: Path) -> None:
    # One text of 1 MB, two thousand times: a few kilobytes that unpack to 2 GB.
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000, pa.int32()), ["x" * (1 << 20)])
    pq.write_table(pa.table({Q: text, A: text}), path, compression="zstd")


def _flip(path: Path) -> None:
    _parquet(path, question=["q" * 50] * 500, answer=[str(i) for i in range(500)])
    data = bytearray(path.read_bytes())
    rng = random.Random(0)
    for _ in range(60):
        data[rng.randrange(4, len(data) // 2)] ^= 0xFF
    path.write_bytes(data)


def parquets() -> list[Case]:
    """Parquet that is cut, damaged, lying or exotic."""
    pair = {Q: ["q", "q"], A: ["a", "b"]}
    return [
        Case("parquet cut at half", "a.parquet",
             lambda p: (_parquet(p, **pair), _cut(p, 0.5)), refused="damaged"),
        Case("parquet cut at the end", "a.parquet",
             lambda p: (_parquet(p, **pair), _cut(p, 0.98)), refused="damaged"),
        Case("parquet magic only", "a.parquet", b"PAR1", refused="damaged"),
        Case("parquet two magics", "a.parquet", b"PAR1PAR1", refused="damaged"),
        Case("parquet lying footer length", "a.parquet", b"PAR1" + b"\xff" * 8 + b"PAR1",
             refused="damaged"),
        Case("parquet garbage", "a.parquet", b"PAR1" + os.urandom(500) + b"PAR1",
             refused="damaged"),
        Case("parquet flipped bytes", "a.parquet", _flip, refused=""),
        Case("parquet text file", "a.parquet", "hello\n", refused="not a parquet file"),
        Case("parquet without rows", "a.parquet", lambda p: _parquet(p, question=[], answer=[]),
             refused="no rows"),
        Case("parquet nulls", "a.parquet",
             lambda p: _parquet(p, question=["q", None], answer=["a", "b"]), read=2, kept=1,
             problems=((2, "empty_prompt"),)),
        Case("parquet bytes column", "a.parquet",
             lambda p: _parquet(p, question=["q", "q"], answer=[b"\xff", b"a"]), refused="bytes"),
        Case("parquet number answers", "a.parquet",
             lambda p: _parquet(p, question=["q", "r"], answer=[1.5, float("nan")]), read=2,
             kept=1, problems=((2, "empty_answer"),)),
        Case("parquet bomb", "a.parquet", _bomb, refused="unpacks to more"),
        Case("parquet named csv", "a.csv", lambda p: _parquet(p, **pair), read=2, kept=2),
        Case("parquet duplicate columns", "a.parquet", lambda p: pq.write_table(
             pa.Table.from_arrays([pa.array(["q"]), pa.array(["a"]), pa.array(["b"])],
                                  names=[Q, A, A]), p), read=1, kept=1),
    ]  # fmt: skip


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.jsonl", GOOD)


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a.jsonl")
        info.size = len(GOOD)
        archive.addfile(info, io.BytesIO(GOOD.encode()))


class _Evil:
    def __reduce__(self):
        return (os.system, ("touch /tmp/adapter-studio-was-executed",))


def foreign() -> list[Case]:
    """Files of other kinds with a data file's ending, and packed files that misbehave."""
    line = GOOD.encode() + b"\n"
    long = b'{"question": "q", "answer": "' + b"a" * 2000 + b'"}\n'
    return [
        Case("zip named jsonl", "a.jsonl", _zip, refused="zip archive"),
        Case("zip named csv", "a.csv", _zip, refused="zip archive"),
        Case("tar named json", "a.json", _tar, refused="tar archive"),
        Case("pickle named jsonl", "a.jsonl", pickle.dumps(_Evil(), protocol=4),
             refused="pickle"),
        Case("pickle named csv", "a.csv", pickle.dumps([1, 2], protocol=2), refused="pickle"),
        Case("pickle protocol 0", "a.jsonl", pickle.dumps(_Evil(), protocol=0), refused=""),
        Case("pdf named txt", "a.txt", b"%PDF-1.7\n...", refused="a PDF"),
        Case("png named json", "a.json", b"\x89PNG\r\n\x1a\n" + bytes(50), refused="PNG"),
        Case("program named jsonl", "a.jsonl", b"\x7fELF" + bytes(100), refused="a program"),
        Case("sqlite named csv", "a.csv", b"SQLite format 3\x00" + bytes(100), refused="SQLite"),
        Case("unknown ending", "a.exe", b"hello", refused="are not read"),
        Case("binary noise", "a.jsonl", random.Random(1).randbytes(5000), refused=""),
        Case("binary noise as csv", "a.csv", random.Random(2).randbytes(5000), refused=""),
        Case("binary noise as text", "a.txt", bytes(range(256)) * 20, refused="", read=0,
             extra={"any": True}),
        Case("gzip", "a.jsonl.gz", gzip.compress(line * 3), read=3, kept=3),
        Case("gzip without the ending", "a.jsonl", gzip.compress(line * 3), read=3, kept=3),
        Case("gzip cut short", "a.jsonl.gz", gzip.compress(random.Random(3).randbytes(900))[:-200],
             refused=""),
        Case("gzip of rows cut short", "a.jsonl.gz",
             gzip.compress("".join(json.dumps({Q: str(random.Random(i).random()), A: "a"}) + "\n"
                                   for i in range(5000)).encode())[:-2000], refused="damaged"),
        Case("gzip header only", "a.csv.gz", b"\x1f\x8b\x08\x00", refused=""),
        Case("gzip bomb", "a.jsonl.gz", gzip.compress(long * 15_000, 9), refused="unpacks to"),
        Case("gzip in gzip", "a.jsonl.gz", gzip.compress(gzip.compress(line)),
             refused="packed twice"),
        Case("gzip of a zip", "a.jsonl.gz", lambda p: (_zip(p), p.write_bytes(
             gzip.compress(p.read_bytes()))), refused="zip archive"),
        Case("zstd", "a.jsonl.zst", pa.compress(line * 3, codec="zstd", asbytes=True),
             read=3, kept=3),
        Case("zstd garbage", "a.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"\xff" * 50, refused=""),
        Case("zstd bomb", "a.txt.zst", pa.compress(b"a" * (60 << 20), codec="zstd", asbytes=True),
             refused="unpacks to"),
        Case("empty file", "a.jsonl", b"", refused="is empty"),
        Case("white space only", "a.json", b" \n\t\n", refused="empty"),
        Case("only a mark", "a.jsonl", b"\xef\xbb\xbf", refused="empty"),
        Case("only NUL bytes", "a.jsonl", bytes(1000), refused=""),
    ]  # fmt: skip


def _link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        old = os.getcwd()
        os.chdir(path.parent)  # the path of a socket may not be long
        try:
            made.bind(path.name)
        finally:
            os.chdir(old)


def places() -> list[Case]:
    """Names and places that are no plain file."""

    def folder(path: Path) -> None:
        path.mkdir()

    def linked_folder(path: Path) -> Path:
        root = path.parent / "set"
        root.mkdir()
        (root / "a.jsonl").write_text(GOOD + "\n")
        (root / "b.jsonl").symlink_to("/etc/passwd")
        (root / "up.jsonl").symlink_to("../../outside.jsonl")
        return root

    def good(path: Path) -> None:
        path.write_text(GOOD + "\n")

    return [
        Case("missing file", "no.jsonl", lambda p: p, refused="no file"),
        Case("named pipe", "a.jsonl", lambda p: os.mkfifo(p), refused="pipe, socket or device"),
        Case("socket", "a.jsonl", _socket, refused="pipe, socket or device"),
        Case("link to a device", "a.jsonl", lambda p: _link(p, "/dev/zero"), refused="device"),
        Case("link to itself", "a.jsonl", lambda p: _link(p, p.name), refused=""),
        Case("link to nowhere", "a.jsonl", lambda p: _link(p, "gone"), refused="nowhere"),
        Case("empty folder", "a.jsonl", folder, refused="no data files"),
        Case("folder with links out", "a.jsonl", linked_folder, read=1, kept=1),
        Case("name with spaces and quotes", "a 'b' \"c\".jsonl", good, read=1, kept=1),
        Case("name with a newline", "a\nb.jsonl", good, read=1, kept=1),
        Case("name of markup", "<script>.jsonl", good, read=1, kept=1),
        Case("name with dots", "..a..jsonl", good, read=1, kept=1),
        Case("name in capitals", "A.JSONL", good, read=1, kept=1),
        Case("name right to left", "\u202elnosj.jsonl", good, read=1, kept=1),
        Case("name that looks like an option", "-rf.jsonl", good, read=1, kept=1),
        Case("name too long", "x" * 300 + ".jsonl", lambda p: p, refused=""),
        Case("name with NUL", "a.jsonl", lambda p: Path(str(p) + "\x00.jsonl"), refused="NUL"),
    ]


def texts() -> list[Case]:
    """Plain text in all its forms."""
    return [
        Case("txt with a bad byte", "a.txt", b"one\ntwo\xff\nthree\nfour\nfive\nsix\n", read=6,
             kept=5, problems=((2, "encoding"),)),
        Case("txt with NUL", "a.txt", "one\ntw\x00o\nthree\n", read=3, kept=2,
             problems=((2, "control"),)),
        Case("txt one endless line", "a.txt", "word " * 400_000, read=1, kept=1),
        Case("txt crlf and blank lines", "a.txt", "a\r\n\r\nb\r\n", read=3, kept=3),
        Case("md with html", "a.md", "# T\n<script>alert(1)</script>\n", read=2, kept=2),
        Case("md with utf-16", "a.md", "# T\nä\n".encode("utf-16"), read=2, kept=2,
             warned="UTF-16"),
    ]  # fmt: skip


def cases() -> list[Case]:
    """Return the whole corpus."""
    return [
        *jsonl_lines(), *jsonl_files(), *conversations(), *documents(), *tables(), *parquets(),
        *foreign(), *places(), *texts(),
    ]  # fmt: skip
