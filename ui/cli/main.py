"""The command line: all commands, and how they end.

Most commands are generated from actions (`commands_from_actions.py`); here are those that serve or
print as they go. Whatever is slow to import is imported when its command runs.

Exit codes: 0 done, 2 the input was wrong, 3 the job failed, 4 it was cancelled or paused, 130
interrupted. With `--json` exactly one JSON document goes to standard output, errors included.
"""

from __future__ import annotations

import _thread
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from itertools import pairwise
from pathlib import Path
from subprocess import Popen
from typing import Annotated, Any

import typer

from jobs.job_queue import JobStore
from studio.errors import ServeError, StudioError, first_line, nearest
from studio.home import Home, open_home
from ui import language
from ui.cli.chat_commands import app as chat_app
from ui.cli.commands_from_actions import HomeOption, JsonOption, add_commands
from ui.cli.print_home import diagnosis
from ui.cli.terminal_tables import printable

GROUPS = {
    "presets": "Named settings: built in and your own.",
    "runs": "List the runs, or export their curves to trackers.",
    "adapters": "List the adapters, or name, tag, delete and restore them.",
    "models": "List the models that can be trained, or search, download and delete them.",
    "guide": "Lead from what you want to data, a model and settings; make a file to fill in.",
    "data": "Datasets: check, import, map, X-ray, split, overlap, list, export, delete.",
}
HANDED_OVER_SECONDS = 5.0  # a browser that ends sooner passed the address to one that is open
app = typer.Typer(
    name="studio",
    help="Train adapters, watch them learn, and chat with them. Without a command it opens the "
    "page in the browser.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(chat_app)
if os.environ.get("STUDIO_LANG"):  # asked for: the locale alone leaves the help in English
    language.current.set(language.of_terminal())
add_commands(app, GROUPS)


@cache
def _command() -> Callable[..., Any]:
    """Return the command tree, which takes 30 ms to build."""
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the contract's codes."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("--help", "-h")):
        words.insert(0, "serve")
    as_json = "--json" in words
    language.current.set(language.of_terminal())
    try:
        _give_streams(words)
        code = _command()(words, prog_name="studio", standalone_mode=False)
    except StudioError as error:
        raise SystemExit(_tell(error.as_dict(), error.exit_code, as_json)) from None
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the pipe has gone
        raise SystemExit(0) from None
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise SystemExit(_unforeseen(error, words, as_json)) from None
        text = _usage_sentence(error, words)
        raise SystemExit(_tell({"kind": "usage", "text": text}, 2, as_json)) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def _give_streams(words: Sequence[str]) -> None:
    """Write to a log of the home where the process has no streams, as under `pythonw.exe`.

    A pipe of Windows has the system's code page: characters that it lacks become question marks.
    """
    if sys.stdout is None or sys.stderr is None:
        log = (open_home(_home_in(words)).state / "window.log").open(
            "a", encoding="utf-8", buffering=1
        )
        sys.stdout, sys.stderr = sys.stdout or log, sys.stderr or log
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _home_in(words: Sequence[str]) -> str | None:
    """Return the home that a command line names, also where it cannot be parsed."""
    given = [after for word, after in pairwise(words) if word == "--home"]
    joined = [word.removeprefix("--home=") for word in words if word.startswith("--home=")]
    return next(iter(given + joined), None)


# -- the page --------------------------------------------------------------------------------------


@app.command()
def serve(
    host: Annotated[
        str, typer.Option(help="Where to listen; elsewhere than here asks for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.", min=0, max=65535)] = 7860,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name of this machine; may be repeated."),
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(metavar="PATH", help="Path below which a reverse proxy serves the page."),
    ] = "",
    home: HomeOption = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address only.")
    ] = False,
    window: Annotated[
        bool,
        typer.Option(
            "--window",
            help="Open a window of its own; closing it ends the page (macOS: quitting it).",
        ),
    ] = False,
) -> None:
    """Open the studio in the browser (the default command)."""
    from ui.window import find_window, open_window

    opened = open_home(home)
    shell = find_window() if window else []
    running = _address_of(opened, port)
    if running and window:
        open_window(shell, running, opened.state / "window")
        return
    if running:
        raise ServeError(
            f"The studio is already running at {running}. Open that address, or end it with "
            "`studio stop`."
        )
    from ui.app import serve as serve_page

    def ready(address: str) -> None:
        print(f"Adapter Studio is at {address} (Ctrl-C ends the page, not the runs)", flush=True)
        if window:
            shown = open_window(shell, address, opened.state / "window")
            threading.Thread(target=_end_with, args=(shown,), daemon=True).start()
        elif not no_browser:
            import webbrowser

            webbrowser.open(address)

    serve_page(
        opened, host=host, port=port, allowed=allow_host or [], root_path=root_path, on_ready=ready
    )


