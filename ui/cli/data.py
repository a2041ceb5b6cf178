"""`studio data ...`: every action of the Data page as a command. Loads no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from studio.errors import DataError
from ui.cli.data_curate import app as curate_app
from ui.cli.data_printing import (
    AsJson,
    HomeDir,
    guarded,
    home_at,
    print_json,
    printable,
    say_snapshot,
    short,
    show_check,
    show_progress,
    show_xray,
)

app = typer.Typer(
    help="Datasets: check, import, map, X-ray, split, overlap, list, export, delete.",
    no_args_is_help=True,
)
app.add_typer(curate_app)
Format = Annotated[str, typer.Option("--format", help="What the rows are; guessed when absent.")]
Columns = Annotated[list[str] | None, typer.Option("--column", help="part=column or part=a.b.c")]
Templates = Annotated[list[str] | None, typer.Option("--template", help='part="{title}: {body}"')]
Constants = Annotated[list[str] | None, typer.Option("--constant", help="part=fixed text")]
Roles = Annotated[list[str] | None, typer.Option("--role", help="name in the file=our role")]


@app.command("check")
def check(
    files: Annotated[list[str], typer.Argument(help="Files, folders, hub ids or demos.")],
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Read files whole and say what a run would keep, drop and why. Exit code 2 on a refusal."""
    from studio.data.survey import check_file

    reports = [check_file(file, home=home_at(home, create=False)) for file in files]
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
    format: Format = "",
    column: Columns = None,
    template: Templates = None,
    constant: Constants = None,
    role: Roles = None,
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Keep a dataset as an immutable snapshot with hash, mapping and report."""

    def work() -> None:
        from studio.data.importing import import_dataset
        from studio.home import slug
        from studio.spec import DataSource

        wanted = DataSource(path=source, subset=subset, split=split)
        progress = None if as_json or not sys.stderr.isatty() else show_progress
        place, chosen = home_at(home), _read_mapping(mapping)
        changes = _changes(column, template, constant, role)
        if format or any(changes.values()):
            from studio.data.preview import corrected

            if chosen:
                raise DataError("Give a mapping file or --format and --column, not both.")
            chosen = corrected(wanted, format, changes, place)
        made = import_dataset(place, wanted, name=name, mapping=chosen, progress=progress)
        say_snapshot(made.snapshot.meta, as_json, already=made.already)
        kept = made.snapshot.meta.name
        if made.already and name and slug(name) != kept and not as_json:
            typer.echo(f'  It keeps its name: it was not called "{printable(name[:60])}".')

    guarded(work, as_json)


@app.command("map")
def map_(
    source: Annotated[str, typer.Argument(help="A file, or the name of an imported dataset.")],
    format: Format = "",
    column: Columns = None,
    template: Templates = None,
    constant: Constants = None,
    role: Roles = None,
    rows: Annotated[int, typer.Option(help="Rows to show.")] = 3,
    save: Annotated[bool, typer.Option("--save", help="Apply it to the imported dataset.")] = False,
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Show how rows are read, correct it, and see the first rows rendered at once."""

    def work() -> None:
        from studio.data.preview import corrected, preview
        from studio.spec import DataSource

        place = home_at(home)
        changes = _changes(column, template, constant, role)
        mapping = corrected(DataSource(path=source), format, changes, place)
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

    guarded(work, as_json)


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
        from studio.data.template.backend import backend_from_folder
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
            home=home_at(home),
        )
        if as_json:
            print_json([one.model_dump(mode="json") for one in shown])
        else:
            for one in shown:
                show_xray(one)

    guarded(work, as_json)


@app.command("list")
def list_(as_json: AsJson = False, home: HomeDir = "") -> None:
    """List the imported datasets."""

    def work() -> None:
        from studio.data.snapshots import snapshots

        metas = [snapshot.meta for snapshot in snapshots(home_at(home))]
        if as_json:
            print_json([short(meta) for meta in metas])
            return
        if not metas:
            typer.echo("No dataset is imported yet: studio data import FILE")
        for meta in metas:
            typer.echo(f"{meta.name:32} {meta.rows:>12,} rows  {meta.mapping.format:18} "
                       f"{meta.hash[:12]}")  # fmt: skip

    guarded(work, as_json)


@app.command("export")
def export(
    name: Annotated[str, typer.Argument(help="An imported dataset.")],
    target: Annotated[Path, typer.Argument(help="A name ending in .jsonl or .csv.")],
    part: Annotated[str, typer.Option(help="train or validation; everything when absent.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Write the rows of a dataset to a file."""

    def work() -> None:
        from studio.data.curate import export_rows
        from studio.data.snapshots import open_snapshot

        if part not in ("", "train", "validation"):
            raise DataError(f'--part is "{part}": use train or validation.')
        snapshot = open_snapshot(home_at(home), name)
        count = export_rows(snapshot, target, part=part, replace=force)
        if as_json:
            print_json({"file": str(target), "rows": count})
        else:
            typer.echo(f"{count:,} rows are in {target}.")

    guarded(work, as_json)


@app.command("delete")
def delete(
    name: Annotated[str, typer.Argument(help="An imported dataset.")],
    as_json: AsJson = False,
    home: HomeDir = "",
) -> None:
    """Delete an imported dataset."""

    def work() -> None:
        from studio.data.snapshots import delete_snapshot

        delete_snapshot(home_at(home), name)
        if as_json:
            print_json({"deleted": name})
        else:
            typer.echo(f"{name} is deleted.")

    guarded(work, as_json)


def _changes(
    column: list[str] | None, template: list[str] | None, constant: list[str] | None,
    role: list[str] | None,
) -> dict[str, dict[str, str]]:  # fmt: skip
    return {
        "columns": _pairs(column), "templates": _pairs(template),
        "constants": _pairs(constant), "roles": _pairs(role),
    }  # fmt: skip


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
    from studio.data.mapping import Mapping
    from studio.errors import SpecError
    from studio.fields import validated

    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return validated(Mapping, values.get("mapping", values))
    except OSError as error:
        why = (error.strerror or "").lower()
        raise DataError(f"The mapping file {path} cannot be read ({why}).") from None
    except SpecError as error:
        raise DataError(f"The mapping file {path} cannot be used. {error.text}") from None
    except ValueError:
        pass
    raise DataError(f"{path} is no mapping file: give what `studio data map … --json` printed.")
