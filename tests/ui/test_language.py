"""Chinese beside English: every text has a translation, and sentences are recognised by theirs."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from jobs.outcome_figures import figures
from studio.adapters.adapter_lineage import OTHER_BASE
from studio.adapters.gguf import NOTE
from studio.data.column_mapping import Mapping
from studio.data.import_dataset import import_dataset
from studio.spec import DataSource, RunSpec
from tests import catalog
from tests.catalog import texts
from tests.ui.conftest import client_of
from ui import language
from ui.cli.main import main
from ui.data_page import data_routes
from ui.language import LOCALE, PAGES, PART, TEXTS, read_po, say, translated, with_path, with_titles
from ui.queue_routes import Listing, queue_routes
from ui.train_page import train_routes

LANGUAGES = [folder.name for folder in LOCALE.iterdir()]
SOURCES = {PAGES: catalog.page_texts, TEXTS: lambda: {**texts()[0], **texts()[1]}}
PLURAL = re.compile(r"\? '\w*' : '\w*'$|if .* else '\w*'$|^(s|them)$|^'s' \*")


@pytest.fixture
def chinese():
    """The language of this test."""
    token = language.current.set("zh_CN")
    yield
    language.current.reset(token)


@pytest.mark.parametrize("domain", SOURCES)
@pytest.mark.parametrize("name", LANGUAGES)
def test_every_text_is_translated_with_its_fields_and_no_translation_is_stale(name, domain):
    found = SOURCES[domain]()
    known = read_po((LOCALE / name / "LC_MESSAGES" / f"{domain}.po").read_text(encoding="utf-8"))
    assert known.keys() - {""} == found.keys(), "run `python -m tests.catalog`, then translate"
    assert [key for key, words in known.items() if not words] == []
    wrong = {
        key: words
        for key, words in known.items()
        if (lost := fields(key) ^ fields(words)) and not may_be_lost(found[key], lost)
    }
    assert wrong == {}


def fields(text: str) -> set[str]:
    return set(re.findall(r"\{\d\}", text))


def may_be_lost(notes: str, lost: set[str]) -> bool:
    """Return True if all these fields are English plurals."""
    by_field = dict(re.findall(r"(\{\d\}) = (.*?)(?=, \{\d\} = |$)", notes))
    return all(PLURAL.search(by_field.get(field, "")) for field in lost)


def test_every_sentence_is_recognised_by_its_own_key(chinese):
    """A sentence made of its key, as the library makes it, must not match another key first."""
    _, sentences = texts()
    known = language.catalog("zh_CN")
    wrong = []
    for key in sentences:
        if not key.startswith(PART):
            made, wanted = filled(key), filled(known[key])
            if say(made) != wanted:
                wrong.append((made, say(made)))
    assert wrong == []


def filled(text: str) -> str:
    return re.sub(r"\{(\d)\}", lambda found: f"v{found[1]}", text)


def test_errors_that_no_catalog_is_sure_to_hold_only_get_fewer():
    found = catalog.passed_on()
    assert len(found) <= 48, f"write the sentence where the error is raised: {found}"


def test_only_our_own_words_are_translated(chinese):
    answer = {"reason": "by hand", "rows": [{"text": "Rows", "title": "Train"}], "name": "Models"}
    assert translated(answer, "/api/elsewhere") == answer
    for path in ("/api/do/conversations", "/api/do/note"):
        own = {"title": "Runs", "notes": "good"} if "conv" in path else {"notes": "good"}
        assert translated(own, path) == own
    assert say("There is no job Train. `studio runs` lists them.").startswith("没有任务 Train")
    assert say('"Rows" has no curve to export.') == '"Rows" 没有可导出的曲线。'
    assert say("An entirely unknown sentence of three words.") == (
        "An entirely unknown sentence of three words."
    )
    both = say('"x" has no curve to export. The queue is held.')
    assert both == '"x" 没有可导出的曲线。队列已暂缓。'
    columns = [{"title": "Rows: Held-out loss"}, {"title": "Name"}]
    shown = translated({"columns": columns}, "/api/do/results")["columns"]
    assert [one["title"] for one in shown] == ["Rows: 留出集损失", "名称"]
    field = {
        "name": "r",
        "title": "Rank (r)",
        "choices": [["none", "none"]],
        "words": {"never": -1},
    }
    shown = translated({"fields": [field]}, "/api/actions")["fields"][0]
    assert shown["title"] == "秩（r）" and shown["name"] == "r"
    assert shown["choices"][0][0] == "none" and shown["words"] == {"从不": -1}


OWN = {"title": "Train", "text": "Rows", "label": "Yes", "reason": "Models", "problem": "Name"}
ROW = OWN | {"choices": ["Rows", 1, ["a"]], "words": {"never": -1}}
MAPPING = {"format": "labelled", "columns": {"text": "text", "label": "label"},
           "constants": {"system": "Models"}}  # fmt: skip
OURS = {"problem", "reason", "findings"}  # keys of ours beside those of users


@pytest.mark.parametrize(
    "path, body",
    [
        ("/api/data/look", {"path": "FILE", "mapping": MAPPING}), ("/api/data/own", None),
        ("/api/data/own/rows", None), ("/api/data/own/xray", None),
        ("/api/do/data.map", {"source": "own", "whole": MAPPING}),
        ("/api/do/data.xray", {"source": "own"}), ("/api/train/rows", {"set": ["data.path=own"]}),
    ],
)  # fmt: skip
def test_data_of_the_user_is_as_it_was(home, store, tmp_path, chinese, path, body):
    """Rows, tokens, columns and mappings keep their words and their shape."""
    assert all(say(word) != word for word in OWN.values())
    (file := tmp_path / "own.jsonl").write_text(json.dumps(ROW) + "\n")
    mapping = Mapping.parse(MAPPING)
    import_dataset(home, DataSource(path=str(file)), name="own", mapping=mapping)
    page = client_of(data_routes(home, store), queue_routes(home, store), train_routes(home, store))
    body = body and {key: str(file) if one == "FILE" else one for key, one in body.items()}
    before = (page.post(path, json=body) if body else page.get(path)).json()
    assert "Rows" in json.dumps(before) or "tokens" in json.dumps(before), before
    after = translated(before, path)
    if isinstance(before, dict):
        before, after = ({k: v for k, v in one.items() if k not in OURS} for one in (before, after))
    assert after == before


def test_reasons_of_the_queue_and_notes_of_an_export_are_translated(chinese):
    """What a job waits for and why it was held is stored as it was made, in English."""
    item = {"waits": 'It waits for "Rows", which is paused.', "note": NOTE}
    queue = {"held": '"Rows" failed, and the queue stops at an error.', "short": ""}
    events = [{"why": 'it needs "Rows", which is failed'}, {"why": "process 7"}]
    answer = {
        "jobs": {"items": [item], "queue": queue}, "detail": {"content": {"events": events}},
    }  # fmt: skip
    shown = translated(answer, "/api/live")
    assert shown["jobs"] == {
        "items": [{"waits": '正在等待已暂停的 "Rows"。', "note": say(NOTE)}],
        "queue": queue | {"held": '"Rows" 失败，队列按设置在出错时停止。'},
    }
    assert [one["why"] for one in shown["detail"]["content"]["events"]] == [
        '它需要 "Rows"，而后者已失败', "进程 7",
    ]  # fmt: skip
    other = OTHER_BASE.format(adapter="Rows", model="Models")
    notes = figures("gguf", {"check": {"notes": [NOTE, other]}})
    assert [words for _, words in notes] == [say(NOTE), say(other)] != [NOTE, other]
    assert say(NOTE).startswith("请与其基座模型的 GGUF 文件一起使用：`llama-server")


def test_words_of_users_stay_where_keys_are_like_ours(chinese):
    token, talk = {"text": "Rows", "choices": [1]}, [{"role": "user", "content": "Rows", **OWN}]
    label = {"models": [{"label": "Models", "path": "Models"}]}
    for path, answer in {
        "/api/live": {"detail": {"content": [OWN]}, "jobs": {"items": [{"notes": "Rows"}]}},
        "/api/do/data.xray": [{"tokens": [token], "text": "Rows", "lost": [token]}],
        "/api/data/own/xray": {"rows": [{"tokens": [token], "text": "Rows"}]},
        "/api/data/own/rows": {"rows": [{"row": OWN, "messages": talk, "tools": [OWN]}]},
        "/api/do/suite": {"rows": [OWN], "spec": OWN},
        "/api/outcome/1": {"outcome": {"rows": [OWN]}}, "/api/do/judge": {"rows": [OWN]},
        "/api/do/adapters.show": {"passport": OWN, "tags": ["Rows"]},
        "/api/adapters": label, "/api/chat/choices": label, "/api/chat/branch": OWN,
    }.items():  # fmt: skip
        assert translated(answer, path) == answer, path


@pytest.mark.parametrize("text", ["\n", " or ", " · ", "\nNobody.\n\n", "  two  blanks, unknown? "])
def test_what_is_not_known_and_empty_parts_stay_as_they_are(chinese, text):
    assert say(text) == text
    assert say(f"The queue is held.\n\n{text}").startswith("队列已暂缓。\n\n")


def test_a_text_of_many_sentences_is_said_quickly(chinese):
    text = " ".join(f"A sentence {number} of ours." for number in range(300))
    begun = time.perf_counter()
    assert say(text) == text and say("Rows. " * 10**5) == "Rows. " * 10**5
    assert time.perf_counter() - begun < 0.4


@pytest.mark.parametrize("size", [1, 2**17])
def test_a_large_answer_is_translated_beside_the_loop_of_the_server(monkeypatch, size):
    loop, said, app = [], [], FastAPI()

    @app.get("/api/data/own/rows")
    async def rows():
        loop.append(threading.get_ident())
        return {"rows": [{"problem": "no", "text": "x" * size}]}

    def recorded(text: str) -> str:
        said.append(threading.get_ident())
        return f"{text} {language.current.get()}"

    monkeypatch.setattr(language, "say", recorded)
    client = TestClient(language.Language(app), headers={"accept-language": "zh-CN"})
    row = client.get("/api/data/own/rows").json()["rows"][0]
    assert row == {"problem": "no zh_CN", "text": "x" * size}
    assert (said == loop) is (size == 1)


def test_a_report_is_written_in_the_language_of_its_request(home, store):
    store.submit(RunSpec(name="one"))
    app = FastAPI()
    app.include_router(queue_routes(home, store))
    for asked, wanted in (("zh-CN", '<html lang="zh-CN">'), ("de", '<html lang="en">')):
        client = TestClient(language.Language(app), headers={"accept-language": asked})
        html = client.post("/api/do/report", json={"jobs": ["one"]}).json()["html"]
        assert wanted in html and ("<h2>设置</h2>" in html) is (asked == "zh-CN")


def test_tabs_of_two_languages_do_not_share_rows(home, store, monkeypatch):
    """A request in English that comes amid a Chinese one leaves its rows alone."""
    store.submit(RunSpec(name="one"))
    listing, inner = Listing(home, store), []
    monkeypatch.setattr("ui.queue_routes.job_row",
                        lambda j, _: {"id": j.id, "in": language.current.get()})  # fmt: skip

    def asked(spoken: str) -> str:
        token = language.current.set(spoken)
        found = listing.since("")["items"][0]["in"]
        language.current.reset(token)
        return found

    def interrupted(ids, shown=listing._shown):
        if not inner:
            inner.append("")
            inner[0] = asked("en")
        return shown(ids)

    monkeypatch.setattr(listing, "_shown", interrupted)
    assert (asked("zh_CN"), *inner, asked("en")) == ("zh_CN", "en", "en")


@pytest.mark.parametrize(
    "headers, wanted",
    [
        ({}, "en"),
        ({"accept-language": "de,zh;q=0.5"}, "en"),
        ({"accept-language": "zh-CN,en;q=0.5"}, "zh_CN"),
        ({"accept-language": "zh-CN", "cookie": "a=b; studio-language=en"}, "en"),
        ({"cookie": "studio-language=zh_CN"}, "zh_CN"),
        ({"cookie": "studio-language=../x"}, "en"),
    ],
)
def test_a_request_is_answered_in_the_language_of_its_cookie_or_browser(headers, wanted):
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert language.wanted({"headers": raw}) == wanted


@pytest.mark.parametrize(
    "environment, wanted",
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh_CN"),
        ({"LANG": "zh_TW.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "de_DE.UTF-8", "STUDIO_LANG": "zh"}, "zh_CN"),
    ],
)
def test_a_command_says_its_errors_in_the_language_of_the_terminal(
    environment, wanted, monkeypatch, capsys
):
    for name in ("STUDIO_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert language.of_terminal() == wanted
    for arguments, said in ((["trian"], "没有命令"), (["trian", "--json"], "There is no command")):
        with pytest.raises(SystemExit):
            main(arguments)
        out, err = capsys.readouterr()
        expected = said if wanted == "zh_CN" else "There is no command"
        assert expected in (out or err)
    language.current.set("en")


def test_a_refusal_of_several_fields_is_translated_whole(chinese):
    text = "data.max_length is 'x': input should be a whole number. method.r is 0: input should be "
    assert say(text + "greater than or equal to 1.") == (
        "data.max_length 为 'x'：输入应为整数。method.r 为 0：输入应为大于或等于 1。"
    )


def test_a_field_is_named_by_its_title_in_the_language_of_the_page(chinese):
    assert with_titles("There is no job 7. Lower train.learning_rate.").endswith("“学习率”.")
    assert (
        with_titles("method.r is 0: input should be a whole number.") == "“秩” 为 0：输入应为整数。"
    )


def test_a_page_reads_a_setting_as_its_own_sentences_write_it():
    assert with_path(with_titles("method.r=16")) == "method.r= 16"
    assert with_path("Rank = 4, 8") == "method.r= 4, 8"


@pytest.mark.parametrize(
    "name, first", [("STUDIO_LANG", "训练适配器"), ("LANG", "Train an adapter")]
)
def test_the_help_of_a_command_is_chinese_only_where_it_was_asked_for(name, first):
    environment = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "ui.cli.main", "train", "--help"],
        env={**environment, name: "zh_CN.UTF-8", "PYTHONUTF8": "1"}, cwd=catalog.ROOT,
        capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert first in done.stdout