def _end_with(window: Popen[bytes]) -> None:
    """End this process, as Ctrl-C does, when a window is closed.

    Where its profile is open already, the new process passes the address on and ends at once.
    """
    began = time.monotonic()
    window.wait()
    if time.monotonic() - began < HANDED_OVER_SECONDS:
        print("Another browser process shows the window: `studio stop` ends the page.", flush=True)
    else:
        _thread.interrupt_main()


def _address_of(home: Home, port: int) -> str:
    """Return where this home's page already listens at a port; empty if it does not."""
    with closing(JobStore(home)) as store:
        for row in store.processes():
            if row["role"] == "web" and port and str(row["url"]).rstrip("/").endswith(f":{port}"):
                return str(row["url"])
    return ""


@app.command()
def shortcut(
    remove: Annotated[bool, typer.Option("--remove", help="Delete the entry.")] = False,
    home: HomeOption = None,
) -> None:
    """Put the studio into the system's menu of programs, to open in a window of its own."""
    from ui.window import menu_entry, remove_entry, write_entry

    python = Path(sys.executable)
    quiet = python.with_name("pythonw.exe")  # without a console, on Windows
    command = [str(quiet if quiet.is_file() else python), "-m", "ui.cli.main", "serve", "--window",
               "--home", str(open_home(home).path)]  # fmt: skip
    entries = menu_entry(sys.platform, command, Path.home(), os.environ)
    if remove:
        gone = remove_entry(entries)
        print(f"Removed {gone[0]}." if gone else "There is no such entry.")
        return
    write_entry(entries)
    print(f'"Adapter Studio" is in the menu now ({entries[0].path}).')


# -- runs ------------------------------------------------------------------------------------------


@app.command()
def logs(
    job: Annotated[str, typer.Argument(metavar="ID", help="The job's number or name.")],
    lines: Annotated[int, typer.Option(help="How many of the last.", min=1)] = 200,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print until it ends.")] = False,
    home: HomeOption = None,
) -> None:
    """Print a run's log."""
    with closing(JobStore(open_home(home))) as store:
        found = store.get(job)
        path = store.log_path(found.id)
        if not path.exists() and not follow:
            print(f'"{found.name}" has no log yet: it is {found.state}.', file=sys.stderr)
            return
        text = store.log_tail(found.id, lines)
        if text:
            print(text, flush=True)
        position = path.stat().st_size if path.exists() else 0
        while follow:
            ended = not store.get(found.id).active and store.get(found.id).state != "queued"
            if path.exists():
                with path.open("rb") as file:
                    file.seek(position)
                    news = file.read()
                position += len(news)
                sys.stdout.write(news.decode(errors="replace"))
                sys.stdout.flush()
            if ended:
                return
            time.sleep(0.2)


@app.command()
def doctor(
    model: Annotated[
        str, typer.Option(help="Model to examine: every method, packing, cache, merge, files.")
    ] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Look at the machine, the home and the queue, and say what is wrong."""
    from jobs.doctor import examine

    facts = examine(home, model)
    print(json.dumps(facts, ensure_ascii=False)) if as_json else diagnosis(facts)
    return 0 if facts["ok"] else 2


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench(context: typer.Context) -> int:
    """Measure speed, memory and learning; `studio bench --help` lists what."""
    from ui.bench.bench_command import bench as run_bench

    return run_bench(context.args)


# -- how it ends -----------------------------------------------------------------------------------


def _tell(error: dict[str, str], code: int, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": error}, ensure_ascii=False))
    else:
        print(printable(language.say(error["text"]), keep_lines=True), file=sys.stderr)
    return code


def _usage_sentence(error: Any, words: Sequence[str]) -> str:
    text = str(error.format_message()).strip().rstrip(".")
    context = getattr(error, "ctx", None)
    path = context.command_path if context else f"studio {words[0]}"
    if "No such command" in text:
        word = text.split("'")[1]
        names = getattr(context.command if context else _command(), "commands", {})
        text = f'There is no command "{word}".{nearest(word, names)}'
        return f"{text} `{path} --help` lists them all."
    return f"{text}. `{path} --help` shows how it is used."


def _unforeseen(error: Exception, words: Sequence[str], as_json: bool) -> int:
    import traceback

    where = ""
    try:
        log = open_home(_home_in(words)).state / "crash.log"
        with log.open("a", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
        where = f" Details are in {log}."
    except Exception:
        pass
    why = first_line(error)
    text = f"An unexpected error occurred ({type(error).__name__}: {why}).{where}"
    return _tell({"kind": "bug", "text": text}, 1, as_json)


if __name__ == "__main__":
    main()
