"""Every data command: what it prints, its exit codes, and that a terminal is never repainted."""

import json
import subprocess
import sys

import pytest

from ui.cli.main import main


def invoke(capsys, *words):
    """Run a data command in this process; return its exit code and what it printed."""
    with pytest.raises(SystemExit) as ended:
        main(["data", *words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def put(home, monkeypatch, capsys):
    """Run a command in a private home; returns exit code and parsed JSON."""
    monkeypatch.setenv("STUDIO_HOME", str(home.path))

    def run(*args):
        code, out, _ = invoke(capsys, *args, "--json")
        return code, json.loads(out)

    return run


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"question": f"q{i}", "answer": f"a{i}"}) for i in range(20)]
    path.write_text("\n".join([*lines, "{broken"]) + "\n")
    return str(path)


def test_check_prints_one_report_a_file_and_exits_2_on_a_refusal(put, rows, tmp_path):
    code, (report,) = put("check", rows)
    assert code == 0
    assert report["rows"] == {"read": 21, "kept": 20, "dropped": 1}
    assert report["problems"] == [
        {"line": 21, "kind": "json", "text": report["problems"][0]["text"], "file": ""}
    ]
    assert {"file", "ok", "format", "warnings", "error"} <= set(report)

    code, reports = put("check", rows, str(tmp_path / "gone.csv"))
    assert code == 2 and [r["ok"] for r in reports] == [True, False]
    assert reports[1]["error"]["kind"] == "data"


def test_a_dataset_lives_from_import_to_delete(put, rows, tmp_path):
    assert put("import", rows, "--name", "My Rows")[1]["name"] == "my-rows"
    assert put("import", rows)[1]["already"] is True
    assert put("split", "my-rows", "--count", "4")[1]["validation_rows"] == 4
    assert put("filter", "my-rows", "--column", "answer", "--operator", "contains", "--value",
               "a1")[1]["rows"] == 11  # fmt: skip
    assert put("dedupe", "my-rows")[1]["already"] is True
    assert put("drop", "my-rows", "--row", "1")[1]["rows"] == 19
    mapped = put("map", "my-rows", "--column", "question=answer", "--column", "answer=question")
    assert mapped[1]["rows"][0]["messages"][0]["content"] == "a0"
    assert put("map", "my-rows", "--constant", "system=S", "--save")[1]["step"]["kind"] == "remap"
    assert len(put("list")[1]) == 5
    assert put("export", "my-rows", str(tmp_path / "out.jsonl"))[1]["rows"] == 20
    code, answer = put("export", "my-rows", str(tmp_path / "out.jsonl"), "--part", "validation")
    assert code == 2 and "exists already" in answer["error"]["text"]
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 20
    assert put("export", "my-rows", str(tmp_path / "out.jsonl"), "--force")[1]["rows"] == 20
    assert put("export", "my-rows", str(tmp_path / "new.csv"), "--part", "odd")[0] == 2
    assert put("delete", "my-rows")[1] == {"deleted": "my-rows"}
    code, answer = put("export", "my-rows", str(tmp_path / "out.jsonl"))
    assert code == 2 and "no imported dataset" in answer["error"]["text"]


def test_what_changes_nothing_makes_no_copy_and_says_so(home, monkeypatch, rows, capsys):
    monkeypatch.setenv("STUDIO_HOME", str(home.path))
    invoke(capsys, "import", rows, "--name", "mine")

    for step in (["dedupe", "mine"], ["filter", "mine", "--min-characters", "1"]):
        code, out, _ = invoke(capsys, *step)
        assert code == 0
        assert 'Nothing was removed: "mine" keeps its 20 rows.' in out
    _, again, _ = invoke(capsys, "import", rows, "--name", "a/b")
    assert '"mine" was imported before' in again
    assert 'It keeps its name: it was not called "a/b".' in again
    assert [folder.name for folder in home.datasets.iterdir()] == ["mine"]


def test_a_mapping_that_map_prints_can_be_given_to_import(put, rows, tmp_path):
    mapping = put("map", rows, "--constant", "system=Be kind.")[1]
    (tmp_path / "mapping.json").write_text(json.dumps(mapping))

    made = put("import", rows, "--mapping", str(tmp_path / "mapping.json"))[1]

    assert made["mapping"]["constants"] == {"system": "Be kind."}
    for wrong, said in (
        ('{"format": 3}', "cannot be used. format is 3: input should be 'messages'"),
        ("a,b\n1,2\n", "is not a mapping file: give what"),
        ("[1]", "is not a mapping file: give what"),
    ):
        (tmp_path / "mapping.json").write_text(wrong)
        code, answer = put("import", rows, "--mapping", str(tmp_path / "mapping.json"))
        assert code == 2 and said in answer["error"]["text"]


def test_the_parts_named_decide_the_format_of_a_map_and_an_import(put, tmp_path):
    (tmp_path / "odd.csv").write_text("A,B,C\nhello there,good day,one\nbye,farewell,two\n")
    odd, columns = str(tmp_path / "odd.csv"), ["--column", "prompt=A", "--column", "completion=B"]

    code, answer = put("import", odd)
    assert code == 2 and "--column prompt=COLUMN" in answer["error"]["text"]
    shown = put("map", odd, *columns)[1]
    assert [m["content"] for m in shown["rows"][0]["messages"]] == ["hello there", "good day"]
    made = put("import", odd, *columns)[1]
    assert made["mapping"]["format"] == "prompt_completion" and made["rows"] == 2
    assert put("import", odd, *columns, "--mapping", odd)[0] == 2


def test_xray_shows_tokens_of_a_real_model(put, rows, real):
    model = str(real / "models" / "stories260k")
    code, shown = put("xray", rows, "--model", model, "--row", "2")

    assert code == 0 and shown[0]["row"] == 2
    trained = "".join(t["text"] for t in shown[0]["tokens"] if t["state"] == "trained")
    assert trained == "a1</s>"
    assert (
        put("xray", rows, "--model", str(real / "models" / "stories260k"), "--pick", "odd")[0] == 2
    )


def test_a_file_cannot_repaint_the_terminal(home, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("STUDIO_HOME", str(home.path))
    path = tmp_path / "a.jsonl"
    path.write_text('{"\\u001b[2Jx": 1, "b": 2, "c": 3}\n')

    code, out, err = invoke(capsys, "check", str(path))

    assert code == 2 and "\x1b" not in out + err


def test_the_commands_load_no_torch():
    code = (
        "import sys, ui.cli.main, studio.data.survey, studio.data.importing,"
        "studio.data.curate, studio.data.xray, studio.data.preview;"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
