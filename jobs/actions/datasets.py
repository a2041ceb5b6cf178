"""Actions on datasets: check, import, map, X-ray, split, filter, compare, export, delete.

Imports and steps become jobs when pages ask; the command line performs them in its own process.
"""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from jobs import suite_results
from jobs.actions.registry import action, field
from jobs.dataset_from_votes import LEFT_OUT, Kind, TurnFilter, rows_of
from jobs.job_inputs import refuse_in_use
from jobs.job_queue import JobStore
from studio.data.column_mapping import OPERATORS, Mapping, Operator
from studio.data.dataset_requests import (
    CurateRequest,
    ImportRequest,
    MixtureRequest,
    described,
    forget_upload,
    uploads,
)
from studio.errors import DataError, SpecError
from studio.home import Home
from studio.job_request import Request
from studio.spec import DataSource, ModelSource

NONE: Any = ()
FILES = {
    "pairs": "Votes on Compare", "answers": "Answers of Compare", "judged": "Verdicts on Compare",
}  # fmt: skip
MOST_ROWS = 100_000  # of one range
Source = Annotated[
    str, field("File, folder, hub id or demo.", positional=True, metavar="SOURCE", of="dataset")
]
Dataset = Annotated[
    str, field("Imported dataset.", positional=True, metavar="NAME", of="dataset", max_length=120)
]
NewName = Annotated[
    str,
    field(
        "As its parent by default.", title="Name of the new dataset", flag="-", max_length=120,
        advanced=True,
    ),
]  # fmt: skip
Format = Annotated[str, field("Format of the rows; guessed by default.")]
Column = Annotated[tuple[str, ...], field("part=column or part=a.b.c", metavar="PART=COLUMN")]
Template = Annotated[
    tuple[str, ...], field('part="{title}: {body}"', metavar="PART=TEXT", advanced=True)
]
Constant = Annotated[tuple[str, ...], field("part=fixed text", metavar="PART=TEXT", advanced=True)]
RowNumbers = Annotated[
    tuple[int, ...],
    BeforeValidator(lambda value: _row_numbers(value)),
    field("Row number from 1; repeat for several.", title="Rows"),
]
Role = Annotated[
    tuple[str, ...], field("name in the file=our role", metavar="NAME=ROLE", advanced=True)
]


@action("data.check")
def check(
    home: Home | None,
    files: Annotated[
        tuple[str, ...], field("Files, folders, hub ids or demos.", positional=True, metavar="FILE")
    ],
) -> list[dict[str, Any]]:
    """Read files whole: rows that a run would keep, drop and why. Exit code 2 on a refusal."""
    from studio.data.import_dataset import check_file

    return [check_file(file, home=home).model_dump(mode="json") for file in files]


@action("data.import", title="Import dataset", here=True)
def import_dataset(
    home: Home,
    source: Source,
    name: Annotated[
        str, field("Name of the dataset; the source's by default.", max_length=120)
    ] = "",
    subset: Annotated[str, field("Configuration on the hub.", advanced=True)] = "",
    split: Annotated[str, field("Split on the hub.", advanced=True)] = "train",
    mapping: Annotated[
        dict[str, Any] | str | None, field("Mapping file, as `map --json` prints.", advanced=True)
    ] = "",
    format: Format = "",
    column: Column = NONE,
    template: Template = NONE,
    constant: Constant = NONE,
    role: Role = NONE,
    uploaded: Annotated[bool, field("Delete the file after the import.", flag="-")] = False,
    rows: Annotated[
        int,
        field(
            "Take only N rows; the first ones of the hub are streamed.",
            metavar="N",
            ge=0,
            title="Rows to take",
        ),
    ] = 0,
    pick: Annotated[
        Literal["first", "random"], field("First, or by seed.", title="Which")
    ] = "first",
    seed: Annotated[int, field("Seed of random rows.", when={"pick": ("random",)})] = 0,
) -> Request:
    """Keep a dataset as an immutable snapshot with hash, mapping and report."""
    data = DataSource(path=source.strip(), subset=subset, split=split)
    chosen = Mapping.parse(mapping).checked() if isinstance(mapping, dict) else None
    if isinstance(mapping, str) and mapping:
        chosen = _read_mapping(mapping)
    changes = _changes(column, template, constant, role)
    if format or any(changes.values()):
        from studio.data.mapping_preview import corrected

        if chosen:
            raise DataError("Give a mapping file or --format and --column, not both.")
        chosen = corrected(data, format, changes, home)
    return ImportRequest(
        data=data, dataset=name, mapping=chosen, uploaded=uploaded, num_rows=rows, pick=pick,
        seed=seed,
    )  # fmt: skip


