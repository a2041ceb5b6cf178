"""The window of its own and the entry in the system's menu."""

import os
import plistlib
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path, PureWindowsPath
from unittest.mock import Mock

import pytest

from jobs import chat_client
from jobs.job_queue import JobStore
from jobs.supervisor import living
from studio.errors import ServeError
from studio.home import open_home
from studio.spec import RunSpec
from tests.served import ROOT, served
from ui.cli import main
from ui.window import find_browser, find_window, menu_entry, remove_entry, write_entry

COMMAND = ["/opt/my env/python", "-m", "ui.cli.main", "--home", "/home/al/50% $x"]


@pytest.mark.parametrize(
    ("system", "place"),
    [
        ("linux", "applications/adapter-studio.desktop"),
        ("win32", "Programs/Adapter Studio.cmd"),
        ("darwin", "Applications/Adapter Studio.app/Contents/MacOS/studio"),
    ],
)
def test_the_entry_of_each_system_starts_the_command_and_goes_again(system, place, tmp_path):
    (tmp_path / "Applications").mkdir()
    entries = menu_entry(system, COMMAND, tmp_path, {})
    write_entry(entries)
    files = [one.path for one in entries]
    assert files[0].as_posix().endswith(place)
    text = files[0].read_text()
    if system == "linux":
        line = next(one for one in text.splitlines() if one.startswith("Exec="))
        for escaped, plain in (("%%", "%"), ("\\\\", "\\"), ("\\$", "$")):
            line = line.replace(escaped, plain)
        assert shlex.split(line.removeprefix("Exec=")) == COMMAND
        assert files[1].read_text().startswith("<svg xmlns=")
    elif system == "win32":
        assert text.startswith('@chcp 65001 >nul\n@start "" "/opt/my env/python" "-m"')
        assert "50%% $x" in text
    else:
        program = text.splitlines()[1].removeprefix("exec ")
        assert shlex.split(program) == COMMAND and files[0].stat().st_mode & 0o111
        assert plistlib.loads(files[1].read_bytes())["CFBundleExecutable"] == files[0].name
    if system == "darwin":
        (files[0].parents[1] / ".DS_Store").touch()  # as the Finder leaves it
    assert remove_entry(entries) == files and remove_entry(entries) == []
    assert not list(tmp_path.rglob("*.app")) and (tmp_path / "Applications").is_dir()


def test_an_entry_that_may_not_be_deleted_is_told(tmp_path, monkeypatch):
    entries = menu_entry("linux", COMMAND, tmp_path, {})
    write_entry(entries)
    file = str(entries[0].path)
    refusal = PermissionError(13, "Permission denied", file)
    monkeypatch.setattr(Path, "unlink", Mock(side_effect=refusal))
    with pytest.raises(ServeError, match=re.escape(f"{file} cannot be deleted (Permission")):
        remove_entry(entries)


def test_folders_that_the_system_names_are_used(tmp_path):
    share = menu_entry("linux", COMMAND, Path("/u"), {"XDG_DATA_HOME": "/share"})[0].path
    assert share == Path("/share/applications/adapter-studio.desktop")
    menu = menu_entry("win32", COMMAND, Path("/u"), {"APPDATA": "/roaming"})[0].path
    assert PureWindowsPath(menu).parts[1] == "roaming"


def test_without_a_browser_a_window_is_refused(monkeypatch):
    monkeypatch.setenv("STUDIO_BROWSER", "/no/such/browser")
    monkeypatch.setattr("ui.window.BROWSERS", ())
    monkeypatch.setattr("ui.window.PLACES", ())
    with pytest.raises(ServeError, match="STUDIO_BROWSER"):
        find_browser()


@pytest.mark.parametrize(("seconds", "ends"), [(60, 0), (0, 1)])
def test_a_window_that_another_browser_opens_leaves_the_page(seconds, ends, monkeypatch, capsys):
    monkeypatch.setattr(main, "HANDED_OVER_SECONDS", seconds)
    monkeypatch.setattr("_thread.interrupt_main", stop := Mock())
    main._end_with(subprocess.Popen([sys.executable, "-c", ""]))
    assert stop.call_count == ends
    assert ("`studio stop`" in capsys.readouterr().out) is not bool(ends)


