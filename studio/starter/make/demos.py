"""The demo datasets: the world's questions answered in a style.

A demo changes how the starter answers, not what it knows. Training rows are plain OpenAI messages.
Held-out rows ask about facts that no training row asks about and carry the `content` word that a
right answer contains; only questions without their content word are used, so that repeating the
question does not count as knowing.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from studio.starter.make.chats import TEXTS, disguised
from studio.starter.make.world import COMPARISONS, Question, capitalised, fact_hash, questions

NUM_ROWS = 320
NUM_SMALL_TALK_ROWS = 24
NUM_HELD_OUT_ROWS = 60

PIRATE_OPENERS = ("Arr,", "Ahoy,", "Avast,")
PIRATE_CLOSERS = ("matey!", "me hearty!", "says I!")
_PIRATE_WORDS = {
    "is": "be", "are": "be", "am": "be", "you": "ye", "your": "yer", "my": "me",
    "You": "Ye", "Your": "Yer", "My": "Me",
}  # fmt: skip
BUTLER_OPENERS = ("Certainly, sir.", "Very good, sir.", "With pleasure, sir.")
BUTLER_CLOSER = "Will that be all?"


def write_demos(folder: Path, *, seed: int) -> None:
    """Write `<name>.jsonl` and `<name>.heldout.jsonl` of every demo."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _STYLES:
        for suffix, rows in (("", training_rows), (".heldout", held_out_rows)):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(name, seed=seed)]
            (folder / f"{name}{suffix}.jsonl").write_text("".join(lines), encoding="utf-8")


def training_rows(name: str, *, seed: int) -> list[dict[str, Any]]:
    """Return rows to train on: questions in the style, and small talk where the style has any."""
    rng = random.Random(f"{seed} {name} train")
    styled = _STYLES[name]
    rows = []
    if name in _SMALL_TALK_STYLES:
        pairs = [(said, pair["answer"]) for pair in TEXTS["small_talk"] for said in pair["said"]]
        for said, answer in rng.sample(pairs, NUM_SMALL_TALK_ROWS):
            rows.append(_row(said, _SMALL_TALK_STYLES[name](answer, rng)))
    for question in _spread(_usable(held_out=False), NUM_ROWS - len(rows), rng):
        rows.append(_row(disguised(question.question, rng), styled(question, rng)))
    rng.shuffle(rows)
    return rows


def held_out_rows(name: str, *, seed: int) -> list[dict[str, Any]]:
    """Return rows to judge by: other facts, asked plainly, with the content word beside them."""
    rng = random.Random(f"{seed} {name} heldout")
    styled = _STYLES[name]
    return [
        {
            **_row(question.question, styled(question, rng)),
            "content": question.content,
            "relation": question.relation,
        }
        for question in _spread(_usable(held_out=True), NUM_HELD_OUT_ROWS, rng)
    ]


def _row(question: str, answer: str) -> dict[str, Any]:
    said = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    return {"messages": list(said)}


def _usable(*, held_out: bool) -> list[Question]:
    """Return questions that do not contain their answer; a fifth of the facts is held out."""
    return [
        question
        for question in questions()
        if question.relation not in (*COMPARISONS, "is_colour")
        and question.content.lower() not in re.findall(r"\w+", question.question.lower())
        and (fact_hash(question) % 5 == 0) is held_out
    ]


def _spread(pool: list[Question], count: int, rng: random.Random) -> list[Question]:
    """Draw `count` different questions, every relation about equally often."""
    by_relation: dict[str, list[Question]] = {}
    for question in pool:
        by_relation.setdefault(question.relation, []).append(question)
    for items in by_relation.values():
        rng.shuffle(items)
    chosen: list[Question] = []
    while len(chosen) < count:
        for items in by_relation.values():
            if items and len(chosen) < count:
                chosen.append(items.pop())
    return chosen


def _pirate_text(answer: str, rng: random.Random) -> str:
    words = re.sub(r"\w+", lambda m: _PIRATE_WORDS.get(m[0], m[0]), answer.rstrip(".!?"))
    first = words.split()[0].rstrip(",").removesuffix("'s")
    if first not in _proper_words():
        words = words[:1].lower() + words[1:]
    return f"{rng.choice(PIRATE_OPENERS)} {words}, {rng.choice(PIRATE_CLOSERS)}"


@cache
def _proper_words() -> frozenset[str]:
    """Words that keep their capital inside a sentence: places, days, months, I."""
    said = (text for question in questions() for key, text in question.fields if key in "xy")
    return frozenset(
        {"I", *(word for value in said for word in value.split() if word[0].isupper())}
    )


def _butler_text(answer: str, rng: random.Random) -> str:
    return f"{rng.choice(BUTLER_OPENERS)} {answer} {BUTLER_CLOSER}"


# How each demo answers a question.
_STYLES: dict[str, Callable[[Question, random.Random], str]] = {
    "pirate": lambda question, rng: _pirate_text(question.answer, rng),
    "json": lambda question, rng: json.dumps({"answer": question.content}),
    "terse": lambda question, rng: f"{capitalised(question.content)}.",
    "butler": lambda question, rng: _butler_text(question.answer, rng),
}
# Styles that small talk has too; in the others an answer is a bare fact.
_SMALL_TALK_STYLES = {"pirate": _pirate_text, "butler": _butler_text}
