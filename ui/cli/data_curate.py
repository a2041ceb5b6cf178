"""`studio data split|filter|dedupe|drop|overlap`: each makes a new snapshot of an old one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ui.cli.data_printing import AsJson, HomeDir, guarded, home_at, print_json, say_snapshot

app = typer.Typer()


@app.command("split")
def split_(
    name: Annotated[str, typer.Argument(help="An imported dataset.")],
    fraction: Annotated[float, typer.Option(help="Share to hold out.", min=0, max=0.99)] = 0.0,
    count: Annotated[int, typer.Option(help="Rows to hold out.", min=0)] = 0,
    group_by: Annotated[str, typer.Option(help="Column whose groups stay together.")] = "",
    seed: int = 0,
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Hold rows out of training, seeded and stored, as a new snapshot."""
    step = {"kind": "split", "fraction": fraction, "count": count, "group_by": group_by,
            "seed": seed}  # fmt: skip
    _apply(name, step, as_json, home)


@app.command("filter")
def filter_(
    name: Annotated[str, typer.Argument(help="An imported dataset.")],
    min_characters: int = 0,
    max_characters: int = 0,
    column: str = "",
    operator: Annotated[str, typer.Option(help="equals, contains, greater, present …")] = "present",
    value: str = "",
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Keep the rows that meet a condition, as a new snapshot."""
    step = {"kind": "filter", "min_characters": min_characters, "max_characters": max_characters,
            "column": column, "operator": operator, "value": value}  # fmt: skip
    _apply(name, step, as_json, home)


@app.command("dedupe")
def dedupe(
    name: Annotated[str, typer.Argument(help="An imported dataset.")],
    near: Annotated[bool, typer.Option("--near", help="Nearly equal rows too.")] = False,
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Keep the first of equal rows, as a new snapshot."""
    _apply(name, {"kind": "dedupe", "near": near}, as_json, home)


@app.command("drop")
def drop(
    name: Annotated[str, typer.Argument(help="An imported dataset.")],
    row: Annotated[list[int], typer.Option(help="Row numbers from 1.")],
    keep: Annotated[bool, typer.Option("--keep", help="Keep only these.")] = False,
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Drop rows by number, as a new snapshot."""
    _apply(name, {"kind": "drop", "rows": row, "keep": keep}, as_json, home)


@app.command("overlap")
def overlap_(
    name: Annotated[str, typer.Argument(help="An imported dataset.")],
    other: Annotated[str, typer.Argument(help="A file or dataset, such as one to evaluate on.")],
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Count the rows that two datasets share, word for word."""

    def work() -> None:
        from studio.data.curate import overlap

        count = overlap(home_at(home), name, other)
        if as_json:
            print_json({"dataset": name, "other": other, "rows": count})
        else:
            typer.echo(f"{count:,} rows of {other} are in {name} too.")

    guarded(work, as_json)


def _apply(name: str, step: dict[str, Any], as_json: bool, home: str) -> None:
    def work() -> None:
        from studio.data.curate import apply_step, parse_step

        meta = apply_step(home_at(home), name, parse_step(step)).meta
        if meta.name == name and not as_json:
            typer.echo(
                f'Nothing was removed: "{name}" keeps its {meta.rows:,} rows. No copy was made.'
            )
        else:
            say_snapshot(meta, as_json, already=meta.name == name)

    guarded(work, as_json)
