"""The starter's little world as questions with exactly one right answer.

`facts.py` says what is true and `phrasings.py` how it is asked; here they meet. A question is a
combination (fact, phrasing), and a twelfth of all combinations is held out by a hash: no training
chat contains them in any disguise, so answering them means knowing the fact from one phrasing and
the phrasing from other facts. Comparisons are held out by pair: those two are never compared in
training. Whole chats are made in `chats.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from studio.starter import facts
from studio.starter.phrasings import PHRASINGS

HELD_OUT_ONE_IN = 12
# Held out by pair, not by phrasing: the model has to put the things in order by itself.
COMPARISONS = ("bigger", "more")


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
        """Whether training must never contain it."""
        if self.relation in COMPARISONS:
            return _hash(self.relation, *sorted(self.key.split("|"))) % HELD_OUT_ONE_IN == 0
        return _hash(self.relation, self.key, str(self.phrasing)) % HELD_OUT_ONE_IN == 0


@cache
def questions() -> tuple[Question, ...]:
    """All combinations of fact and phrasing, in a fixed order."""
    return tuple(
        Question(
            relation=relation,
            key=key,
            phrasing=number,
            question=ask.format(**fields),
            answer=capitalised(reply.format(**fields)),
            content=fields[_content_field(relation, ask)],
            fields=tuple(fields.items()),
        )
        for relation, key, fields in _facts()
        for number, (ask, reply) in enumerate(PHRASINGS[relation])
    )


def training_questions() -> list[Question]:
    """The questions that may be trained on."""
    return [question for question in questions() if not question.held_out]


def held_out_questions() -> list[Question]:
    """The questions that measure the starter; training never sees them."""
    return [question for question in questions() if question.held_out]


def fact_hash(question: Question) -> int:
    """A number that depends on the fact only, however it is asked."""
    return _hash("fact", question.relation, question.key)


def with_article(noun: str) -> str:
    """`cat` -> `a cat`, `owl` -> `an owl`."""
    if noun == "unicycle":
        return "a unicycle"
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def capitalised(text: str) -> str:
    """First letter large, the rest as it is."""
    return text[:1].upper() + text[1:]


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "big")


def _content_field(relation: str, ask: str) -> str:
    asks_for_lesser = relation in COMPARISONS and ("smaller" in ask or "less," in ask)
    return "lesser" if asks_for_lesser else "content"


def _facts() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield (relation, key, fields) for everything that is true."""
    for relation, pairs in _word_relations().items():
        for x, y in pairs:
            yield relation, x, _word_fields(x, y)
    for unit, owner, number in facts.COUNTS:
        yield "count", f"{unit} of {owner}", {**_word_fields(owner, number), "u": unit}
    yield from _sums()
    yield from _orders()
    yield from _colour_checks()


def _word_relations() -> dict[str, list[tuple[str, str]]]:
    follow = [
        *zip(facts.DAYS, facts.DAYS[1:] + facts.DAYS[:1], strict=True),
        *zip(facts.MONTHS, facts.MONTHS[1:] + facts.MONTHS[:1], strict=True),
        *((str(number), str(number + 1)) for number in range(30)),
    ]
    return {
        "sound": facts.SOUNDS,
        "baby": facts.BABIES,
        "home": facts.HOMES,
        "food": facts.FOODS,
        "colour": facts.COLOURS,
        "capital": facts.CAPITALS,
        "country": [(city, country) for country, city in facts.CAPITALS],
        "continent": facts.CONTINENTS,
        "opposite": facts.OPPOSITES,
        "plural": facts.PLURALS,
        "past": facts.PASTS,
        "maker": facts.MAKERS,
        "made_by": [(thing, worker) for worker, thing in facts.MAKERS],
        "workplace": facts.WORKPLACES,
        "kind": facts.KINDS,
        "material": facts.MATERIALS,
        "sense": facts.SENSES,
        "after": follow,
        "before": [(later, earlier) for earlier, later in follow],
    }


def _word_fields(x: str, y: str) -> dict[str, str]:
    ax, ay = with_article(x), with_article(y)
    return {
        "x": x, "y": y, "ax": ax, "ay": ay,
        "X": capitalised(x), "Y": capitalised(y), "Ax": capitalised(ax), "Ay": capitalised(ay),
        "content": y,
    }  # fmt: skip


def _sums() -> Iterator[tuple[str, str, dict[str, str]]]:
    for a in range(11):
        for b in range(11):
            yield "plus", f"{a}+{b}", _number_fields(a, b, a + b)
            if b <= a:
                yield "minus", f"{a}-{b}", _number_fields(a, b, a - b)
            if a <= 6 and b <= 6:
                yield "times", f"{a}*{b}", _number_fields(a, b, a * b)


def _number_fields(a: int, b: int, y: int) -> dict[str, str]:
    return {"a": str(a), "b": str(b), "y": str(y), "content": str(y)}


def _orders() -> Iterator[tuple[str, str, dict[str, str]]]:
    sizes = facts.SIZES
    for first in sizes:
        for second in sizes:
            if first != second:
                small, large = sorted((first, second), key=sizes.index)
                fields = {
                    "ax": with_article(first), "az": with_article(second),
                    "ay": with_article(large), "an": with_article(small),
                    "Ay": capitalised(with_article(large)), "An": capitalised(with_article(small)),
                    "yes": "yes" if first == large else "no", "content": large,
                    "lesser": small,
                }  # fmt: skip
                yield "bigger", f"{first}|{second}", fields
    for a in range(21):
        for b in range(21):
            if a != b:
                fields = {
                    "a": str(a), "b": str(b), "y": str(max(a, b)), "n": str(min(a, b)),
                    "yes": "yes" if a > b else "no", "content": str(max(a, b)),
                    "lesser": str(min(a, b)),
                }  # fmt: skip
                yield "more", f"{a}|{b}", fields


def _colour_checks() -> Iterator[tuple[str, str, dict[str, str]]]:
    colours = sorted({colour for _, colour in facts.COLOURS})
    for thing, colour in facts.COLOURS:
        wrong = [c for c in colours if c != colour]
        picks = [wrong[_hash(thing, str(number)) % len(wrong)] for number in range(2)]
        for asked in dict.fromkeys([colour, *picks]):
            fields = {
                **_word_fields(thing, colour),
                "w": asked,
                "yes": "yes" if asked == colour else "no",
            }
            yield "is_colour", f"{thing}|{asked}", fields
