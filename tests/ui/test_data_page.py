"""The Data page's routes: looking, paged reads, X-ray, steps, uploads; all without torch."""

import importlib
import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from studio.data import dataset_requests
from studio.data.curate_dataset import apply_step, parse_step
from studio.data.import_dataset import import_dataset
from studio.home import Home, open_home
from studio.spec import DataSource
from tests import hub
from tests.served import Served
from ui.data_page import SourcePreview, preview_source

ROWS = [
    {"prompt": f"Say {n} ahoy.", "completion": "Ahoy! " * (n % 7 + 1), "group": n % 3}
    for n in range(60)
]


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    """Sixty rows and a broken line."""
    file = tmp_path_factory.mktemp("rows") / "Ahoy rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"prompt": "cut')
    return file


@pytest.fixture(scope="module")
def dataset(studio, rows_file):
    """The file imported, beside the queue."""
    home = open_home(studio.home)
    return import_dataset(home, DataSource(path=str(rows_file)), name="ahoy").snapshot.meta.name


def refused(studio: Served, path: str, body: object = None) -> str:
    with pytest.raises(urllib.error.HTTPError) as error:
        studio.json(path, body)
    assert error.value.code == 400
    return str(json.loads(error.value.read())["error"]["text"])


def test_a_source_is_looked_at_with_its_guess_and_a_corrected_mapping(studio, rows_file):
    mapping = {
        "format": "question_answer",
        "columns": {"answer": "completion"},
        "templates": {"question": "{group}: {prompt}"},
        "constants": {"system": "Be a pirate."},
    }
    guess = studio.json("/api/data/look", {"path": str(rows_file)})
    assert guess["mapping"]["format"] == "prompt_completion" and guess["reason"]
    assert guess["columns"]["prompt"] == "Say 0 ahoy."
    assert guess["rows"][0]["messages"][0] == {"role": "user", "content": "Say 0 ahoy."}
    found = studio.json("/api/data/look", {"path": str(rows_file), "mapping": mapping})
    said = [message["content"] for message in found["rows"][0]["messages"]]
    assert said == ["Be a pirate.", "0: Say 0 ahoy.", "Ahoy! "]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"path": "/no/such/file.csv"}, "no file"),
        ({"path": ""}, "No dataset is named"),
        ({"path": "starter:parrot"}, "parrot"),
        ({"path": "starter:pirate", "mapping": {"format": "haiku"}}, "Format"),
    ],
)
def test_what_cannot_be_looked_at_is_one_sentence(studio, body, words):
    assert words in refused(studio, "/api/data/look", body)


def test_a_hub_dataset_is_looked_at_part_by_part_before_its_download(monkeypatch, tmp_path, home):
    importlib.import_module("datasets")  # which reads its endpoint once
    with hub.running() as server:
        hub.use(monkeypatch, server, tmp_path / "cache")
        server.datasets["org/rows"] = hub.dataset(300)
        found = preview_source(home, SourcePreview(path="org/rows"))
        assert found["hub"]["part"] == {"subset": "main", "split": "train"}
        assert [part["rows"] for part in found["hub"]["parts"]] == [300, 7]
        assert found["mapping"]["format"] == "question_answer"
        assert found["rows"][1]["messages"][1]["content"] == "2"
        test = SourcePreview(path="org/rows", subset="main", split="test", format="text")
        assert preview_source(home, test)["hub"] == {}


def test_columns_that_nothing_fits_can_still_be_mapped(studio, tmp_path):
    file = tmp_path / "odd.csv"
    file.write_text("colA,colB,colC\n" + "".join(f"what {n}?,so {n},x\n" for n in range(20)))

    found = studio.json("/api/data/look", {"path": str(file)})
    assert found["problem"].endswith(" messages or text.")  # how, a command would say
    assert list(found["columns"]) == ["colA", "colB", "colC"]
    assert found["rows"][0]["row"]["colA"] == "what 0?" and "messages" not in found["rows"][0]

    half = {"format": "question_answer", "columns": {"question": "colA"}}
    found = studio.json("/api/data/look", {"path": str(file), "mapping": half})
    assert '"answer"' in found["problem"] and found["mapping"]["columns"] == {"question": "colA"}


def test_the_list_and_one_dataset(studio, dataset):
    listed = {one["name"]: one for one in studio.json("/api/data")["datasets"]}
    assert listed[dataset]["rows"] == 60 and listed[dataset]["dropped"] == 1
    fields = {one["name"]: one["choices"] for one in studio.json("/api/data")["settings"]}
    assert list(fields) == ["max_length", "train_on", "chat_template", "thoughts"]
    assert fields["train_on"][0] == ["assistant", "every answer"]
    one = studio.json(f"/api/data/{dataset}")
    assert one["findings"]["problems"][0]["line"] == 61
    assert "no imported dataset" in refused(studio, "/api/data/..%5cother")
    page = studio.json(f"/api/data/{dataset}/rows?offset=58&limit=5")
    assert [row["number"] for row in page["rows"]] == [59, 60] and page["total"] == 60


def test_tokens_and_x_ray_agree(studio, dataset):
    made = studio.json(f"/api/data/{dataset}/tokens")
    report = made["report"]
    assert report["rows"]["kept"] == 60 and 0 < report["trained_token_share"] < 1
    (longest,) = studio.json(f"/api/data/{dataset}/xray?pick=longest")["rows"]
    assert longest["num_tokens"] == report["longest"] == len(longest["tokens"])
    (row,) = studio.json(f"/api/data/{dataset}/xray?row=7")["rows"]
    assert row["row"] == 7 and {token["state"] for token in row["tokens"]} == {"masked", "trained"}
    assert "no row 61" in refused(studio, f"/api/data/{dataset}/xray?row=61")


def test_rows_that_two_datasets_share_are_counted(studio, dataset):
    home = open_home(studio.home)
    apply_step(home, dataset, parse_step({"kind": "drop", "rows": [1, 2, 3]}), new_name="fewer")
    # Rows that say the same count once: the answer depends on n modulo 7, the question on n.
    asked = {"name": dataset, "other": "fewer", "most": 10_000}
    assert studio.json("/api/do/data.overlap", asked)["rows"] == 57
    assert "terminal" in refused(studio, "/api/do/data.overlap", asked | {"most": 10})
    assert "absent" in refused(studio, "/api/do/data.overlap", asked | {"other": "absent"})


def test_problems_and_rows_are_downloaded(studio, dataset):
    def lines(path: str) -> list[str]:
        with urllib.request.urlopen(f"{studio.address}/api/data/{dataset}/{path}") as answer:
            assert answer.headers["content-disposition"].startswith("attachment")
            return answer.read().decode().splitlines()

    assert json.loads(lines("problems.jsonl")[0])["line"] == 61
    assert [json.loads(line) for line in lines("export?format=jsonl")] == ROWS
    assert lines("export?format=csv")[0] == "prompt,completion,group"


def test_an_upload_is_kept_under_a_safe_name(studio):
    request = urllib.request.Request(
        f"{studio.address}/api/data/upload?name=..%2F..%2Fmy%20%F0%9F%98%80rows.JSONL",
        b'{"text": "a"}\n', {"content-type": "application/octet-stream"},
    )  # fmt: skip
    with urllib.request.urlopen(request) as answer:
        file = Path(json.loads(answer.read())["path"])
    assert file.parent.parent == dataset_requests.uploads(Home(studio.home))
    assert file.name == "my-rows.jsonl" and file.read_text() == '{"text": "a"}\n'


def test_only_an_uploaded_copy_is_forgotten(home, tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text("{}")
    dataset_requests.forget_upload(home, mine)
    assert mine.exists()