@action("data.mix", title="Mix datasets", here=True)
def mix_datasets(
    home: Home,
    sources: Annotated[
        tuple[str, ...],
        field(
            "Datasets with their weights, as in a:2,b:1.", positional=True, metavar="NAME:WEIGHT..."
        ),
    ],
    name: Annotated[str, field("Name of the mix.", max_length=120)] = "",
    rows: Annotated[
        int, field("Rows in all; by default as many as keep the shares.", metavar="N", ge=0)
    ] = 0,
    seed: Annotated[int, field("Seed of the draw and of the order.", advanced=True)] = 0,
) -> Request:
    """Mix datasets by weight into a new snapshot; each keeps its own mapping."""
    return MixtureRequest(sources=sources, dataset=name, num_rows=rows, seed=seed)


@action("data.search")
def search_datasets(
    home: Home,
    words: Annotated[str, field("Words of the name.", positional=True, metavar="WORDS")] = "",
    sort: Annotated[
        Literal["downloads", "likes", "last_modified", "trending_score"], field("Order.")
    ] = "downloads",
    limit: Annotated[int, field("Results.", ge=1, le=200)] = 30,
) -> list[dict[str, Any]]:
    """Search the hub for datasets."""
    from studio.data import hub_datasets

    return hub_datasets.search(words, sort=sort, limit=limit)


@action("data.show")
def show_dataset(
    home: Home,
    dataset: Annotated[str, field("Hub id.", positional=True, metavar="OWNER/NAME")],
) -> dict[str, Any]:
    """Show a hub dataset before its download: configurations, splits, rows, bytes, licence."""
    from studio.data import hub_datasets

    return hub_datasets.look_up(dataset.strip())


@action("data.map", title="Map columns", here=True)
def map_columns(
    home: Home,
    source: Source,
    format: Format = "",
    column: Column = NONE,
    template: Template = NONE,
    constant: Constant = NONE,
    role: Role = NONE,
    rows: Annotated[int, field("Rows to show.", ge=0, le=1000)] = 3,
    save: Annotated[bool, field("Apply it to the imported dataset.")] = False,
    whole: Annotated[dict[str, Any] | None, field("The whole mapping.", flag="-")] = None,
) -> Any:
    """Show how rows are read, correct it, and see the first rows rendered."""
    from studio.data.mapping_preview import corrected, preview

    data = DataSource(path=source)
    changes = _changes(column, template, constant, role)
    mapping = Mapping.parse(whole).checked() if whole else corrected(data, format, changes, home)
    shown = preview(data, mapping, count=rows, home=home)
    if save:
        return CurateRequest(data=data, step={"kind": "remap", "mapping": mapping.model_dump()})
    return {"mapping": mapping.model_dump(mode="json"), "rows": shown}


@action("data.xray", title="X-ray")
def xray_rows(
    home: Home,
    source: Source,
    model: Annotated[str, field("Model whose tokenizer is used.", of="model")] = "starter",
    row: Annotated[tuple[int, ...], field("Row number from 1; repeat for several.")] = NONE,
    pick: Annotated[
        Literal["first", "longest", "shortest", "random"], field("Which rows.")
    ] = "first",
    count: Annotated[int, field("Number of rows.", ge=1, le=1000)] = 3,
    max_length: Annotated[int, field("Longest row in tokens.", ge=8)] = 1024,
    train_on: Annotated[str, field("assistant, last or all.")] = "assistant",
    chat_template: Annotated[str, field("auto or a named template.")] = "auto",
    thoughts: Annotated[Literal["template", "turns", "keep"], field("Cut thoughts.")] = "template",
    seed: Annotated[int, field("Seed of random rows.")] = 0,
    plain: Annotated[bool, field("Preferences as train.loss=sft reads them.")] = False,
    subset: Annotated[str, field("Configuration on the hub.")] = "",
    split: Annotated[str, field("Split on the hub.")] = "train",
    whole: Annotated[dict[str, Any] | None, field("The whole mapping.", flag="-")] = None,
) -> list[dict[str, Any]]:
    """Show rows as the trainer sees them: [[trained]], masked, and what is cut off."""
    from studio.data.model_tokenizer import backend_for
    from studio.data.xray import xray
    from studio.models.find_model import facts

    found = facts(ModelSource(path=model))
    data = DataSource.parse(
        {"path": source, "max_length": max_length, "train_on": train_on,
         "chat_template": chat_template, "thoughts": thoughts, "subset": subset, "split": split}
    )  # fmt: skip
    shown = xray(
        data, backend_for(found.path, home), context_length=found.context_length,
        rows=list(row) or None, pick=pick, count=count, seed=seed, home=home, plain=plain,
        mapping=Mapping.parse(whole).checked() if whole else None,
    )  # fmt: skip
    return [one.model_dump(mode="json") for one in shown]


