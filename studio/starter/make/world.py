"""The starter's toy world as questions with exactly one right answer each.

`world.yaml` holds the facts and the phrasings. A question is a pair of both, and a twelfth of all
pairs is held out by a hash: no training chat contains them in any form, so that answering them
takes the fact from another phrasing and the phrasing from other facts. Comparisons are held out by
pair: those two things are never compared in training. `chats.py` makes whole chats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

HELD_OUT_ONE_IN = 12
COMPARISONS = ("bigger", "more")
Pairs = list[tuple[str, str]]


def read_table(name: str) -> dict[str, Any]:
    """Return a YAML file of this folder."""
    table: dict[str, Any] = yaml.safe_load((Path(__file__).parent / name).read_text("utf-8"))
    return table


WORLD = read_table("world.yaml")
PHRASINGS: dict[str, list[list[str]]] = WORLD["phrasings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question of the world with its one right answer and the word the answer is about."""

    relation: str
    key: str
    phrasing: int
    question: str
    answer: str
    content: str
    fields: tuple[tuple[str, str], ...]

    @property
    def held_out(self) -> bool:
        """True if training must not contain it."""
        if self.relation in COMPARISONS:
            return _hash(self.relation, *sorted(self.key.split("|"))) % HELD_OUT_ONE_IN == 0
        return _hash(self.relation, self.key, str(self.phrasing)) % HELD_OUT_ONE_IN == 0


@cache
def questions() -> tuple[Question, ...]:
    """Return all pairs of fact and phrasing, in a fixed order."""
    return tuple(
        Question(
            relation=relation,
            key=key,
            phrasing=number,
            question=ask.format(**fields),
            answer=capitalised(reply.format(**fields)),
            content=fields["n" if relation in COMPARISONS and asks_for_less(ask) else "content"],
            fields=tuple(fields.items()),
        )
        for relation, key, fields in _facts()
        for number, (ask, reply) in enumerate(PHRASINGS[relation])
    )


def held_out_questions() -> list[Question]:
    """Return the questions that measure the starter; training never contains them."""
    return [question for question in questions() if question.held_out]


def fact_hash(question: Question) -> int:
    """Return a number that depends on the fact only, not on the phrasing."""
    return _hash("fact", question.relation, question.key)


def with_article(noun: str) -> str:
    """`cat` -> `a cat`, `owl` -> `an owl`."""
    return f"an {noun}" if noun[0] in "aeiou" and noun != "unicycle" else f"a {noun}"


def capitalised(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def asks_for_less(ask: str) -> bool:
    """Return True if a comparison asks for the smaller of the two."""
    return "smaller" in ask or "less," in ask


def facts(relation: str) -> Pairs:
    """Return the `(x, y)` pairs of a relation of the file."""
    return _pairs(WORLD["facts"][relation])


def _pairs(text: str) -> Pairs:
    found = (item.partition(": ") for item in text.split(", "))
    return [(x, y) for x, _, y in found]


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "big")


def _facts() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield relation, key and fields of everything that is true."""
    for relation, pairs in _word_relations().items():
        for x, y in pairs:
            yield relation, x, _word_fields(x, y)
    for unit, table in WORLD["counts"].items():
        for owner, number in _pairs(table):
            yield "count", f"{unit} of {owner}", {**_word_fields(owner, number), "u": unit}
    for a in range(11):
        for b in range(11):
            yield "plus", f"{a}+{b}", _number_fields(a, b, a + b)
            if b <= a:
                yield "minus", f"{a}-{b}", _number_fields(a, b, a - b)
            if a <= 6 and b <= 6:
                yield "times", f"{a}*{b}", _number_fields(a, b, a * b)
    yield from _comparisons()
    yield from _colour_checks()


def _word_relations() -> dict[str, Pairs]:
    known = {relation: facts(relation) for relation in WORLD["facts"]}
    known["opposite"] += _reversed(known["opposite"])
    known["country"] = _reversed(known["capital"])
    known["made_by"] = _reversed(known["maker"])
    days, months = WORLD["days"].split(), WORLD["months"].split()
    known["after"] = [
        *zip(days, days[1:] + days[:1], strict=True),
        *zip(months, months[1:] + months[:1], strict=True),
        *((str(number), str(number + 1)) for number in range(30)),
    ]
    known["before"] = _reversed(known["after"])
    return {relation: known[relation] for relation in PHRASINGS if relation in known}


def _reversed(pairs: Pairs) -> Pairs:
    return [(y, x) for x, y in pairs]


def _word_fields(x: str, y: str) -> dict[str, str]:
    fields = {"x": x, "y": y, "ax": with_article(x), "ay": with_article(y)}
    upper = {capitalised(name): capitalised(text) for name, text in fields.items()}
    return {**fields, **upper, "content": y}


def _number_fields(a: int, b: int, y: int) -> dict[str, str]:
    return {"a": str(a), "b": str(b), "y": str(y), "content": str(y)}


def _comparisons() -> Iterator[tuple[str, str, dict[str, str]]]:
    sizes = WORLD["sizes"].split()
    for first in sizes:
        for second in sizes:
            if first != second:
                small, large = sorted((first, second), key=sizes.index)
                fields = {
                    "ax": with_article(first), "az": with_article(second),
                    "ay": with_article(large), "an": with_article(small),
                    "yes": "yes" if first == large else "no", "content": large, "n": small,
                }  # fmt: skip
                fields |= {"Ay": capitalised(fields["ay"]), "An": capitalised(fields["an"])}
                yield "bigger", f"{first}|{second}", fields
    for a in range(21):
        for b in range(21):
            if a != b:
                fields = {"a": str(a), "b": str(b), "y": str(max(a, b)), "n": str(min(a, b))}
                fields |= {"yes": "yes" if a > b else "no", "content": fields["y"]}
                yield "more", f"{a}|{b}", fields


def _colour_checks() -> Iterator[tuple[str, str, dict[str, str]]]:
    colours = sorted({colour for _, colour in facts("colour")})
    for thing, colour in facts("colour"):
        wrong = [c for c in colours if c != colour]
        picks = [wrong[_hash(thing, str(number)) % len(wrong)] for number in range(2)]
        for asked in dict.fromkeys([colour, *picks]):
            answer = "yes" if asked == colour else "no"
            fields = {**_word_fields(thing, colour), "w": asked, "yes": answer}
            yield "is_colour", f"{thing}|{asked}", fields
