"""`studio data ...`: every action of the Data page as a command. Loads no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from studio.data.printing import (
    print_json,
    printable,
    say_snapshot,
    short,
    show_check,
    show_progress,
    show_xray,
)
from studio.errors import DataError, InputError, StudioError

app = typer.Typer(
    help="Datasets: check, import, map, X-ray, split, overlap, list, export, delete.",
    no_args_is_help=True,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
HomeDir = Annotated[str, typer.Option("--home", help="The home folder; STUDIO_HOME when absent.")]


@app.command("check")
def check(
    files: Annotated[list[str], typer.Argument(help="Files, folders, hub ids or demos.")],
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Read files whole and say what a run would keep, drop and why. Exit code 2 on a refusal."""
    from studio.data.check import check_file

    reports = [check_file(file, home=_home(home, create=False)) for file in files]
    if as_json:
        print_json([report.model_dump(mode="json") for report in reports])
    else:
        for report in reports:
            show_check(report)
    if not all(report.ok for report in reports):
        raise typer.Exit(2)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A file, folder, hub id or demo.")],
    name: Annotated[str, typer.Option(help="What to call it.")] = "",
    subset: Annotated[str, typer.Option(help="Configuration on the hub.")] = "",
    split: Annotated[str, typer.Option(help="Split on the hub.")] = "train",
    mapping: Annotated[str, typer.Option(help="A mapping file, as `map --json` prints.")] = "",
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Keep a dataset as an immutable snapshot with hash, mapping and report."""

    def work() -> None:
        from studio.data.importing import import_dataset
        from studio.spec import DataSource

        wanted = DataSource(path=source, subset=subset, split=split)
        progress = None if as_json or not sys.stderr.isatty() else show_progress
        made = import_dataset(
            _home(home), wanted, name=name, mapping=_read_mapping(mapping), progress=progress
        )
        say_snapshot(made.snapshot.meta, as_json, already=made.already)

    _guarded(work, as_json)


@app.command("map")
def map_(
    source: Annotated[str, typer.Argument(help="A file, or the name of an imported dataset.")],
    format: Annotated[str, typer.Option(help="What the rows are.")] = "",
    column: Annotated[list[str] | None, typer.Option(help="part=column or part=a.b.c")] = None,
    template: Annotated[list[str] | None, typer.Option(help='part="{title}: {body}"')] = None,
    constant: Annotated[list[str] | None, typer.Option(help="part=fixed text")] = None,
    role: Annotated[list[str] | None, typer.Option(help="name in the file=our role")] = None,
    rows: Annotated[int, typer.Option(help="Rows to show.")] = 3,
    save: Annotated[bool, typer.Option("--save", help="Apply it to the imported dataset.")] = False,
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Show how rows are read, correct it, and see the first rows rendered at once."""

    def work() -> None:
        from studio.data.preview import corrected, preview

        place = _home(home)
        changes = {
            "columns": _pairs(column), "templates": _pairs(template),
            "constants": _pairs(constant), "roles": _pairs(role),
        }  # fmt: skip
        mapping = corrected(source, format, changes, place)
        shown = preview(source, mapping, count=rows, home=place)
        if save:
            from studio.data.curate import Remap, apply_step

            meta = apply_step(place, source, Remap(mapping=mapping)).meta
            say_snapshot(meta, as_json)
        elif as_json:
            print_json({"mapping": mapping.model_dump(mode="json"), "rows": shown})
        else:
            typer.echo(json.dumps(mapping.model_dump(mode="json", exclude_defaults=True)))
            for row in shown:
                typer.echo(json.dumps(row, ensure_ascii=False, indent=1))

    _guarded(work, as_json)


