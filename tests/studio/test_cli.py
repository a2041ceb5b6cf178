"""The command line from outside: exit codes, one JSON document, sentences instead of tracebacks."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from jobs import supervisor
from jobs.actions import Reply
from jobs.job_queue import JobStore
from jobs.runner_processes import environment
from studio.home import Home, open_home
from studio.spec import RunSpec
from tests.jobs.conftest import begin
from tests.studio.adapters.test_library import make_adapter
from ui.cli import commands_from_actions, main
from ui.cli.print_runs import exit_code


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    home = open_home()
    yield home
    supervisor.stop(home)


def studio(*words: str, home: Home | None = None) -> subprocess.CompletedProcess[str]:
    env = environment() | ({"STUDIO_HOME": str(home.path)} if home else {})
    return subprocess.run(
        [sys.executable, "-m", "ui.cli.main", *words],
        env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run a command in this process."""
    with pytest.raises(SystemExit) as ended:
        main.main(words)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def add_job(home: Home, state: str = "queued", **values: Any) -> int:
    store = JobStore(home)
    job = store.submit(RunSpec.parse(values)).id
    if state != "queued":
        claim = begin(store)
        error = ("diverged", "The loss became NaN.") if state == "failed" else None
        result = {"first_loss": 2.0, "last_loss": 1.0, "seconds": 61.0}
        store.claims.finish(claim, state, result=result, error=error)
    store.close()
    return job


def test_a_pipe_whose_encoding_lacks_a_character_gets_a_question_mark(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # as a code page of Windows
    shown = studio("methods")
    assert shown.returncode == 0 and "`A ? R^{r?I}`" in shown.stdout


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["trian"], "usage", 'no command "trian". Did you mean "train"?'),
        (["train", "--nope"], "usage", "No such option: --nope"),
        (["show"], "usage", "Missing argument"),
        (["cancel", "nobody"], "queue", 'no job called "nobody"'),
        (["train", "--model", "/nowhere/model"], "model", "no model folder /nowhere/model"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(own_home, capsys, words, kind, said):
    code, out, err = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err

    code, out, err = run(capsys, *words, "--json")
    assert code == 2
    error = json.loads(out)["error"]
    assert error["kind"] == kind
    assert said in error["text"]
    assert err == ""


def test_a_mistake_leaves_nothing_behind(own_home, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    result = studio("train", "--data", str(empty), "--json", home=own_home)
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"]["kind"] == "data"
    store = JobStore(own_home)
    assert store.list() == []
    store.close()
    assert list(own_home.runs.iterdir()) == []
    assert supervisor.living(own_home) is None


def test_a_home_that_cannot_be_made_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("I am no folder")
    code, _, err = run(capsys, "runs", "--home", str(tmp_path / "file" / "home"))
    assert code == 2
    assert "cannot be written" in err


def test_a_port_in_use_is_refused(own_home, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run(capsys, "serve", "--port", str(port), "--no-browser")
    assert code == 2
    assert f"Port {port}" in err


def test_our_own_page_is_named_instead_of_opened_twice(own_home, capsys):
    store = JobStore(own_home)
    store.announce("web", url="http://127.0.0.1:7860")
    code, _, err = run(capsys, "--no-browser")
    store.close()
    assert code == 2
    assert "already running at http://127.0.0.1:7860" in err


def test_an_unforeseen_error_is_one_sentence_too(own_home, capsys, monkeypatch):
    monkeypatch.setattr("jobs.job_queue.JobStore.list", lambda *a, **k: 1 / 0)
    code, out, _ = run(capsys, "runs", "--json")
    assert code == 1
    assert json.loads(out)["error"]["kind"] == "bug"
    assert "Traceback" in (own_home.state / "crash.log").read_text()


@pytest.mark.parametrize("given", ["--home {}", "--home={}"])
def test_its_details_are_in_the_home_that_was_given(own_home, tmp_path, capsys, monkeypatch, given):
    monkeypatch.setattr("jobs.job_queue.JobStore.list", lambda *a, **k: 1 / 0)
    other = tmp_path / "other"
    _, out, _ = run(capsys, "runs", "--json", *given.format(other).split())
    assert str(other) in json.loads(out)["error"]["text"]
    assert "Traceback" in (other / "state" / "crash.log").read_text()
    assert not (own_home.state / "crash.log").exists()


# -- looking ---------------------------------------------------------------------------------------


def test_tables_show_names_as_text(own_home, capsys):
    add_job(own_home, name="[red]x")
    code, out, _ = run(capsys, "runs")
    assert code == 0
    assert "[red]x" in out
    code, out, _ = run(capsys, "show", "[red]x")
    assert "is queued" in out


def test_states_of_an_end_have_their_exit_codes(own_home):
    store = JobStore(own_home)
    done = store.get(add_job(own_home, "succeeded"))
    failed = store.get(add_job(own_home, "failed"))
    stopped = store.cancel(add_job(own_home))
    held = store.pause(add_job(own_home))
    store.close()
    codes = [exit_code(job) for job in (done, failed, stopped, held)]
    assert codes == [0, 3, 4, 4]


def test_cancel_prints_what_became_of_it_and_then_refuses(own_home, capsys):
    job = add_job(own_home, name="waiting")
    code, out, _ = run(capsys, "cancel", str(job))
    assert (code, out.strip()) == (0, '"waiting" is cancelled.')
    code, _, err = run(capsys, "cancel", str(job))
    assert code == 2
    assert "cannot be cancelled" in err


# -- the whole way ---------------------------------------------------------------------------------


def test_stop_says_when_nothing_runs(own_home, capsys):
    assert run(capsys, "stop") == (0, "Nothing was running.\n", "")


def test_a_detached_run_starts_a_supervisor_and_is_queued(own_home):
    result = studio("train", "--detach", "--set", "train.max_steps=1", "--json", home=own_home)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["state"] == "queued"
    living = supervisor.living(own_home)
    assert living is not None
    assert os.getsid(living.pid) == living.pid, "it leads a session of its own"
    assert studio("stop", "--json", home=own_home).returncode == 0
    assert supervisor.living(own_home) is None


def test_what_stands_before_a_subcommand_counts_for_it(own_home, tmp_path, capsys):
    other = open_home(tmp_path / "other")
    for home in (own_home, other):
        make_adapter(home.adapters / "twin", name="twin")

    code, out, _ = run(capsys, "adapters", "--home", str(other.path), "--json", "delete", "twin")
    assert code == 0 and json.loads(out)["deleted"] == "twin"
    assert (own_home.adapters / "twin").exists() and not (other.adapters / "twin").exists()

    code, _, err = run(capsys, "runs", "--state", "failed", "export", "1")
    assert code == 2 and "has no effect" in err


def test_an_evaluation_that_misses_its_gate_shows_its_figures(own_home, capsys, monkeypatch):
    number = add_job(own_home)
    store = JobStore(own_home)
    store.claims.finish(begin(store), "failed", error=("gate", "accuracy is below 0.8."))
    monkeypatch.setattr(commands_from_actions, "outcome", lambda *_: {"accuracy": 0.5})
    answer = Reply(jobs=(store.get(number),))
    ended = {"follow": True, "as_json": True}

    assert commands_from_actions._followed(store, "evaluate", answer, **ended) == 3
    shown = json.loads(capsys.readouterr().out)
    assert shown["accuracy"] == 0.5 and shown["error"]["kind"] == "gate"
    store.close()