@action("data.list")
def listed(home: Home) -> list[dict[str, Any]]:
    """List the imported datasets."""
    from studio.data.snapshots import snapshots

    return [described(snapshot.meta) for snapshot in snapshots(home)]


@action("data.votes", title="Make a dataset")
def votes_dataset(
    store: JobStore,
    kind: Annotated[
        Kind,
        field(
            "Pairs (winner chosen, the others rejected), the best answers, or answers with a "
            "verdict each.",
            title="Rows",
            labels={
                "pairs": "pairs: chosen and rejected",
                "answers": "answers to learn from",
                "judged": "good and bad answers",
            },
        ),
    ] = "pairs",
    lane: Annotated[
        str, field("Only answers of this lane are chosen.", metavar="MODEL~ADAPTER:WEIGHT")
    ] = "",
    search: Annotated[str, field("Part of a title, a prompt or an answer.")] = "",
    since: Annotated[str, field("First day, as 2026-01-31.", advanced=True)] = "",
    until: Annotated[str, field("Last day.", advanced=True)] = "",
    blind: Annotated[bool, field("Blind votes only.", title="Blind votes only")] = False,
    unvoted: Annotated[
        bool,
        field(
            "Whole conversations, voted on or not.",
            title="Whole conversations",
            when={"kind": ("answers",)},
        ),
    ] = False,
    source: Annotated[
        str,
        field(
            "Verdicts of this judgement instead of your votes.",
            title="Judgement",
            metavar="ID",
            of="judge",
            advanced=True,
        ),
    ] = "",
    name: Annotated[str, field("Name of the dataset.", max_length=120)] = "",
) -> dict[str, Any]:
    """Make a dataset of votes and conversations of Compare; corrected answers count as chosen."""
    from studio.data.import_dataset import import_dataset

    if source and (search or since or until or blind or unvoted):
        raise DataError(
            "Search, days, blind and whole conversations choose among your own votes: leave them "
            "out for the verdicts of a judgement."
        )
    wanted = TurnFilter(
        lane=lane, search=search, since=since, until=until, blind=blind, unvoted=unvoted
    )
    turns = suite_results.judged_turns(store, source) if source else None
    rows, left_out = rows_of(store.database, kind, wanted, turns)
    title = "Verdicts of a judge" if source else FILES[kind]
    file = uploads(store.home) / secrets.token_hex(8) / f"{title}.jsonl"
    file.parent.mkdir(parents=True, mode=0o700)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    try:
        made = import_dataset(store.home, DataSource(path=str(file)), name=name)
    finally:
        forget_upload(store.home, file)
    said = {LEFT_OUT[why]: count for why, count in left_out.items()}
    return described(made.snapshot.meta) | {"already": made.already, "left_out": said}


@action("data.export")
def export(
    home: Home,
    name: Dataset,
    target: Annotated[str, field("New file, .jsonl or .csv.", positional=True, metavar="TARGET")],
    part: Annotated[
        Literal["", "train", "validation"], field("train or validation; everything by default.")
    ] = "",
    force: Annotated[bool, field("Replace an existing file.")] = False,
) -> dict[str, Any]:
    """Write the rows of a dataset to a file."""
    from studio.data.snapshots import export_rows, open_snapshot

    count = export_rows(open_snapshot(home, name), Path(target), part=part, replace=force)
    return {"file": target, "rows": count}


@action("data.delete")
def delete(store: JobStore, name: Dataset) -> dict[str, Any]:
    """Move an imported dataset to the trash, where it stays for 30 days."""
    from studio.data.snapshots import delete_snapshot, open_snapshot

    refuse_in_use(store, open_snapshot(store.home, name).folder, name, error=DataError)
    return {"deleted": name, "token": delete_snapshot(store.home, name).token}


@action("data.undo")
def undo(
    home: Home,
    dataset: Annotated[
        str,
        field("Deleted dataset; the last one by default.", positional=True, metavar="[NAME]"),
    ] = "",
) -> dict[str, Any]:
    """Restore a deleted dataset."""
    from studio.data.snapshots import restore_snapshot

    return described(restore_snapshot(home, dataset).meta)