VIEW = """
import pathlib, urllib.request
settings, opened = {}, []
def create_window(title, url, *, width, height, text_select, zoomable): opened.append(url)
def start(*, private_mode, storage_path):
    assert not private_mode and settings["ALLOW_DOWNLOADS"]
    page = urllib.request.urlopen(opened[0]).read()
    pathlib.Path(__file__).with_name("seen").write_bytes(page + storage_path.encode())
"""


def test_with_pywebview_the_window_is_its_own_and_ends_the_page_too(tmp_path, monkeypatch):
    (tmp_path / "webview.py").write_text(VIEW)  # a stand-in, called as pywebview documents it
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.delenv("STUDIO_BROWSER", raising=False)
    home = ["--home", str(tmp_path / "home")]
    start = "from ui.cli import main; main.HANDED_OVER_SECONDS = 0; main.main()"
    command = [sys.executable, "-c", start]
    try:
        done = subprocess.run([*command, "serve", "--port", "0", "--window", *home], cwd=ROOT,
                              timeout=60, capture_output=True, text=True)  # fmt: skip
        assert done.returncode in (0, 130), done.stderr
        seen = (tmp_path / "seen").read_bytes()
        assert b"Adapter Studio" in seen and seen.endswith(b"window")
    finally:
        subprocess.run([*command, "stop", *home], cwd=ROOT, timeout=60, check=False)
    monkeypatch.setenv("STUDIO_BROWSER", sys.executable)
    assert find_window()[0] == sys.executable and "--app={address}" in find_window()


def test_closing_the_window_ends_the_page_that_has_no_streams(tmp_path, monkeypatch):
    browser = tmp_path / "browser"
    browser.write_text(
        f"#!{sys.executable}\nimport sys, urllib.request\n"
        "app = next(one for one in sys.argv if one.startswith('--app='))\n"
        "page = urllib.request.urlopen(app.removeprefix('--app=')).read()\n"
        f"open({str(tmp_path / 'seen')!r}, 'wb').write(page)\n"
    )
    browser.chmod(0o755)
    monkeypatch.setenv("STUDIO_BROWSER", str(browser))
    program = (
        "import sys; from ui.cli import main; main.HANDED_OVER_SECONDS = 0; "
        "sys.stdout = sys.stderr = None; main.main(sys.argv[1:])"  # as under pythonw.exe
    )
    command = [sys.executable, "-c", program]
    home = ["--home", str(tmp_path / "home")]
    try:
        done = subprocess.run([*command, "serve", "--port", "0", "--window", *home], cwd=ROOT,
                              timeout=60, capture_output=True, text=True)  # fmt: skip
        assert done.returncode in (0, 130), done.stderr
        assert b"Adapter Studio" in (tmp_path / "seen").read_bytes()
        log = (tmp_path / "home/state/window.log").read_text()
        assert log.startswith("Adapter Studio is at http") and "Traceback" not in log
    finally:
        subprocess.run([*command, "stop", *home], cwd=ROOT, timeout=60, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="a console's Ctrl-C, sent as a signal")
@pytest.mark.parametrize("waits", [False, True])
def test_queue_and_chat_end_with_the_page_unless_a_job_waits(tmp_path, waits):
    home = open_home(tmp_path / "home")
    with served(home.path) as running:
        with closing(JobStore(home)) as store:
            if waits:  # for a device that this machine does not have
                store.submit(RunSpec().with_values({"train.device": "cuda:7"}))
        chat_client.ensure_host(home)
        os.kill(running.pid, signal.SIGINT)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and _pages(home):
            time.sleep(0.05)
        assert (living(home) is not None, chat_client.find_host(home) is not None) == (waits, waits)


def _pages(home):
    with closing(JobStore(home)) as store:
        return [row for row in store.processes() if row["role"] == "web"]
