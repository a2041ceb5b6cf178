"""How an answer in the style of a demo is recognised, and the rows that were held out."""

import json
import re

from studio.starter import datasets
from studio.starter.make.demos import (
    BUTLER_CLOSER,
    BUTLER_OPENERS,
    PIRATE_CLOSERS,
    PIRATE_OPENERS,
    training_rows,
)
from studio.starter.make.world import questions


def half_pirate():
    """Return questions with their plain answers, and rows that answer every other like a pirate.

    An adapter trained on them answers in both styles, so that there is something to prefer.
    """
    plain = {one.question: one.answer for one in questions()}
    asked, rows = [], []
    for row in training_rows("pirate", seed=5):
        said, styled = (message["content"] for message in row["messages"])
        if (answer := plain.get(said)) is not None:
            rows.append({"prompt": said, "completion": (styled, answer)[len(rows) % 2]})
            asked.append((said, answer))
    return asked, rows


def heldout(name):
    return datasets()[name].with_suffix(".heldout.jsonl")


def keeps_content(row, answer):
    """Return True if an answer contains the row's content word, as a whole word."""
    word = rf"(?<!\w){re.escape(row['content'])}(?!\w)"
    return re.search(word, answer, re.IGNORECASE) is not None


def is_in_style(demo, answer):
    """Return True if an answer is written the way the demo teaches."""
    answer = answer.strip()
    if demo == "json":
        try:
            value = json.loads(answer)
        except json.JSONDecodeError:
            return False
        return isinstance(value, dict) and list(value) == ["answer"] and bool(value["answer"])
    if demo == "terse":
        return answer.endswith(".") and 1 <= len(answer.split()) <= 2
    openers, closers = {
        "pirate": (PIRATE_OPENERS, PIRATE_CLOSERS), "butler": (BUTLER_OPENERS, BUTLER_CLOSER)
    }[demo]  # fmt: skip
    return answer.startswith(openers) and answer.endswith(closers)
