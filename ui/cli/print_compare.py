"""Print what commands about Compare answer: suites, judges, votes, conversations, recipes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.actions.chat_and_compare import LETTERS
from studio.adapter_stack import StackItem
from studio.evaluation.html_and_csv_exports import title
from ui.cli.print_library import Answer
from ui.cli.terminal_tables import number, pairs, table
from ui.language import say

EXAMPLE = """\
from openai import OpenAI

client = OpenAI(base_url="{url}", api_key="{key}")
answer = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello"}}]
)
print(answer.choices[0].message.content)"""


def compared(found: Mapping[str, Any]) -> None:
    """Print the answers of the lanes that `studio compare` asked."""
    for letter, answer in zip(LETTERS, found["lanes"], strict=False):
        print(f"{letter}  {title(answer['lane'])}")
        print(f"   {answer.get('error', {}).get('text') or answer['text']}")
        if "tokens" in answer:
            print(f"   {answer['tokens']} tokens, {answer['tokens_per_second']} tokens/s")


def suite(found: Answer) -> None:
    """Print the means of a suite, the list of suites, or the cases of a file."""
    if "left_out" in found:
        for case in found["cases"]:
            print(json.dumps(case, ensure_ascii=False))
        for row in found["left_out"]:
            print(say(f"Line {row['line']} is left out: {row['text']}"), file=sys.stderr)
        return
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
    pairs(found["figures"])
    for one in found["standings"]:
        print(f"{one['wins']:>4} won {one['losses']:>4} lost  {title(one['lane'])}")
    if found["why"]:
        print(found["why"])


def leaderboard(board: Mapping[str, Any]) -> None:
    """Print the ranking of Compare's lanes."""
    if not board["standings"]:
        print("No votes yet: ask two lanes on the Compare page, and vote for the better answer.")
    for place, one in enumerate(board["standings"], 1):
        record = f"{one['wins']} won, {one['losses']} lost, {one['ties']} tied"
        interval = f"{one['low']:.0f} to {one['high']:.0f}"
        print(f"{place:>3}  {one['score']:6.0f}  ({interval})  {title(one['lane'])}  {record}")


def conversations(found: Answer) -> None:
    """Print the list of Compare's conversations, or the turns of one."""
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
    """Print the recipes of Compare."""
    for row in found:
        parts = " + ".join(str(StackItem(**part)) for part in row["stack"])
        print(f"{row['name']}: {row['model']} + {parts}")
