"""Every action asked in three ways - command line, HTTP, a page's dialog - answers alike.

Each story is played on three equal homes, one for each way. The command's words are made from the
same values, so that a row says once what is asked and what comes of it: a text is a part of the
sentence of a refusal, a dict or a list what the answer must at least hold, `...` anything but
nothing.
"""

import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs import job_kinds
from jobs.actions import ACTIONS, ask
from jobs.actions.registry import schema
from jobs.compare_tables import Conversations
from jobs.job_queue import JobStore
from jobs.run_curves import Progress
from studio.errors import StudioError
from studio.home import open_home
from tests.jobs.conftest import a_spec, begin, run_one
from tests.ui.conftest import client_of, put_adapter
from ui.cli.main import app, main
from ui.language import with_titles
from ui.queue_routes import queue_routes

WAYS = ("command", "http", "dialog")
Row = tuple[str, dict[str, Any], Any]


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return values by the dotted names that commands and dialogs know."""
    found = {}
    for name, value in values.items():
        nested = flat(value) if isinstance(value, dict) else {"": value}
        found |= {f"{name}.{inner}".rstrip("."): one for inner, one in nested.items()}
    return found


def words_of(name: str, values: dict[str, Any]) -> list[str]:
    """Return the command that asks for an action with these values."""
    fields = {one.path: one for one in ACTIONS[name].fields}
    words = [*name.split("."), *(["--detach"] if ACTIONS[name].follow else [])]
    for path, value in flat(values).items():
        one = fields[path]
        for each in value if isinstance(value, list) else [value]:
            text = f"{each['name']}:{each['weight']}" if isinstance(each, dict) else str(each)
            flag = [] if one.positional else [one.flag]
            words += flag if each is True else [*flag, text]
    return words


class Studio:
    """A home that is asked in one way."""

    def __init__(self, way: str, folder: Path) -> None:
        self.way, self.folder = way, folder
        self.home = open_home(folder / "home")
        self.store = JobStore(self.home)
        self.page = client_of(queue_routes(self.home, self.store))

    def ask(self, name: str, values: dict[str, Any]) -> tuple[bool, Any]:
        """Return if it was refused, and the answer; `DIR` stands for the folder on both ways."""
        values = json.loads(json.dumps(values).replace("DIR", str(self.folder)))
        if self.way == "command":
            refused, text = self._command(words_of(name, values))
        else:
            dialog = self.way == "dialog"
            if dialog:
                values = flat(values)
                assert set(values) <= {one["name"] for one in schema(ACTIONS[name])["fields"]}
            answer = self.page.post(f"/api/do/{name}", json=values)
            assert answer.status_code in (200, 400), answer.text
            refused, text = answer.status_code == 400, answer.text
        answer = json.loads(text.replace(str(self.folder), "DIR"))
        if not refused and self.way != "command" and ACTIONS[name].here and "state" in answer:
            answer = self._carried_out(answer["id"])
        return refused, answer

    def states(self) -> dict[str, str]:
        """Return the states of the jobs that no way of asking performs by itself."""
        jobs = self.store.list()
        return {job.name: job.state for job in jobs if job.kind not in job_kinds.FILE_KINDS}

    def _command(self, words: list[str]) -> tuple[bool, str]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
            main([*words, "--home", str(self.home.path), "--json"])
        assert ended.value.code in (None, 0, 2), out.getvalue()
        return ended.value.code == 2, out.getvalue()

    def _carried_out(self, number: int) -> Any:
        """Do the work of a job, as its runner would, and return what it made."""
        claim = begin(self.store, job_kinds.FILES, wanted=[job_kinds.FILES])
        assert claim.job == number
        job = self.store.get(number)
        work = job_kinds.Work(spec=job.spec, run_dir=self.home.run(number), home=self.home,
                          control=lambda: None)  # fmt: skip
        *_, last = job_kinds.named(job.kind)(work)
        self.store.claims.finish(claim, "succeeded", result={**(last.facts or {})})
        answer = self.page.get(f"/api/outcome/{number}").text.replace(str(self.folder), "DIR")
        return json.loads(answer)["outcome"]


@pytest.fixture
def studios(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.supervisor.ensure_running", lambda _: 0)
    opened = [Studio(way, tmp_path / way) for way in WAYS]
    yield opened
    for one in opened:
        one.store.close()


def holds(wanted: Any, got: Any) -> bool:
    """Return True if an answer is at least what was wanted."""
    if wanted is ...:
        return bool(got)
    if isinstance(wanted, dict) and wanted:
        return all(name in got and holds(one, got[name]) for name, one in wanted.items())
    if isinstance(wanted, list) and isinstance(got, list):
        return len(wanted) == len(got) and all(map(holds, wanted, got))
    return bool(wanted == got)


VOLATILE = {"start_after", "time", "created", "deleted", "saved", "updated", "token", "seconds",
            "position", "seconds_left", "free_bytes", "disk_bytes", "bytes", "parts", "file",
            "findings", "field", "diagnostics"}  # fmt: skip
"""Clocks, sizes, and where a page shows an error."""


def stable(value: Any, like: Any, name: str) -> Any:
    """Return an answer without clocks and sizes, and of a job without what only pages are shown.

    Of a mistake, pages get the field too, and fields by their titles in its sentence.
    """
    if isinstance(value, list) and isinstance(like, list) and len(value) == len(like):
        return [stable(one, other, name) for one, other in zip(value, like, strict=True)]
    if not isinstance(value, dict) or not isinstance(like, dict):
        return value
    names = (set(value) & set(like) if "retries_left" in value else set(value)) - VOLATILE
    if {"kind", "text"} <= names:
        titles = {one.path: one.title for one in ACTIONS[name].fields}
        return {"kind": value["kind"], "text": with_titles(value["text"], titles)}
    return {key: stable(value[key], like.get(key), name) for key in sorted(names)}


# -- stories ---------------------------------------------------------------------------------------


def three_jobs(studio: Studio) -> None:
    for name in "abc":
        studio.store.submit(a_spec(name=name, steps=7))


def order(*numbers: int) -> Row:
    return "queue", {}, {"jobs": [{"id": number} for number in numbers]}


ORDER: list[Row] = [
    ("move", {"job": "c", "first": True}, {"name": "c", "place": 1}),
    order(3, 1, 2),
    ("move", {"job": "c", "last": True}, {"place": 3}),
    order(1, 2, 3),
    ("move", {"job": 2, "before": "a"}, {"name": "b", "place": 1}),
    order(2, 1, 3),
    ("move", {"job": "b", "by": 2}, {"place": 3}),
    order(1, 3, 2),
    ("move", {"job": "a"}, "Give exactly one place"),
    ("move", {"job": "nothing", "by": -1}, 'no job called "nothing"'),
    ("queue", {"hold": True, "on_error": "stop"}, {"held": ..., "on_error": "stop"}),
    ("queue", {"hold": True}, "already held"),
    ("queue", {"hold": True, "release": True}, "not both"),
    ("queue", {"release": True}, {"held": None}),
    ("hold", {"job": "b"}, {"state": "paused"}),
    ("release", {"job": "b"}, {"state": "queued"}),
    ("pause", {"job": "b"}, {"state": "paused"}),
    ("resume", {"job": "b"}, {"state": "queued"}),
    ("resume", {"job": "b"}, '"b"'),
    ("hold", {}, "Give the job to hold"),
    ("cancel", {"job": "c", "drop": True}, {"state": "cancelled"}),
    ("cancel", {"job": "c"}, "cannot be cancelled"),
    ("move", {"job": "c", "by": -1}, "only waiting jobs"),
    ("delete", {"job": "c"}, {"deleted": 3, "name": "c"}),
    ("show", {"job": "c"}, 'no job called "c"'),
    ("runs", {}, [{"name": "b"}, {"name": "a"}]),
    ("runs", {"state": ["quedued"]}, "queued"),
]

PLANS: list[Row] = [
    ("schedule", {"job": "b", "at": "+2h", "when": "night", "needs": ["a"], "retries": 2},
     {"start_after": ..., "start_when": "night", "needs": [1], "retries_left": 2}),
    *[("schedule", {"job": "b", **wrong}, words) for wrong, words in (
        ({"at": "soon"}, "Cannot parse"), ({"at": "2001-01-01"}, "in the past"),
        ({"needs": [99]}, "no job number 99"), ({"needs": ["b"]}, "only wait for jobs older"),
        ({"retries": 11}, "retries is 11"), ({"retries": -1}, "retries is -1"),
        ({"needs": ["a"], "at": "2001-01-01 00:00"}, "in the past"),
    )],
    ("show", {"job": "b"}, {"start_when": "night", "needs": [1], "retries_left": 2}),
    ("schedule", {"job": "b", "needs": ["none"]}, {"start_when": "night", "needs": []}),
    ("schedule", {"job": "b", "when": "idle"}, {"start_after": ..., "start_when": "idle"}),
    ("schedule", {"job": "b", "when": "any"}, {"start_after": ..., "start_when": ""}),
    ("schedule", {"job": "b", "at": "", "when": "night"},
     {"start_after": None, "start_when": "night"}),
    ("schedule", {"job": "b", "at": "+3h"}, {"start_after": ..., "start_when": "night"}),
    ("schedule", {"job": "b"}, {"start_after": None, "start_when": ""}),
    ("schedule", {"job": "b", "anyway": True}, "does not wait for memory"),
    ("schedule", {"job": "b", "needs": ["c"]}, "only wait for jobs older"),
    ("note", {"job": "a", "text": "<b>x</b>", "tag": ["x", "x", "y"]},
     {"notes": "<b>x</b>", "tags": ["x", "y"]}),
    ("note", {"job": "a", "untag": ["x"]}, {"notes": "<b>x</b>", "tags": ["y"]}),
    ("note", {"job": "a", "text": "x" * 20_000}, "text"),
    ("save", {"job": "b"}, "only a running training"),
    ("sample", {"job": "b"}, "only a running training"),
    ("extend", {"job": "a", "steps": 5}, "Resume it instead"),
    ("cancel", {"job": "a"}, {"state": "cancelled"}),
    ("schedule", {"job": "b", "needs": ["a"]}, "never start"),
    ("duplicate", {"job": "a", "set": ["method.r=2"], "name": "mine"},
     {"name": "mine", "parent": 1}),
    ("train", {"retries": 2, "hold": True, "set": ["train.max_steps=3"]},
     {"state": "paused", "retries_left": 2}),
    ("train", {"retries": 11, "hold": True}, "retries is 11"),
    ("runs", {}, [..., {"name": "mine"}, ..., ..., ...]),
    ("webhook", {}, {"webhook": None, "kept": ""}),
    ("webhook", {"url": "https://example.org/a?k=s3cret"},
     {"webhook": "https://example.org/…", "kept": "file"}),
    ("webhook", {"url": "nonsense"}, "webhook is an address"),
    ("webhook", {"off": True}, {"webhook": None, "kept": ""}),
]  # fmt: skip

MANY = ",".join(map(str, range(1, 101)))
SWEEPS: list[Row] = [
    ("sweep", {"name": "ranks", "over": ["method.r=4,8", "seed=[0, 1]"], "like": "a"},
     {"sweep": "ranks", "jobs": [{"name": "ranks r=4 seed=0", "sweep": "ranks"}, ..., ..., ...]}),
    ("sweep", {"name": "drawn", "over": ["method.r=1,2,3,4"], "random": 2, "retries": 2},
     {"jobs": [{"retries_left": 2}, {"retries_left": 2}]}),
    ("sweep", {"name": "rates", "set": ["method.r=4", "name=mine"],
               "over": ["train.learning_rate=0.001,0.002"]},
     {"jobs": [{"name": "rates learning_rate=0.001"}, {"name": "rates learning_rate=0.002"}]}),
    *[("sweep", {"name": "x", "over": ["seed=1"]} | wrong, words) for wrong, words in (
        ({"over": [f"seed={MANY}", f"method.r={MANY}", f"train.max_steps={MANY}"]},
         "1,000,000 points; 1,000 is"),
        ({"over": ["seed=[" + ",".join(map(str, range(2000))) + "]"]}, "2,000 points"),
        ({"over": ["method.rank=1,2"]}, "method.r"), ({"over": ["method.rr=1"]}, "rr"),
        ({"over": ["method.r=0,4"]}, "method.r"), ({"over": ["method.r="]}, "has no values"),
        ({"over": ["method.r"]}, "is not an assignment"), ({"over": ["method.r=4,4"]}, "twice"),
        ({"name": " "}, "needs a name"), ({"set": ["method.nothing=1"]}, "nothing"),
        ({"like": 99}, "no job number 99"), ({"name": "ranks"}, "Choose another name"),
    )],
    ("hold", {"sweep": "ranks"}, {"sweep": "ranks", "changed": 4}),
    ("hold", {"sweep": "ranks"}, "in a state to hold"),
    ("release", {"sweep": "ranks"}, {"changed": 4}),
    ("release", {"sweep": "ranks"}, "in a state to release"),
    ("release", {"sweep": "nobody"}, "no sweep"),
    ("cancel", {"sweep": "ranks"}, {"sweep": "ranks", "changed": 4}),
    ("bakeoff", {"name": "duel", "methods": "lora,ia3", "set": ["train.max_steps=3"]},
     {"name": "duel", "rows": [{"method": "lora", "state": "queued"}, {"method": "ia3"}]}),
    ("bakeoff", {"name": "duel", "methods": "lora"}, "already"),
    ("bakeoff", {"show": "duel"}, {"rows": [{"method": "lora", "state": "queued"}, ...]}),
    ("bakeoff", {"show": "x"}, "no bake-off"),
    ("runs", {"limit": 4}, [{"kind": "bakeoff"}, ..., {"sweep": "duel"}, {"sweep": "rates"}]),
]  # fmt: skip


def running(studio: Studio) -> None:
    studio.store.submit(a_spec(name="ended"))
    run_one(studio.store)
    studio.store.submit(a_spec(name="runs"))
    studio.store.claims.report(begin(studio.store), Progress(step=2, total_steps=20))


RUNNING: list[Row] = [
    ("save", {"job": "runs"}, {"state": "running"}),
    ("sample", {"job": "runs"}, {"state": "running"}),
    ("delete", {"job": "runs"}, "Cancel it first"),
    ("show", {"job": 2}, {"step": 2, "total_steps": 20}),
    ("cancel", {"job": "ended"}, "cannot be cancelled"),
    ("resume", {"job": "ended"}, "`studio extend 1` trains it"),
    ("extend", {"job": "ended", "steps": 5}, "has no checkpoint"),
    (
        "then",
        {"job": "runs", "data": "starter:terse", "loss": "sft", "name": "next"},
        {"state": "queued", "parent": 2, "needs": [2]},
    ),
    ("then", {"job": "runs", "data": "starter:terse"}, "needs pairs of chosen and rejected"),
    ("schedule", {"job": "ended", "when": "night"}, "only waiting jobs"),
]


def two_adapters(studio: Studio) -> None:
    for name in "ab":
        put_adapter(studio.home.adapters / name, name)


ONE = [{"name": "a", "weight": 1.0}]
ADAPTERS: list[Row] = [
    ("adapters", {}, [{"id": ...}, {"id": ...}]),
    ("adapters.rename", {"adapter": "library-a", "name": "Sea"}, {"id": "library-sea"}),
    ("adapters.rename", {"adapter": "library-b", "name": "sea"}, "already"),
    ("adapters.tag", {"adapter": "library-sea", "tags": ["x", " y "]}, {"tags": ["x", "y"]}),
    ("adapters.show", {"adapter": "Sea"}, {"name": "Sea", "tags": ["x", "y"], "picture": None}),
    ("adapters.delete", {"adapter": "library-sea"}, {"deleted": "Sea", "token": ...}),
    ("adapters", {}, [{"name": "b"}]),
    ("adapters.trash", {}, [{"name": "Sea"}]),
    ("adapters.undo", {"adapter": "Sea"}, {"name": "Sea", "tags": ["x", "y"]}),
    ("adapters.undo", {}, "nothing to restore"),
    ("adapters.rename", {"adapter": "library-sea", "name": "a"}, {"name": "a"}),
    ("mix", {"stack": ONE}, "name"),
    ("mix", {"name": "m", "stack": [{"name": "q", "weight": 1.0}]}, 'no adapter "q"'),
    ("mix", {"name": "m", "stack": ["a:99"]}, "not a weight between"),
    ("mix", {"name": "m", "stack": ONE}, {"kind": "mix", "state": "queued"}),
    ("adapters.picture", {"adapter": "a"}, {"name": "picture a"}),
    ("adapters.delete", {"adapter": "library-a"}, 'is queued and needs "a"'),
    ("adapters.rename", {"adapter": "library-a", "name": "z"}, 'is queued and needs "a"'),
    ("cancel", {"job": "picture a"}, {"state": "cancelled"}),
    ("merge", {"stack": ONE}, {"name": "merge a"}),
    ("merge", {"stack": ONE}, '"merge a" (number 3) is queued and will create'),
    ("merge", {"name": "other", "stack": ONE}, {"state": "queued"}),
    ("cancel", {"job": 3}, {"state": "cancelled"}),
    ("merge", {"stack": ONE}, {"name": "merge a-2"}),
    ("import", {"source": "org/sea"}, {"name": "import sea", "kind": "import_adapter"}),
    ("import", {"source": "org/name", "name": "a"}, "already an adapter"),
    ("import", {"source": "org/name", "model": {"path": "/no/model"}}, "no model folder"),
    ("import", {"source": " "}, "no adapter folder"),
]


def a_conversation(studio: Studio) -> None:
    (studio.folder / "cases.csv").write_text("prompt,expected\nHi.,Yes.\n ,Lost\n")
    kept = Conversations(studio.store.database)
    lanes = [{"model": "starter", "stack": []}, {"model": "starter", "stack": [{"name": "p"}]}]
    kept.save("abc", lanes=lanes, settings={})
    answers = [{"text": "moo", "lane": "starter"}, {"text": "<b>", "lane": "starter~p:1"}]
    kept.save_turn("abc", 0, prompt="What says a cow?", answers=answers)


def verdicts(*marks: str | None) -> Row:
    answers = [{"verdict": mark} if mark else ... for mark in marks]
    return "conversations", {"show": "abc"}, {"turns": [{"answers": answers}]}


COMPARE: list[Row] = [
    ("conversations", {"search": "COW"}, [{"id": "abc"}]),
    ("vote", {"conversation": "abc", "turn": 1, "verdict": "b"}, {"verdict": "b"}),
    verdicts("lost", "won"),
    ("leaderboard", {}, {"standings": [{"lane": "starter~p:1"}, {"lane": "starter"}], "votes": 1}),
    ("data.votes", {"name": "liked"}, {"name": "liked", "format": "preference", "rows": 1,
                                       "original": {"name": "Votes on Compare.jsonl"}}),
    ("data.map", {"source": "liked"}, {"rows": [{
        "messages": [{"content": "What says a cow?"}], "chosen": [{"content": "<b>"}],
        "rejected": [{"content": "moo"}]}]}),
    ("data.votes", {"kind": "judged", "until": "2999-12-31"}, {"format": "judged", "rows": 2}),
    ("data.votes", {"kind": "answers", "lane": "starter~p"}, {"format": "messages", "rows": 1}),
    ("data.votes", {"kind": "answers", "unvoted": True}, {"rows": 2}),
    ("data.votes", {"lane": "starter"}, "None of the 1 turns gives a row."),
    ("data.votes", {"blind": True}, "None of the 0 turns"),
    ("data.votes", {"since": "soon"}, '"soon" is not a day'),
    ("leaderboard", {"blind": True}, {"votes": 0}),
    ("vote", {"conversation": "abc", "turn": 1, "verdict": "bad"}, {"verdict": "bad"}),
    ("leaderboard", {}, {"standings": [{"bad": 1}, {"bad": 1}], "votes": 1}),
    ("leaderboard", {"out": "DIR/board.html"}, {"votes": 1}),
    ("runs.export", {"jobs": ["9"]}, "no job number 9"),
    ("runs.export", {"jobs": ["9"], "to": "tensorbord"}, 'Did you mean "tensorboard"'),
    ("report", {"conversation": "abc"}, {"name": "conversation-abc.html", "html": ...}),
    ("report", {"conversation": "abc", "out": "DIR/talk.html"}, {"out": "DIR/talk.html"}),
    ("report", {"conversation": "abc", "out": "DIR/talk.html"}, "exists already"),
    ("report", {"jobs": ["nothing"]}, 'no job called "nothing"'),
    ("leaderboard", {"out": "x.pdf"}, "must end in"),
    ("vote", {"conversation": "abc", "turn": 1, "verdict": "none"}, {"verdict": "none"}),
    ("leaderboard", {}, {"votes": 0}),
    ("vote", {"conversation": "abc", "turn": 1, "verdict": "C"}, "Invalid verdict"),
    ("vote", {"conversation": "abc", "turn": 2, "verdict": "A"}, "no turn 2"),
    ("vote", {"conversation": "xyz", "turn": 1, "verdict": "A"}, "no conversation"),
    ("conversations", {"show": "xyz"}, "no conversation"),
    ("recipes", {"save": "half", "lane": "starter~p:0.5+a%20b:-1"},
     [{"stack": [{"name": "p", "weight": 0.5}, {"name": "a b", "weight": -1.0}]}]),
    ("recipes", {"save": "half", "lane": "starter~p:0.25"},
     [{"name": "half", "model": "starter", "stack": [{"name": "p", "weight": 0.25}]}]),
    ("recipes", {"save": "base", "lane": "starter"}, "at least one adapter"),
    ("recipes", {"save": "x", "lane": "m~p:99"}, "99"),
    ("recipes", {"save": "x" * 121, "lane": "m~p"}, "save"),
    ("recipes", {"save": " ", "lane": "m~p"}, "name"),
    ("recipes", {"delete": "half"}, []),
    ("recipes", {"delete": "half"}, "no recipe"),
    ("promote", {"checkpoint": "1@5"}, "has no checkpoint"),
    ("promote", {"checkpoint": "last"}, "not a checkpoint"),
    ("suite", {"show": "9"}, "9"),
    ("suite", {"file": "/no/such/file"}, "There is no file"),
    ("suite", {"file": "DIR/cases.csv", "check": True},
     {"cases": [{"prompt": "Hi.", "expected": "Yes."}],
      "left_out": [{"line": 3, "text": '"prompt" is empty.'}]}),
    ("suite", {}, []),
    ("judge", {}, []),
    ("judge", {"suite": "9"}, "9"),
    ("judge", {"show": "9"}, "9"),
    ("data.votes", {"source": "9"}, "9"),
    ("data.votes", {"source": "9", "blind": True}, "leave them out for the verdicts"),
    ("conversations", {"delete": "abc"}, {"deleted": "abc"}),
    ("conversations", {}, []),
    ("conversations", {"delete": "abc"}, "no conversation"),
]  # fmt: skip


def rows_and_a_folder(studio: Studio) -> None:
    lines = [json.dumps({"question": f"q{i}", "answer": f"a{i}"}) for i in range(20)]
    (studio.folder / "rows.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n")
    (studio.folder / "shelf").mkdir()
    (studio.folder / "odd.csv").write_text("A,B,C\nhello there,good day,one\nbye,farewell,two\n")
    old = studio.home.run(77)  # a folder that no run has
    old.mkdir()
    (old / "log.txt").write_text("x" * 500)
    os.utime(old, (1, 1))


ROWS, MINE = {"source": "DIR/rows.jsonl"}, {"name": "my-rows"}
TWO = ["prompt=A", "completion=B"]
DATA: list[Row] = [
    ("data.import", ROWS | {"name": "My Rows"}, {"name": "my-rows"}),
    ("data.import", ROWS, {"name": "my-rows", "already": True}),
    ("data.split", MINE | {"count": 4}, {"validation_rows": 4}),
    ("data.filter", MINE | {"column": "answer", "operator": "contains", "value": "a1"},
     {"rows": 11}),
    ("data.filter", MINE | {"column": "answer", "operator": "like"}, "operator"),
    ("data.dedupe", MINE, {"already": True}),
    ("data.dedupe", {"name": "nothing"}, "no imported dataset"),
    ("data.drop", MINE | {"row": [1]}, {"rows": 19}),
    ("data.map", {"source": "my-rows", "column": ["question=answer", "answer=question"]},
     {"rows": [{"messages": [{"content": "a0"}, {"content": "q0"}]}, ..., ...]}),
    ("data.map", {"source": "my-rows", "constant": ["system=S"], "save": True},
     {"step": {"kind": "remap"}}),
    ("data.list", {}, [..., ..., ..., ..., ...]),
    ("data.import", {"source": "starter:terse", "name": "some", "rows": 5, "pick": "random"},
     {"rows": 5, "step": {"kind": "part", "pick": "random"}}),
    ("data.mix", {"sources": ["some:1,my-rows:2"], "name": "both", "rows": 9},
     {"rows": 9, "step": {"sources": [{"name": "some", "rows": 3}, {"rows": 6, "of": 20}]}}),
    ("data.mix", {"sources": ["some"]}, "2 to 32 datasets"),
    ("data.mix", {"sources": ["some", "/no/such.jsonl"]}, "/no/such.jsonl"),
    ("data.delete", {"name": "some"}, {"deleted": "some"}),
    ("data.delete", {"name": "both"}, {"deleted": "both", "token": ...}),
    ("data.undo", {}, {"name": "both"}),
    ("data.undo", {"dataset": "both"}, 'no "both" in the trash. Known: some'),
    ("data.delete", {"name": "both"}, {"deleted": "both"}),
    ("data.search", {"words": "rows"}, "hub cannot be reached"),
    ("data.show", {"dataset": "org/rows"}, "cannot be reached"),
    ("data.export", MINE | {"target": "DIR/out.jsonl"}, {"rows": 20}),
    ("data.export", MINE | {"target": "DIR/out.jsonl", "part": "validation"}, "exists already"),
    ("data.export", MINE | {"target": "DIR/out.jsonl", "force": True}, {"rows": 20}),
    ("data.export", MINE | {"target": "DIR/new.csv", "part": "odd"}, "part is 'odd'"),
    ("data.overlap", MINE | {"other": "DIR/rows.jsonl"}, {"rows": 20}),
    ("data.overlap", MINE | {"other": "nobody"}, "nobody"),
    ("data.delete", MINE, {"deleted": "my-rows"}),
    ("data.export", MINE | {"target": "DIR/out.jsonl"}, "no imported dataset"),
    ("data.import", {"source": "DIR/odd.csv"}, "--column prompt=COLUMN"),
    ("data.import", {"source": "/no/file.csv"}, "no file"),
    ("data.map", {"source": "DIR/odd.csv", "column": TWO},
     {"rows": [{"messages": [{"content": "hello there"}, {"content": "good day"}]}, ...]}),
    ("data.import", {"source": "DIR/odd.csv", "column": TWO},
     {"mapping": {"format": "prompt_completion"}, "rows": 2}),
    ("data.xray", {"source": "starter:pirate", "pick": "odd"}, "should be 'first', 'longest'"),
    ("data.xray", {"source": "starter:pirate", "row": [2]}, [{"row": 2}]),
]  # fmt: skip

HOME: list[Row] = [
    ("storage", {}, {"rules": {"keep_checkpoints": 1, "keep_days": 0}, "parts": ...}),
    ("diagnostics", {}, {"diagnostics": ...}),
    ("clean", {}, {"bytes": 500, "removed": False}),
    ("clean", {"keep_checkpoints": 2, "keep_days": 9}, {"bytes": 500}),
    ("clean", {"keep_checkpoints": -1}, "keep_checkpoints is -1"),
    ("clean", {"yes": True}, {"bytes": 500, "removed": True}),
    ("clean", {}, {"bytes": 0}),
    ("storage", {}, {"rules": {"keep_checkpoints": 2, "keep_days": 9}}),
    ("backup", {"file": "DIR/b.tar"}, {"files": ...}),
    ("backup", {"file": "DIR/b.tar"}, "exists already"),
    ("backup", {"file": "DIR/home/x.tar"}, "inside the home"),
    ("backup", {"file": "/tmp/x.zip"}, "ends in .tar"),
    ("presets.save", {"name": "mine", "set": ["train.max_steps=9"]}, ...),
    ("presets.list", {}, [..., ..., ..., ..., {"values": {"train.max_steps": 9}}]),
    ("presets.forget", {"name": "mine"}, ...),
    ("presets.forget", {"name": "mine"}, "mine"),
    ("cluster", {}, None),
    ("cluster", {"address": "ray://head:10001", "storage": "/tmp/x"}, "use that of the dashboard"),
    ("cluster", {"address": "127.0.0.1:1"}, "needs a storage"),
    ("cluster", {"off": True}, None),
    ("methods", {}, ...),
    ("models.folders", {"add": "/nowhere"}, "There is no folder /nowhere"),
    ("models.folders", {"add": "DIR/shelf"}, [{"path": "DIR/shelf", "trouble": ""}]),
    ("models", {}, {"folders": [{"path": "DIR/shelf"}], "models": ..., "offline": True}),
    ("models", {"fits": True, "device": "cuda:9"}, 'no device "cuda:9"'),
    ("models.folders", {"forget": "DIR/shelf"}, []),
    ("models.search", {"words": "small"}, "this studio is offline"),
    ("models.search", {"words": "x", "limit": 0}, "limit"),
    ("models.search", {"words": "llama3.2:1b"}, "Ollama"),
    ("models.show", {"model": "org/name"}, "this studio is offline"),
    ("models.remove", {"model": "org/name"}, "not in the hub's cache"),
    ("models.token", {"token": "x"}, "offline"),
    ("models.extend", {"model": {"path": "starter"}}, "Name 1 to"),
    (
        "models.extend",
        {"model": {"path": "starter"}, "token": ["<a>", "<b>=two words"], "name": "wide"},
        {"name": "wide", "state": "queued"},
    ),
    ("offline", {"on": True, "off": True}, "not both"),
    ("offline", {}, {"offline": True}),
    ("welcome", {}, {"device": {"name": "cpu"}}),
    ("welcome", {"done": True}, {"first": False}),
    ("guide", {"goal": "music"}, "goal"),
    (
        "guide",
        {"goal": "voice", "data": "starter:pirate"},
        {"data": {"ok": True, "rows": 320}, "model": "starter"},
    ),
    ("guide", {"goal": "prefer", "data": "starter:pirate"}, {"data": {"ok": False}}),
    ("guide.template", {"goal": "classify", "format": "csv"}, {"name": "classify.csv"}),
    ("guide.template", {"goal": "classify", "out": "/no/such/folder/a.xlsx"}, "cannot be written"),
    ("results", {}, {"columns": [], "rows": []}),
    ("results", {"form": "markdown"}, {"text": ...}),
    ("modules", {"model": {"path": "starter"}}, ...),
]

REFUSED: list[Row] = [
    ("merge", {}, "at least one adapter"),
    ("merge", {"stack": ["a:heavy"]}, '"heavy" is not a weight'),
    ("merge", {"stack": ["nothing"]}, 'no adapter "nothing"'),
    ("merge", {"stack": ["a"], "name": "x" * 200}, "… (200 characters)"),
    ("mix", {"stack": ["nothing"]}, 'no adapter "nothing"'),
    ("push", {"folder": "/nowhere", "repo": "a/b"}, "/nowhere"),
    ("gguf", {"stack": ["nothing"], "out": "DIR/a.gguf"}, "nothing"),
    ("evaluate", {"stack": ["nothing"]}, "nothing"),
    ("evaluate", {"tasks": ["x"], "num_fewshot": -2}, "num_fewshot"),
    ("import", {"source": "/nowhere"}, "no adapter folder"),
    ("export", {"name": "nothing"}, "nothing"),
    ("adapters.undo", {"adapter": "nothing"}, "nothing"),
    ("train", {"set": ["method.rr=3"]}, "rr"),
    ("train", {"set": ["r"]}, "is not an assignment"),
    ("train", {"model": " "}, "--model is empty"),
    ("train", {"data": " "}, "--data is empty"),
    ("train", {"method": "lorra"}, "lora"),
    ("train", {"spec": "nothing.yaml"}, "no spec file"),
    ("train", {"model": "/nowhere/model"}, "no model folder /nowhere/model"),
    ("train", {"data": "/nowhere.jsonl"}, "/nowhere.jsonl"),
    ("train", {"data": "starter:piratt"}, "pirate"),
    ("train", {"name": "x" * 200}, "… (200 characters)"),
    ("preflight", {"set": ["train.max_step=5"]}, "max_steps"),
    ("refit", {"job": "nothing"}, "nothing"),
    ("extend", {"job": "nothing", "steps": 1}, "nothing"),
    ("data.split", {"name": "nothing", "count": 1}, "no imported dataset"),
    ("data.delete", {"name": "nothing"}, "no imported dataset"),
    ("restore", {"file": "/nowhere.tar"}, "/nowhere"),
    ("pack", {"spec": "/nowhere.yaml"}, "no spec file"),
    ("unpack", {"folder": "/nowhere"}, "/nowhere"),
    ("models.get", {"repo": "org/name"}, "this studio is offline"),
    ("models.get", {"repo": "llama3.2:1b"}, "Ollama"),
]
STORIES: dict[str, tuple[Callable[[Studio], None], list[Row]]] = {
    "order": (three_jobs, ORDER),
    "plans": (three_jobs, PLANS),
    "sweeps": (three_jobs, SWEEPS),
    "a running job": (running, RUNNING),
    "adapters": (two_adapters, ADAPTERS),
    "comparisons": (a_conversation, COMPARE),
    "datasets": (rows_and_a_folder, DATA),
    "the home": (rows_and_a_folder, HOME),
    "an empty home": (lambda _: None, REFUSED),
}


@pytest.mark.parametrize("story", STORIES)
def test_three_ways_of_asking_give_one_answer(studios, story):
    prepare, rows = STORIES[story]
    for one in studios:
        prepare(one)
    for name, values, wanted in rows:
        (refused, answer), *others = [one.ask(name, values) for one in studios]
        about = (name, values, answer)
        assert refused is isinstance(wanted, str), about
        if refused:
            assert wanted in answer["error"]["text"], about
        else:
            assert holds(wanted, answer), about
        for way, (also, other) in zip(WAYS[1:], others, strict=True):
            same = stable(other, answer, name) == stable(answer, other, name)
            assert same and also is refused, (way, *about)
        states = [one.states() for one in studios]
        assert states[0] == states[1] == states[2], about


def test_every_action_is_asked():
    asked = {name for _, rows in STORIES.values() for name, *_ in rows}
    offered = {name for name, one in ACTIONS.items() if not one.terminal}
    assert asked >= offered - {"data.check"}  # answers with exit code 2 and a report


def test_a_sweep_and_a_copy_take_over_the_settings_that_are_not_changed(studios):
    http = studios[1]
    three_jobs(http)
    http.ask("sweep", {"name": "s", "over": ["seed=0,1"], "like": "a", "set": ["method.r=4"]})
    http.ask("duplicate", {"job": "a", "set": ["method.r=2"], "name": "mine"})
    specs = [http.store.get(name).spec for name in ("s seed=1", "mine")]
    found = [(one["train"]["max_steps"], one["method"]["r"], one["seed"]) for one in specs]
    assert found == [(7, 4, 1), (7, 2, 0)]


def test_a_field_out_of_bounds_is_named_by_the_title_of_its_form(studios):
    page = studios[0].page
    error = page.post("/api/do/data.import", json={"source": "x", "rows": -5}).json()["error"]
    assert error["text"].startswith("“Rows to take” is -5:") and error["field"] == "rows"


def test_a_field_or_an_action_that_does_not_exist_changes_nothing(studios):
    _, http, _ = studios
    job = http.store.submit(a_spec()).id
    for name, values in (("explode", {"job": job}), ("cancel", {"job": job, "erase": 1}),
                         ("vote", {"conversation": "a", "turn": 1, "verdict": 5}),
                         ("import", {"sauce": "org/name"})):  # fmt: skip
        assert http.page.post(f"/api/do/{name}", json=values).status_code == 400
    plain = http.page.post("/api/do/cancel", content=json.dumps({"job": job}),
                           headers={"content-type": "text/plain"})  # fmt: skip
    assert plain.status_code == 422 and http.store.get(job).state == "queued"


def test_every_field_of_a_dialog_is_an_option_of_its_command():
    group = typer.main.get_command(app)
    for action in ACTIONS.values():
        command = group
        for word in action.name.split("."):
            command = command.commands[word]
        options = {param.name for param in command.params}
        shown = {one.path.replace(".", "__") for one in action.fields if one.flag != "-"}
        assert shown <= options, action.name
        assert {one["name"] for one in schema(action)["fields"]} >= {
            one.replace("__", ".") for one in shown
        }


def test_target_modules_are_listed_and_said_in_the_shortest_way(home):
    modules = ask(home, "modules", {"model": "starter", "local": True}).value
    assert {"self_attn.q_proj", "mlp.down_proj"} <= {one["name"] for one in modules}
    queries = [one["key"] for one in modules if one["name"] == "self_attn.q_proj"]
    for chosen, targets in ((queries, ["q_proj"]), (queries[:1], queries[:1])):
        found = ask(home, "modules", {"model": "starter", "chosen": chosen}).value
        assert found == {"targets": targets}
    with pytest.raises(StudioError, match="not a folder here"):
        ask(home, "modules", {"model": "org/name", "local": True})


def test_row_numbers_may_be_ranges():
    read = ACTIONS["data.drop"].read
    assert read({"name": "a", "row": ["3", "40-42", 7]}).row == (3, 40, 41, 42, 7)
    for wrong in ("3-x", "0-99999999"):
        with pytest.raises(StudioError, match="row"):
            read({"name": "a", "row": [wrong]})


@pytest.mark.parametrize("name", ["compare", "endpoint", "stop"])
def test_what_loads_models_or_ends_the_page_is_asked_in_a_terminal_only(studios, name):
    page = studios[1].page
    assert name not in {one["name"] for one in page.get("/api/actions").json()}
    response = page.post(f"/api/do/{name}", json={})
    assert response.status_code == 400
    assert f"`studio {name}` in a terminal" in response.json()["error"]["text"]
