"""Draw whole conversations of the starter's world from a seed: what the base is trained on.

Most are a question and its answer. The rest teaches what a chat model needs besides facts: several
turns, follow-ups ("And Spain?"), system prompts, sloppy spelling, "I do not know", stories, and
instructions about the form of the answer. Those are random frames ("begin with ...", "fill the gap
in ..."), not the styles of the demo datasets: they train the model to put the content word into any
frame, and a demo then brings a frame. The texts are in `chats.yaml`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from studio.starter.make.world import (
    WORLD,
    Question,
    capitalised,
    facts,
    questions,
    read_table,
    with_article,
)

Message = dict[str, str]
Chat = list[Message]

TEXTS = read_table("chats.yaml")
STORY = TEXTS["story"]
MIX: dict[str, float] = TEXTS["mix"]
LAST_MIX: dict[str, float] = {**MIX, **TEXTS["last_mix"]}
UNKNOWN: str = TEXTS["unknown_answer"]
FOLLOW_UPS: list[str] = WORLD["follow_ups"]
FOLLOWABLE: dict[str, str] = WORLD["followable"]
NAMES: list[str] = WORLD["names"].split()


def chat(
    rng: random.Random, *, mix: Mapping[str, float] = MIX, pieces: Sequence[str] = ()
) -> Chat | str:
    """Draw one training conversation, or one plain text.

    Args:
        rng: The only source of randomness.
        mix: The weight of each kind.
        pieces: Texts of single tokens to make words of, beside the world's own words.
    """
    (kind,) = rng.choices(list(mix), weights=list(mix.values()))
    if kind == "plain":
        return story(rng)
    if kind == "frame":
        drawn = _framed(rng, pieces)
    elif kind == "copy":
        drawn = _copy(rng, pieces)
    else:
        drawn = {
            "question": _single,
            "turns": _turns,
            "small_talk": _small_talk,
            "unknown": _unknown,
            "story": _story,
        }[kind](rng)
    if drawn[0]["role"] != "system" and rng.random() < 0.12:
        drawn.insert(0, _message("system", rng.choice(TEXTS["system_prompts"])))
    return drawn


@dataclass(frozen=True)
class _Deck:
    """The training questions, ready to be drawn with the shares of their relations."""

    relations: list[str]
    weights: list[float]
    by_relation: dict[str, list[Question]]
    by_phrasing: dict[tuple[str, int], list[Question]]


@cache
def _deck() -> _Deck:
    by_relation: dict[str, list[Question]] = {}
    by_phrasing: dict[tuple[str, int], list[Question]] = {}
    for question in questions():
        if not question.held_out:
            by_relation.setdefault(question.relation, []).append(question)
            by_phrasing.setdefault((question.relation, question.phrasing), []).append(question)
    weights = [
        float(TEXTS["shares"].get(name) or len({q.key for q in items}))
        for name, items in by_relation.items()
    ]
    return _Deck(list(by_relation), weights, by_relation, by_phrasing)


def draw_question(rng: random.Random) -> Question:
    """Draw one training question, each fact about equally often."""
    deck = _deck()
    (relation,) = rng.choices(deck.relations, weights=deck.weights)
    return rng.choice(deck.by_relation[relation])


def disguised(question: str, rng: random.Random) -> str:
    """Return the question as users type it: with a greeting, in lower case, without its mark."""
    roll = rng.random()
    if roll < 0.12:
        question = f"{rng.choice(TEXTS['openers'])} {question}"
    elif roll < 0.18:
        question = f"{question} {rng.choice(TEXTS['closers'])}"
    if rng.random() < 0.08:
        question = question.rstrip("?.")
    if rng.random() < 0.08:
        question = question.lower()
    return question


def follow_up(question: Question, pattern: str) -> str:
    """Return a short form of `question`, to follow another one of the same phrasing."""
    return pattern.format(q=dict(question.fields)[FOLLOWABLE[question.relation]])


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _exchange(question: str, answer: str) -> Chat:
    return [_message("user", question), _message("assistant", answer)]


def _single(rng: random.Random) -> Chat:
    question = draw_question(rng)
    return _exchange(disguised(question.question, rng), question.answer)


def _turns(rng: random.Random) -> Chat:
    turns: Chat = []
    name = rng.choice(NAMES) if rng.random() < 0.2 else None
    if name:
        introduction = rng.choice(TEXTS["introductions"]).format(name)
        turns += _exchange(introduction, f"Nice to meet you, {name}!")
    wanted = 2 if rng.random() < 0.75 else rng.randint(3, 12)
    while len(turns) < 2 * wanted:
        roll = rng.random()
        draw = (
            _small_talk if roll < 0.15
            else _unknown if roll < 0.2
            else _single if roll < 0.6
            else _follow_up
        )  # fmt: skip
        turns += draw(rng)
    if name:
        turns += _exchange(rng.choice(TEXTS["name_questions"]), f"Your name is {name}.")
    return turns


def _follow_up(rng: random.Random) -> Chat:
    """A question, then "And Spain?", answered with the wording of the first."""
    relation = rng.choice(list(FOLLOWABLE))
    by_phrasing = _deck().by_phrasing
    phrasing = rng.choice([number for name, number in by_phrasing if name == relation])
    first, *rest = rng.sample(by_phrasing[relation, phrasing], rng.choice([2, 2, 3]))
    turns = _exchange(disguised(first.question, rng), first.answer)
    for later in rest:
        turns += _exchange(follow_up(later, rng.choice(FOLLOW_UPS)), later.answer)
    return turns


def _small_talk(rng: random.Random) -> Chat:
    pair = rng.choice(TEXTS["small_talk"])
    return _exchange(rng.choice(pair["said"]), pair["answer"])


def _unknown(rng: random.Random) -> Chat:
    return _exchange(disguised(unknown_question(rng), rng), UNKNOWN)


def unknown_question(rng: random.Random) -> str:
    """Draw a question from outside the world."""
    strange = rng.random() < 0.3
    word = rng.choice(TEXTS["strangers"].split()) if strange else made_up_word(rng)
    if rng.random() < 0.3:
        word = capitalised(word)
    pattern: str = rng.choice(TEXTS["unknown_questions"])
    while "{large}" in pattern:
        pattern = pattern.replace("{large}", str(rng.randint(32, 999)), 1)
    return pattern.format(
        year=rng.randint(1600, 2030),
        country=rng.choice(facts("capital"))[0],
        animal=with_article(rng.choice(WORLD["sizes"].split())),
        thing=rng.choice(facts("material"))[0],
        word=word,
    )


def made_up_word(rng: random.Random) -> str:
    """Return a word that is not in the world, such as `zorimo`."""
    syllables = TEXTS["syllables"].split()
    while True:
        word = "".join(rng.choice(syllables) for _ in range(rng.randint(2, 4)))
        if word not in _known_words():
            return word


@cache
def _known_words() -> frozenset[str]:
    text = " ".join(f"{question.question} {question.answer}" for question in questions())
    return frozenset(re.findall(r"[a-z]+", text.lower()))


def _story(rng: random.Random) -> Chat:
    if rng.random() < 0.3:
        return _exchange(rng.choice(STORY["plain_requests"]), story(rng))
    hero = _hero(rng)
    return _exchange(rng.choice(STORY["requests"]).format(hero=hero), story(rng, hero))


def _hero(rng: random.Random) -> str:
    return with_article(rng.choice(STORY["animals"].split()))


def story(rng: random.Random, hero: str | None = None) -> str:
    """Draw a story from a grammar: a hero, something lost, a friend, an end."""
    words = {name: text.split() for name, text in STORY.items() if isinstance(text, str)}
    animal = (hero or _hero(rng)).split()[1]
    name, friend = rng.sample(NAMES, 2)
    friend_animal = rng.choice([other for other in words["animals"] if other != animal])
    treasure, colour = rng.choice(words["treasures"]), rng.choice(words["colours"])
    opening, mood = rng.choice(STORY["openings"]), with_article(rng.choice(words["moods"]))
    place = rng.choice(STORY["places"])
    loss, rescue = rng.choice(STORY["losses"]), rng.choice(STORY["rescues"])
    meal, ending = rng.choice(words["meals"]), rng.choice(STORY["endings"])
    text = (
        f"{opening} {mood} {animal} called {name}. {name} lived {place} and had a {colour} "
        f"{treasure}. {loss} Then {with_article(friend_animal)} called {friend} came along. "
        f"{rescue} {ending}"
    )
    return text.format(name=name, friend=friend, treasure=treasure, meal=meal)


def _copy(rng: random.Random, pieces: Sequence[str]) -> Chat:
    words = " ".join(_any_word(rng, pieces) for _ in range(rng.randint(1, 5)))
    return _exchange(rng.choice(TEXTS["copy_requests"]).format(words), words)


def _any_word(rng: random.Random, pieces: Sequence[str]) -> str:
    if pieces and rng.random() < 0.5:
        return "".join(rng.choice(pieces) for _ in range(rng.randint(1, 3)))
    if rng.random() < 0.4:
        word = made_up_word(rng)
    else:
        word = rng.choice(draw_question(rng).answer.rstrip(".").split())
    return rng.choice([word, word, word.lower(), capitalised(word)])


def _framed(rng: random.Random, pieces: Sequence[str]) -> Chat:
    """A question and an instruction about the form of its answer, in either order."""
    question = draw_question(rng)
    order, answer = _frame(question, rng, pieces)
    asked = disguised(question.question, rng)
    roll = rng.random()
    if roll < 0.5:
        return [_message("system", order), *_exchange(asked, answer)]
    return _exchange(f"{order} {asked}" if roll < 0.75 else f"{asked} {order}", answer)


def _frame(question: Question, rng: random.Random, pieces: Sequence[str]) -> tuple[str, str]:
    word, answer = question.content, question.answer
    start, end = _words(rng, pieces), _words(rng, pieces)
    pair = rng.choice(["()", "[]", "<>", '""', "**", "~~", "''"])
    left, right = pair[0], pair[1]
    mark = rng.choice(["-", ":", "=", ">", "*", "#", "!"])
    gap = f"{_words(rng, pieces)} ___{rng.choice(['', ' ' + _words(rng, pieces)])}"
    if left == right:
        gap = gap.replace("___", f"{left}___{right}")
    begin = rng.choice(["Begin with", "Start with", "First say"])
    finish = rng.choice(["End with", "Finish with", "Then say"])
    return rng.choice(
        [
            (f'{begin} "{start}".', f"{start} {answer}"),
            (f'{finish} "{end}".', f"{answer} {end}"),
            (f'Begin with "{start}" and end with "{end}".', f"{start} {answer} {end}"),
            (f"Put the key word in {left}{right}.", _marked(answer, word, left, right)),
            (f"Say the key word first, then {mark}.", f"{word} {mark} {answer}"),
            (f"Say the key word last, after {mark}.", f"{answer} {mark} {word}"),
            (f"Fill the gap: {gap}", gap.replace("___", word)),
            (f"Answer with this: {gap}", gap.replace("___", word)),
        ]
    )


def _words(rng: random.Random, pieces: Sequence[str]) -> str:
    return capitalised(" ".join(_any_word(rng, pieces) for _ in range(rng.randint(1, 3))))


def _marked(answer: str, word: str, left: str, right: str) -> str:
    for form in (word, capitalised(word)):
        if form in answer:
            before, _, after = answer.rpartition(form)
            return f"{before}{left}{form}{right}{after}"
    return answer