@app.command("xray")
def xray_(
    source: Annotated[str, typer.Argument(help="A file, dataset, hub id or demo.")],
    model: Annotated[str, typer.Option(help="The model whose tokenizer is used.")] = "starter",
    row: Annotated[list[int] | None, typer.Option(help="Row numbers from 1.")] = None,
    pick: Annotated[str, typer.Option(help="first, longest, shortest or random.")] = "first",
    count: Annotated[int, typer.Option(help="How many rows.", min=1, max=1000)] = 3,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens.", min=8)] = 1024,
    train_on: Annotated[str, typer.Option(help="assistant, last or all.")] = "assistant",
    chat_template: Annotated[str, typer.Option(help="auto or a named fallback.")] = "auto",
    seed: int = 0,
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Show rows as the trainer sees them: [[trained]], masked, and what is cut off."""

    def work() -> None:
        from studio.data.templates.backend import backend_from_folder
        from studio.data.xray import xray
        from studio.models.sources import facts
        from studio.spec import ModelSource, RunSpec

        if pick not in ("first", "longest", "shortest", "random"):
            raise DataError(f'--pick is "{pick}": use first, longest, shortest or random.')
        found = facts(ModelSource(path=model))
        data = {"path": source, "max_length": max_length, "train_on": train_on,
                "chat_template": chat_template}  # fmt: skip
        shown = xray(
            RunSpec.parse({"data": data}).data,
            backend_from_folder(found.path),
            context_length=found.context_length,
            rows=row,
            pick=pick,  # type: ignore[arg-type]
            count=count,
            seed=seed,
            home=_home(home),
        )
        if as_json:
            print_json([one.model_dump(mode="json") for one in shown])
        else:
            for one in shown:
                show_xray(one)

    _guarded(work, as_json)


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
        from studio.data.overlap import overlap

        count = overlap(_home(home), name, other)
        if as_json:
            print_json({"dataset": name, "other": other, "rows": count})
        else:
            typer.echo(f"{count:,} rows of {other} are in {name} too.")

    _guarded(work, as_json)


@app.command("list")
def list_(as_json: AsJson = False, home: HomeDir = "") -> None:
    """List the imported datasets."""

    def work() -> None:
        from studio.data.snapshots import snapshots

        metas = [snapshot.meta for snapshot in snapshots(_home(home))]
        if as_json:
            print_json([short(meta) for meta in metas])
            return
        if not metas:
            typer.echo("No dataset is imported yet: studio data import FILE")
        for meta in metas:
            typer.echo(f"{meta.name:32} {meta.rows:>12,} rows  {meta.mapping.format:18} "
                       f"{meta.hash[:12]}")  # fmt: skip

    _guarded(work, as_json)


@app.command("export")
def export(
    name: Annotated[str, typer.Argument(help="An imported dataset.")],
    target: Annotated[Path, typer.Argument(help="A name ending in .jsonl or .csv.")],
    part: Annotated[str, typer.Option(help="train or validation; everything when absent.")] = "",
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Write the rows of a dataset to a file."""

    def work() -> None:
        from studio.data.export import export_rows
        from studio.data.snapshots import open_snapshot

        count = export_rows(open_snapshot(_home(home), name), target, part=part)
        if as_json:
            print_json({"file": str(target), "rows": count})
        else:
            typer.echo(f"{count:,} rows are in {target}.")

    _guarded(work, as_json)


@app.command("delete")
def delete(
    name: Annotated[str, typer.Argument(help="An imported dataset.")],
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Delete an imported dataset."""

    def work() -> None:
        from studio.data.snapshots import delete_snapshot

        delete_snapshot(_home(home), name)
        if as_json:
            print_json({"deleted": name})
        else:
            typer.echo(f"{name} is deleted.")

    _guarded(work, as_json)


def _apply(name: str, step: dict[str, Any], as_json: bool, home: str) -> None:
    def work() -> None:
        from studio.data.curate import apply_step, parse_step

        say_snapshot(apply_step(_home(home), name, parse_step(step)).meta, as_json)

    _guarded(work, as_json)


def _guarded(work: Any, as_json: bool) -> None:
    try:
        work()
    except StudioError as error:
        if as_json:
            print_json({"error": error.as_dict()})
        else:
            typer.echo(f"Error: {printable(error.text)}", err=True)
        raise typer.Exit(error.exit_code) from None


def _home(path: str, *, create: bool = True) -> Any:
    from studio.home import open_home

    if create:
        return open_home(path or None)
    try:
        return open_home(path or None)
    except InputError:
        return None  # checking a file needs no home


def _pairs(given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise DataError(f'"{text}" is no pair: write it as part=column.')
        pairs[key] = value
    return pairs


def _read_mapping(path: str) -> Any:
    if not path:
        return None
    from pydantic import ValidationError

    from studio.data.mapping import Mapping

    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        return Mapping.model_validate(values.get("mapping", values))
    except OSError as error:
        raise DataError(f"The mapping file {path} cannot be read ({error.strerror}).") from None
    except (ValueError, AttributeError, ValidationError) as error:
        first = str(error).splitlines()[0][:120]
        raise DataError(f"The mapping file {path} is not a mapping: {first}.") from None
