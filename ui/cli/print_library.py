"""What commands about the library print: adapters and what they do, models, datasets."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.outcome_figures import figures, task_table
from studio.home import slug
from studio.names import compact, readable
from ui.cli.terminal_tables import number, pairs, printable, table
from ui.language import say

Answer = Any


# -- adapters --------------------------------------------------------------------------------------


def made(kind: str, text: str) -> Callable[[Answer], None]:
    """Return a printer for what was made for the library: a sentence, and its figures."""

    def show(answer: Answer) -> None:
        print(text.format(**answer))
        pairs(figures(kind, answer))

    return show


def evaluated(report: Mapping[str, Any]) -> None:
    """Print an adapter's evaluation; of standard tasks a table with a column per lane."""
    if "tasks" not in report:
        pairs(figures("evaluate", report))
        return
    head, rows, note = task_table(report)
    table(head, rows)
    print(note)


def picture(answer: Answer) -> None:
    """Print what an adapter changed, one line a module."""
    for change in answer["changes"]:
        size = f"{change['norm']:.2%}" if change["relative"] else f"{change['norm']:.3g}"
        rank = change["effective_rank"]
        words = "" if rank is None else f"  rank {rank:.1f}"
        layer = "outside" if change["layer"] < 0 else f"layer {change['layer']}"
        print(f"{layer:>8}  {change['module']:<28} {size:>9}{words}")


