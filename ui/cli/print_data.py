"""Print what commands about datasets answer: checks, imports, mappings, rows with their tokens."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from studio.home import slug
from studio.names import readable
from ui.cli.terminal_tables import printable, table
from ui.language import say

Answer = Any


def checked(reports: Sequence[Mapping[str, Any]]) -> None:
    """Print what checked files hold."""
    for report in reports:
        name = printable(report["file"])
        if report["error"]:
            print(f"{name}: refused. {printable(say(report['error']['text']))}", file=sys.stderr)
            continue
        rows, reason = report["rows"], printable(report["reason"])
        usable = f"{rows['kept']:,} of {rows['read']:,} rows can be used"
        print(f"{name}: {usable}. {report['format']}: {reason}.")
        for warning in report["warnings"]:
            print(f"  {printable(say(warning))}")
        for problem in report["problems"][:10]:
            print(f"  line {problem['line']:,}: {printable(say(problem['text']))}")
        if len(report["problems"]) > 10:
            print("  … all of them with --json")


def dataset(found: Mapping[str, Any]) -> None:
    """Print a dataset that was imported or made."""
    kept, asked = found["report"]["rows"], str(found.get("asked") or "")
    known = "was imported before" if found["already"] else "is imported"
    usable = f"{kept['kept']:,} of {kept['read']:,} rows can be used"
    print(f'"{found["name"]}" {known}: {usable}, {found["format"]} ({found["reason"]}).')
    for warning in found["report"]["warnings"]:
        print(f"  {printable(say(warning))}")
    if found["already"] and asked and slug(asked) != found["name"]:
        print(f'  It keeps its name: it was not called "{printable(asked[:60])}".')


def mixed(found: Mapping[str, Any]) -> None:
    """Print a mix with its counts by source."""
    dataset(found)
    for one in found["step"]["sources"]:
        print(f"  {one['rows']:>9,} of {one['of']:,} rows from {printable(one['name'])}")


def hub_datasets(found: Sequence[Mapping[str, Any]]) -> None:
    """Print datasets that the hub has."""
    rows = [(one["id"], f"{one['downloads']:,}", one["license"] or "–",
             "gated" if one["gated"] else "") for one in found]  # fmt: skip
    table(["Dataset", "Downloads", "Licence", ""], rows) if rows else print("Nothing was found.")


def hub_dataset(found: Mapping[str, Any]) -> None:
    """Print what a dataset of the hub holds."""
    print(f"{found['id']}: {found['files']} files, {readable(found['bytes'])}, "
          f"licence {found['license'] or 'unknown'}{', gated' * found['gated']}")  # fmt: skip
    rows = [
        (one["subset"], one["split"], "–" if one["rows"] is None else f"{one['rows']:,}",
         "–" if one["bytes"] is None else readable(one["bytes"])) for one in found["parts"]
    ]  # fmt: skip
    if rows:
        table(["Configuration", "Split", "Rows", "Size"], rows)
    print(f"studio data map {found['id']} shows its first rows; studio data import takes it.")


def curated(found: Mapping[str, Any]) -> None:
    """Print the dataset that a step made, or that nothing changed."""
    if not found["already"]:
        dataset(found)
        return
    kept = f'"{found["name"]}" keeps its {found["rows"]:,} rows'
    print(f"Nothing was removed: {kept}. No copy was made.")


def mapped(found: Mapping[str, Any]) -> None:
    """Print a mapping and the first rows read with it, or the dataset that was remapped."""
    if "report" in found:
        curated(found)
        return
    print(json.dumps({key: value for key, value in found["mapping"].items() if value}))
    for row in found["rows"]:
        print(printable(json.dumps(row, ensure_ascii=False, indent=1), keep_lines=True))


def xray(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows with their trained and cut parts marked."""
    marks = {"trained": ("[[", "]]"), "truncated": ("~~", "~~"), "masked": ("", "")}
    for row in rows:
        counts = f"{row['num_tokens']} tokens, {row['num_trained']} trained"
        cut = f"{row['num_truncated']} cut off"
        turn = f", turn {row['part']} of {row['num_parts']}" if row["num_parts"] > 1 else ""
        side = f", {row['side']}" if row["side"] else ""
        print(f"row {row['row']} (line {row['line']}){side}{turn}: {counts}, {cut}")
        for part in row["lost"]:
            where = f"message {part['message']}" if part["message"] else "the row"
            text = printable(part["text"][:200])
            print(f"  left out by the template: {part['kind']} of {where}: ~~{text}~~")
        for part in row["weights"]:
            print(f"  tokens {part['start'] + 1} to {part['stop']}: loss weight {part['weight']:g}")
        if row["problem"]:
            print(f"  dropped: {printable(say(row['problem']))}")
            continue
        out, state = "", "masked"
        for token in row["tokens"]:
            if token["state"] != state:
                out += marks[state][1] + marks[token["state"]][0]
                state = token["state"]
            out += printable(token["text"], keep_lines=True)
        print(out + marks[state][1])
