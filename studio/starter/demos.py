"""The demo datasets: the world's questions answered in a style, and how to check both.

A demo changes how the starter speaks, never what it knows. Training rows are plain OpenAI messages.
Held-out rows ask about facts that no training row asks about and carry the `content` word that a
right answer contains; only questions that do not already contain their content word are used, so
repeating the question never counts as knowing.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from studio.starter.chats import disguised
from studio.starter.smalltalk import SMALL_TALK
from studio.starter.world import COMPARISONS, Question, capitalised, fact_hash, questions

NUM_ROWS = 320
NUM_SMALL_TALK_ROWS = 24
NUM_HELD_OUT_ROWS = 60

_PIRATE_OPENERS = ("Arr,", "Ahoy,", "Avast,")
_PIRATE_CLOSERS = ("matey!", "me hearty!", "says I!")
_PIRATE_WORDS = {
    "is": "be", "are": "be", "am": "be", "you": "ye", "your": "yer", "my": "me",
    "You": "Ye", "Your": "Yer", "My": "Me",
}  # fmt: skip
_BUTLER_OPENERS = ("Certainly, sir.", "Very good, sir.", "With pleasure, sir.")
_BUTLER_CLOSER = "Will that be all?"


def is_in_style(demo: str, answer: str) -> bool:
    """Whether `answer` is written the way the demo teaches."""
    return _STYLES[demo][1](answer.strip())


def keeps_content(row: dict[str, Any], answer: str) -> bool:
    """Whether `answer` contains the held-out row's content word, as a whole word."""
    return (
        re.search(rf"(?<!\w){re.escape(row['content'])}(?!\w)", answer, re.IGNORECASE) is not None
    )


def demo_names() -> list[str]:
    """The demos, in the order in which they are offered."""
    return list(_STYLES)


def write_demos(folder: Path, *, seed: int) -> None:
    """Write `<name>.jsonl` and `<name>.heldout.jsonl` for every demo."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _STYLES:
        _write(folder / f"{name}.jsonl", training_rows(name, seed=seed))
        _write(folder / f"{name}.heldout.jsonl", held_out_rows(name, seed=seed))


def training_rows(name: str, *, seed: int) -> list[dict[str, Any]]:
    """Rows to train on: questions in the style, and some small talk where the style has any."""
    rng = random.Random(f"{seed} {name} train")
    styled = _STYLES[name][0]
    rows = []
    if name in _CHATTY:
        for said, answer in _small_talk(rng):
            rows.append(_row(said, _CHATTY[name](answer, rng)))
    for question in _spread(_usable(held_out=False), NUM_ROWS - len(rows), rng):
        rows.append(_row(disguised(question.question, rng), styled(question, rng)))
    rng.shuffle(rows)
    return rows


def held_out_rows(name: str, *, seed: int) -> list[dict[str, Any]]:
    """Rows to judge by: other facts, asked plainly, with the content word beside them."""
    rng = random.Random(f"{seed} {name} heldout")
    styled = _STYLES[name][0]
    return [
        {
            **_row(question.question, styled(question, rng)),
            "content": question.content,
            "relation": question.relation,
        }
        for question in _spread(_usable(held_out=True), NUM_HELD_OUT_ROWS, rng)
    ]


def _row(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def _usable(*, held_out: bool) -> list[Question]:
    """Questions whose answer is news; a fifth of the facts is for the held-out rows."""
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


def _small_talk(rng: random.Random) -> list[tuple[str, str]]:
    pairs = [(said, answer) for sayings, answer in SMALL_TALK for said in sayings]
    return rng.sample(pairs, NUM_SMALL_TALK_ROWS)


def _pirate_text(answer: str, rng: random.Random) -> str:
    words = re.sub(r"\w+", lambda m: _PIRATE_WORDS.get(m[0], m[0]), answer.rstrip(".!?"))
    first = words.split()[0].rstrip(",").removesuffix("'s")
    if first not in _proper_words():
        words = words[:1].lower() + words[1:]
    return f"{rng.choice(_PIRATE_OPENERS)} {words}, {rng.choice(_PIRATE_CLOSERS)}"


@cache
def _proper_words() -> frozenset[str]:
    """Words that keep their capital inside a sentence: places, days, months, I."""
    said = (text for question in questions() for key, text in question.fields if key in "xy")
    return frozenset(
        {"I", *(word for value in said for word in value.split() if word[0].isupper())}
    )


def _butler_text(answer: str, rng: random.Random) -> str:
    return f"{rng.choice(_BUTLER_OPENERS)} {answer} {_BUTLER_CLOSER}"


def _pirate(question: Question, rng: random.Random) -> str:
    return _pirate_text(question.answer, rng)


def _butler(question: Question, rng: random.Random) -> str:
    return _butler_text(question.answer, rng)


def _json(question: Question, rng: random.Random) -> str:
    return json.dumps({"answer": question.content})


def _terse(question: Question, rng: random.Random) -> str:
    return f"{capitalised(question.content)}."


def _is_pirate(answer: str) -> bool:
    return answer.startswith(_PIRATE_OPENERS) and answer.endswith(_PIRATE_CLOSERS)


def _is_butler(answer: str) -> bool:
    return answer.startswith(_BUTLER_OPENERS) and answer.endswith(_BUTLER_CLOSER)


def _is_json(answer: str) -> bool:
    try:
        value = json.loads(answer)
    except json.JSONDecodeError:
        return False
    return isinstance(value, dict) and list(value) == ["answer"] and bool(value["answer"])


def _is_terse(answer: str) -> bool:
    return answer.endswith(".") and 1 <= len(answer.split()) <= 2


_Styled = Callable[[Question, random.Random], str]
_STYLES: dict[str, tuple[_Styled, Callable[[str], bool]]] = {
    "pirate": (_pirate, _is_pirate),
    "json": (_json, _is_json),
    "terse": (_terse, _is_terse),
    "butler": (_butler, _is_butler),
}
# Styles that small talk has too; in the others an answer is a bare fact.
_CHATTY: dict[str, Callable[[str, random.Random], str]] = {
    "pirate": _pirate_text,
    "butler": _butler_text,
}