def adapters(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the library's adapters."""
    if not found:
        print("No adapters yet. `studio train --data starter:pirate` makes the first.")
    for one in found:
        loss = "" if one["last_loss"] is None else f", loss {one['last_loss']:.4f}"
        ended = f", {one['ended']} after {one['steps']} steps" if one["ended"] else ""
        print(f"{one['name']}: {one['method']} on {one['base']}{ended}{loss}")


def results(answer: Answer) -> None:
    """Print the results of the library's adapters as a table, or in another format."""
    if "text" in answer:
        print(answer["text"], end="")
        return
    columns = answer["columns"]
    rows = [
        [row["name"], row["method"], *(number(row.get(one["key"])) for one in columns)]
        for row in answer["rows"]
    ]
    table(["Adapter", "Method", *(one["title"] for one in columns)], rows)


# -- models ----------------------------------------------------------------------------------------


WAYS = ("full", "lora", "qlora")


def reach(fits: Sequence[Mapping[str, Any]]) -> str:
    """Return a model's longest length that fits, to print (`8k`, `2k*` if tight), or its bytes."""
    good = [one for one in fits if one["state"] in ("fits", "tight")]
    if not good:
        return readable(fits[0]["bytes"])
    last, tokens = good[-1], good[-1]["tokens"]
    return (
        f"{tokens // 1024}k" * (tokens >= 1024)
        + f"{tokens}" * (tokens < 1024)
        + "*" * (last["state"] == "tight")
    )


def _ways(row: Mapping[str, Any]) -> list[str]:
    if not row["fits"]:
        return ["–"] * len(WAYS)
    about = "" if row["fits"]["exact"] else "~"
    return [about + reach(row["fits"]["ways"][way]) for way in WAYS]


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns with the model last, so that its name is never cut."""
    widths = [max(len(row[at]) for row in [heads, *rows]) for at in range(len(heads) - 1)]
    for row in [heads, *rows]:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False)]
        print(printable("  ".join([*cells, row[-1]])))


def _footnote(device: str) -> None:
    print(
        f"The longest row of 512, 2k and 8k tokens that fits{device} (* tight), or the memory\n"
        "that 512 tokens need; ~ guessed from the number of parameters."
    )


def models(answer: Mapping[str, Any]) -> None:
    """Print the library's models that can be trained, then those that cannot, with the reason."""
    rows = [row for row in answer["models"] if not row["why_not"]]
    with_fits = any(row["fits"] for row in rows)
    heads = ["Size", "Context", *(("Full", "LoRA", "QLoRA") * with_fits), "Model"]
    for title, group in (
        ("On this machine:", [row for row in rows if row["kind"] != "curated"]),
        ("On the hub, to begin with:", [row for row in rows if row["kind"] == "curated"]),
    ):
        print(title)
        _lines(heads, [
            [compact(row["parameters"]), f"{row['context'] // 1024}k" if row["context"] > 1023
             else str(row["context"] or "–"), *(_ways(row) if with_fits else ()), row["path"]]
            for row in group
        ])  # fmt: skip
    if with_fits:
        device = answer["device"]
        _footnote(f" on {device['name']} ({readable(device['bytes'])})")
    _refused(answer["models"])
    for folder in answer["folders"]:
        if folder["trouble"]:
            print(folder["trouble"])
    if answer["offline"]:
        print("This studio is offline: `studio offline --off` lets it use the hub again.")


def _refused(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        if row["why_not"]:
            print(printable(f"Not for training: {row['why_not']}"))


def hub_models(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the models that a search of the hub found."""
    if not rows:
        print("No model of the hub matches that can be trained here; --all shows the others, too.")
        return
    heads = ["Size", "Downloads", "Full", "LoRA", "QLoRA", "Licence", "Model"]
    _lines(heads, [
        [compact(row["parameters"]), f"{row['downloads']:,}", *_ways(row), row["license"] or "–",
         row["id"] + (" (gated)" if row["gated"] else "")]
        for row in rows
    ])  # fmt: skip
    _footnote("")
    _refused(rows)


def hub_model(row: Mapping[str, Any]) -> None:
    """Print all of a hub model before its download."""
    left = row["bytes"] - row["arrived_bytes"]
    for name, value in {
        "model": row["id"], "commit": row["revision"], "parameters": compact(row["parameters"]),
        "context": f"{row['context']:,}" if row["context"] else "",
        "licence": row["license"] + (f" (gated: accept it on {row['page']})" * row["gated"]),
        "download": f"{len(row['files'])} files, {readable(left)} of {readable(row['bytes'])}",
        "free disk": readable(row["free_bytes"]), "goes to": row["folder"],
        **dict(zip(WAYS, _ways(row), strict=True)),
    }.items():  # fmt: skip
        if value:
            print(printable(f"{name:11} {value}"))
    print(printable(row["why_not"]) or f"Download it with `studio models get {row['id']}`.")


def removed_model(answer: Mapping[str, Any]) -> None:
    """Print what deleting a model frees, and which adapters lose their base."""
    size, model = readable(answer["bytes"]), answer["model"]
    print(f"{model} is deleted: {size} are free." if answer["removed"]
          else f"`studio models remove {model} --yes` frees {size}.")  # fmt: skip
    if answer["adapters"]:
        print("Adapters that need it as their base: " + ", ".join(answer["adapters"]) + ".")


def hub_token(answer: Mapping[str, Any]) -> None:
    """Print whose token for the hub is stored."""
    if answer["account"]:
        print(f"The stored token is of {answer['account']}.")
    else:
        print(f"No token is stored. Make one with read access on {answer['page']}.")


# -- datasets --------------------------------------------------------------------------------------


def checked(reports: Sequence[Mapping[str, Any]]) -> None:
    """Print what a dataset's checked files hold."""
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
    """Print the dataset that a curating step made, or that nothing changed."""
    if not found["already"]:
        dataset(found)
        return
    kept = f'"{found["name"]}" keeps its {found["rows"]:,} rows'
    print(f"Nothing was removed: {kept}. No copy was made.")


def mapped(found: Mapping[str, Any]) -> None:
    """Print a dataset's mapping and first rows, or the dataset that was remapped."""
    if "report" in found:
        curated(found)
        return
    print(json.dumps({key: value for key, value in found["mapping"].items() if value}))
    for row in found["rows"]:
        print(printable(json.dumps(row, ensure_ascii=False, indent=1), keep_lines=True))


def xray(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a dataset's rows with their trained and cut parts marked."""
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
