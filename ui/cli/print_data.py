"""What commands about datasets and Compare print."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.actions.chat_and_compare import LETTERS
from studio.adapter_stack import StackItem
from studio.evaluation.export_votes_and_suites import title
from studio.home import slug
from studio.names import readable
from ui.language import say

Answer = Any
NAME_WIDTH = 20  # to which a column may be cut
EXAMPLE = """\
from openai import OpenAI

client = OpenAI(base_url="{url}", api_key="{key}")
answer = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello"}}]
)
print(answer.choices[0].message.content)"""


# -- data ------------------------------------------------------------------------------------------


def printable(text: str, *, keep_lines: bool = False) -> str:
    """Return text without escape codes, which a file may hold to repaint the terminal."""
    return "".join(
        c if c.isprintable() or (keep_lines and c in "\n\t") else f"\\x{ord(c):02x}" for c in text
    )


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


# -- compare ---------------------------------------------------------------------------------------


def compared(found: Mapping[str, Any]) -> None:
    """Print the answers of the lanes."""
    for letter, answer in zip(LETTERS, found["lanes"], strict=False):
        print(f"{letter}  {title(answer['lane'])}")
        print(f"   {answer.get('error', {}).get('text') or answer['text']}")
        if "tokens" in answer:
            print(f"   {answer['tokens']} tokens, {answer['tokens_per_second']} tokens/s")


def suite(found: Answer) -> None:
    """Print the means of a suite, or the list of suites."""
    if isinstance(found, list):
        for row in found:
            lanes = " · ".join(map(title, row["lanes"]))
            facts = f"{row['name']}  {row['state']}  {row['total_steps']} prompts  {lanes}"
            print(f"{row['id']:>4}  {facts}")
        return
    keys = [key for key in found["means"][0] if key != "lane"]
    rows = [
        [title(one["lane"]), *(number(one[key], "{:g}") for key in keys)] for one in found["means"]
    ]
    table(["Lane", *(key.replace("_", " ") for key in keys)], rows)


def judge(found: Answer) -> None:
    """Print how far a judge can be trusted and what it found, or the list of judgements."""
    if isinstance(found, list):
        for row in found:
            trust = "evidence" if row["evidence"] else row["why"].partition(":")[0].lower()
            print(f"{row['id']:>4}  {row['name']}  {row['state']}  {row['pairs']} pairs  {trust}")
        return
    shares = (("agreement", "with your votes"), ("self_agreement", "of both orders"),
              ("first", "for the first"), ("unreadable", "without a verdict"))  # fmt: skip
    for key, words in shares:
        one = found[key]
        rate = "" if one["rate"] is None else f"  {one['rate']:.0%}"
        interval = f"  ({one['low']:.0%} to {one['high']:.0%})" if one["of"] else ""
        print(f"{words:18} {one['count']:g} of {one['of']}{rate}{interval}")
    print(f"{found['pairs']} pairs, {found['ties']} ties.")
    for one in found["standings"]:
        print(f"{one['wins']:>4} won {one['losses']:>4} lost  {title(one['lane'])}")
    if found["why"]:
        print(found["why"])


def leaderboard(board: Mapping[str, Any]) -> None:
    """Print the ranking."""
    if not board["standings"]:
        print("No votes yet: ask two lanes on the Compare page, and vote for the better answer.")
    for place, one in enumerate(board["standings"], 1):
        record = f"{one['wins']} won, {one['losses']} lost, {one['ties']} tied"
        interval = f"{one['low']:.0f} to {one['high']:.0f}"
        print(f"{place:>3}  {one['score']:6.0f}  ({interval})  {title(one['lane'])}  {record}")


def conversations(found: Answer) -> None:
    """Print the list of conversations, or the turns of one."""
    if isinstance(found, list):
        for row in found:
            print(f"{row['id']}  {row['turns']:>3} turns  {row['title']}")
        return
    if "deleted" in found:
        print(f"Deleted {found['deleted']}.")
    for turn in found.get("turns", ()):
        print(f"> {turn['prompt']}")
        for letter, answer in zip(LETTERS, turn["answers"], strict=False):
            print(f"{letter}  {answer.get('text', '')}")


def endpoint(found: Mapping[str, Any]) -> None:
    """Print how a client of OpenAI's API reaches the chat host, with an example."""
    url, key, names = found["base_url"], found["api_key"], found["models"]
    print(f"Address  {url}\nKey      {key}\nModels   {', '.join(names)}")
    print("Model names: BASE, ADAPTER, or BASE+ADAPTER:WEIGHT+…; the default weight is 1.\n")
    print(EXAMPLE.format(url=url, key=key, model=names[-1]))


def recipes(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the recipes."""
    for row in found:
        parts = " + ".join(str(StackItem(**part)) for part in row["stack"])
        print(f"{row['name']}: {row['model']} + {parts}")


def number(value: float | None, form: str = "{:.4f}", unit: float = 1) -> str:
    """Return a number in units, or a dash."""
    return "–" if value is None else form.format(value / unit)


def duration(seconds: float | None) -> str:
    """Return a time span in words."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as wide as the terminal; whole where the output goes to a file or a program."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**6
    for line in fitted(head, [[printable(cell) for cell in row] for row in rows], width):
        print(line)


def fitted(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return the lines of a table, of which none is longer than `width` and no word is broken.

    The longest text is cut first, then the last columns are left out, which is said. A row with
    fewer cells than the head has its last one to the end of the line.
    """
    whole = [row for row in rows if len(row) == len(head)]
    sizes = [max(map(len, column)) for column in zip(head, *whole, strict=True)]
    while sum(sizes) + 2 * (len(sizes) - 1) > width and max(sizes) > NAME_WIDTH:
        sizes[sizes.index(max(sizes))] -= 1
    while sum(sizes) + 2 * (len(sizes) - 1) > width and len(sizes) > 2:
        sizes.pop()

    def line(cells: Sequence[str]) -> str:
        short = [_cut(cell, size).ljust(size) for cell, size in zip(cells, sizes, strict=False)]
        if len(cells) < len(head):
            short[-1] = _cut(cells[-1], width - sum(len(cell) + 2 for cell in short[:-1]))
        return "  ".join(short).rstrip()

    left = ", ".join(head[len(sizes) :])
    note = [_cut(f"Left out: {left} (widen the terminal, or use --json).", width)] if left else []
    return [line(head), *map(line, rows), *note]


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: max(1, size - 1)]}…"