@action("data.split", here=True)
def split(
    name: Dataset,
    fraction: Annotated[
        float, field("Share to hold out.", ge=0, lt=1, when={"count": ("0", "")})
    ] = 0.0,
    count: Annotated[int, field("Rows to hold out.", title="Rows", ge=0)] = 0,
    group_by: Annotated[
        str, field("Column whose groups stay together.", title="Keep together by", of="column")
    ] = "",
    seed: Annotated[int, field("Seed of the choice.", advanced=True)] = 0,
    dataset: NewName = "",
) -> Request:
    """Hold rows out of training, seeded and stored, as a new snapshot."""
    step = {"fraction": fraction, "count": count, "group_by": group_by, "seed": seed}
    return _step(name, dataset, "split", **step)


@action("data.filter", here=True)
def filter_rows(
    name: Dataset,
    min_characters: Annotated[
        int, field("Shortest row to keep.", title="Shortest row", unit="characters", ge=0)
    ] = 0,
    max_characters: Annotated[
        int,
        field("Longest row to keep; 0 for any.", title="Longest row", unit="characters", ge=0),
    ] = 0,
    column: Annotated[str, field("Column of the condition.", of="column")] = "",
    operator: Annotated[
        Operator,
        field("Condition on the column.", title="Condition", labels=OPERATORS),
    ] = "present",
    value: Annotated[str, field("Value of the condition.")] = "",
    dataset: NewName = "",
) -> Request:
    """Keep the rows that meet a condition, as a new snapshot."""
    return _step(
        name, dataset, "filter", min_characters=min_characters, max_characters=max_characters,
        column=column, operator=operator, value=value,
    )  # fmt: skip


@action("data.dedupe", title="Deduplicate", here=True)
def dedupe(
    name: Dataset,
    near: Annotated[bool, field("Nearly equal rows too.", title="Nearly equal rows too")] = False,
    dataset: NewName = "",
) -> Request:
    """Keep the first of equal rows, as a new snapshot."""
    return _step(name, dataset, "dedupe", near=near)


@action("data.drop", title="Drop rows", here=True)
def drop(
    name: Dataset,
    row: RowNumbers,
    keep: Annotated[bool, field("Keep only these rows.", title="Keep only these")] = False,
    dataset: NewName = "",
) -> Request:
    """Drop rows by number, as a new snapshot."""
    return _step(name, dataset, "drop", rows=row, keep=keep)


@action("data.overlap")
def count_overlap(
    home: Home,
    name: Dataset,
    other: Annotated[
        str, field("File or dataset, such as one to evaluate on.", positional=True, metavar="OTHER")
    ],
    most: Annotated[int, field("Refuse more characters than this.", flag="-")] = 0,
) -> dict[str, Any]:
    """Count the rows that two datasets share, word for word."""
    from studio.data.curate_dataset import overlap
    from studio.data.snapshots import open_snapshot

    both = [open_snapshot(home, one).meta.findings.characters for one in (name, other) if most]
    if sum(both) > most:
        raise DataError(f"That is much text: ask in a terminal, studio data overlap {name} {other}")
    return {"dataset": name, "other": other, "rows": overlap(home, name, other)}


def _step(name: str, dataset: str, kind: str, **values: Any) -> Request:
    step = {"kind": kind, **values}
    return CurateRequest(data=DataSource(path=name), step=step, dataset=dataset)


def _changes(
    column: Sequence[str], template: Sequence[str], constant: Sequence[str], role: Sequence[str]
) -> dict[str, dict[str, str]]:
    return {
        "columns": _pairs(column), "templates": _pairs(template),
        "constants": _pairs(constant), "roles": _pairs(role),
    }  # fmt: skip


def _row_numbers(value: Any) -> Any:
    """Expand ranges such as `40-52` in a list of row numbers."""
    if not isinstance(value, list | tuple):
        return value
    numbers: list[Any] = []
    for one in value:
        low, dash, high = str(one).partition("-")
        if not (dash and low.isdecimal() and high.isdecimal()):
            numbers.append(one)
        elif int(high) - int(low) < MOST_ROWS:
            numbers += range(int(low), int(high) + 1)
        else:
            raise ValueError(f'"{one}" is more than {MOST_ROWS:,} rows')
    return numbers


def _pairs(given: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise DataError(f'"{text}" is not a pair: write it as part=column.')
        pairs[key] = value
    return pairs


def _read_mapping(path: str) -> Mapping:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return Mapping.parse(values.get("mapping", values))
    except OSError as error:
        why = (error.strerror or "").lower()
        raise DataError(f"The mapping file {path} cannot be read ({why}).") from None
    except SpecError as error:
        raise DataError(f"The mapping file {path} cannot be used. {error.text}") from None
    except ValueError:
        pass
    raise DataError(f"{path} is not a mapping file: give what `studio data map … --json` printed.")
