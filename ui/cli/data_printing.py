"""What all data commands share; nothing of a file reaches the terminal unescaped."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from studio.errors import InputError, StudioError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
HomeDir = Annotated[str, typer.Option("--home", help="The home folder; STUDIO_HOME when absent.")]


def short(meta: Any) -> dict[str, Any]:
    """Return a dataset's description without its report."""
    keys = ("name", "hash", "created", "rows", "validation_rows", "reason")
    return {key: getattr(meta, key) for key in keys} | {
        "format": meta.mapping.format,
        "mapping": meta.mapping.model_dump(mode="json"),
        "original": meta.original.model_dump(mode="json"),
        "parent": meta.parent.model_dump(mode="json") if meta.parent else None,
        "step": meta.step,
    }


def say_snapshot(meta: Any, as_json: bool, *, already: bool = False) -> None:
    """Print a dataset that was made or found."""
    if as_json:
        report = meta.findings.model_dump(mode="json")
        print_json(short(meta) | {"already": already, "report": report})
        return
    kept = meta.findings.rows
    known = "was imported before" if already else "is imported"
    typer.echo(f'"{meta.name}" {known}: {kept.kept:,} of {kept.read:,} rows can be used, '
               f"{meta.mapping.format} ({meta.reason}).")  # fmt: skip
    for warning in meta.findings.warnings:
        typer.echo(f"  {printable(warning)}")


def show_check(report: Any) -> None:
    """Print one checked file."""
    name = printable(report.file)
    if report.error:
        typer.echo(f"{name}: refused. {printable(report.error.text)}", err=True)
        return
    rows = report.rows
    typer.echo(f"{name}: {rows.kept:,} of {rows.read:,} rows can be used. {report.format}: "
               f"{printable(report.reason)}.")  # fmt: skip
    for warning in report.warnings:
        typer.echo(f"  {printable(warning)}")
    for problem in report.problems[:10]:
        typer.echo(f"  line {problem.line:,}: {printable(problem.text)}")
    if len(report.problems) > 10:
        typer.echo("  … all of them with --json")


def show_xray(row: Any) -> None:
    """Print one row with its trained and cut parts marked."""
    typer.echo(f"row {row.row} (line {row.line}): {row.num_tokens} tokens, {row.num_trained} "
               f"trained, {row.num_truncated} cut off")  # fmt: skip
    if row.problem:
        typer.echo(f"  dropped: {printable(row.problem)}")
        return
    out, state = "", "masked"
    marks = {"trained": ("[[", "]]"), "truncated": ("~~", "~~"), "masked": ("", "")}
    for token in row.tokens:
        if token.state != state:
            out += marks[state][1] + marks[token.state][0]
            state = token.state
        out += printable(token.text, keep_lines=True)
    typer.echo(out + marks[state][1])


def printable(text: str, *, keep_lines: bool = False) -> str:
    """Return text without escape codes, which a file may hold to repaint the terminal."""
    return "".join(
        c if c.isprintable() or (keep_lines and c in "\n\t") else f"\\x{ord(c):02x}" for c in text
    )


def show_progress(share: float, text: str) -> None:
    """Print how far an import is."""
    typer.echo(f"\r{share:5.0%}  {text:30}", nl=share >= 1.0, err=True)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, ensure_ascii=True, indent=1))


def guarded(work: Any, as_json: bool) -> None:
    """Do it, or say why not and exit with the contract's code."""
    try:
        work()
    except StudioError as error:
        if as_json:
            print_json({"error": error.as_dict()})
        else:
            typer.echo(f"Error: {printable(error.text)}", err=True)
        raise typer.Exit(error.exit_code) from None


def home_at(path: str, *, create: bool = True) -> Any:
    """Open the home; None where there is none and none shall be made."""
    from studio.home import open_home

    if create:
        return open_home(path or None)
    try:
        return open_home(path or None)
    except InputError:
        return None  # checking a file needs no home
