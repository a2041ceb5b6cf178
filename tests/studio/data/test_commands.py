"""Every data command: what it prints, its exit codes, and that a terminal is never repainted."""

import json

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
    wrong = put("import", rows, "--mapping", str(tmp_path / "mapping.json"), "--format", "text")[1]
    assert "not both" in wrong["error"]["text"]
    for wrong, said in (
        ('{"format": 3}', "cannot be used. format is 3: input should be 'messages'"),
        ("a,b\n1,2\n", "is not a mapping file: give what"),
        ("[1]", "is not a mapping file: give what"),
    ):
        (tmp_path / "mapping.json").write_text(wrong)
        code, answer = put("import", rows, "--mapping", str(tmp_path / "mapping.json"))
        assert code == 2 and said in answer["error"]["text"]


def test_xray_shows_tokens_of_a_real_model(put, rows, real):
    model = str(real / "models" / "stories260k")
    code, shown = put("xray", rows, "--model", model, "--row", "2")

    assert code == 0 and shown[0]["row"] == 2
    trained = "".join(t["text"] for t in shown[0]["tokens"] if t["state"] == "trained")
    assert trained == "a1</s>"


def test_a_file_cannot_repaint_the_terminal(home, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("STUDIO_HOME", str(home.path))
    path = tmp_path / "a.jsonl"
    path.write_text('{"\\u001b[2Jx": 1, "b": 2, "c": 3}\n')

    code, out, err = invoke(capsys, "check", str(path))

    assert code == 2 and "\x1b" not in out + err
