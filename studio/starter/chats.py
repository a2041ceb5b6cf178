"""Whole conversations of the starter's world, drawn from a seed: what the base is trained on.

Most are a question and its answer. The rest teaches what a chat model needs besides facts: several
turns, follow-ups ("And Spain?"), system prompts, sloppy spelling, saying "I do not know", stories,
and obeying an instruction about the form of the answer. The forms are random frames ("begin with
...", "put the word in brackets", "fill the gap in ..."), never the styles of the demo datasets:
they teach the model to carry the content word into any frame, and the demos then bring a frame.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from studio.starter import facts
from studio.starter.phrasings import FOLLOW_UPS, FOLLOWABLE
from studio.starter.smalltalk import (
    SMALL_TALK,
    STORY_REQUESTS,
    UNKNOWN,
    made_up_word,
    story,
    story_hero,
    unknown_question,
)
from studio.starter.world import Question, capitalised, questions

Message = dict[str, str]
Chat = list[Message]

SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are Pip, a tiny model.",
    "You are a friendly helper. Answer in one sentence.",
    "Answer the question.",
    "You are a kind teacher.",
    "Be polite and clear.",
    "You know a little world.",
]
_OPENERS = [
    "Tell me:", "Please tell me:", "Hi!", "Hello!", "Hey,", "I have a question.", "Quick question:",
    "Can you help me?", "Please answer:", "Next question:", "Dear Pip,", "I wonder:", "So,", "Now:",
]  # fmt: skip
_CLOSERS = [
    "Thanks!",
    "Please.",
    "Please tell me.",
    "Do you know?",
    "I want to know.",
    "Thank you.",
]

# How often each kind of chat is drawn.
MIX = {
    "question": 52,
    "turns": 16,
    "frame": 13,
    "small_talk": 6,
    "unknown": 6,
    "story": 2,
    "copy": 3.5,
    "plain": 0.5,
}
# The last part of the training: more copying and framing, of any token there is.
LAST_MIX = {**MIX, "question": 40, "turns": 12, "frame": 24, "copy": 14}
# Relations that are larger or harder than their number of facts says; elsewhere a share per fact.
_SHARES = {
    "more": 190, "bigger": 130, "is_colour": 60, "plus": 170, "minus": 90, "times": 80,
    "after": 110, "before": 120, "sense": 36, "count": 80, "maker": 26, "made_by": 24, "kind": 60,
    "baby": 30, "home": 26, "past": 30,
}  # fmt: skip


def chat(
    rng: random.Random, *, mix: Mapping[str, float] = MIX, pieces: Sequence[str] = ()
) -> Chat | str:
    """Draw one training conversation, or one plain text.

    Args:
        rng: Decides everything.
        mix: How often each kind is drawn.
        pieces: Texts of single tokens to make words of, beside the world's own words.
    """
    (kind,) = rng.choices(list(mix), weights=list(mix.values()))
    if kind == "plain":
        return story(rng)
    if kind in ("frame", "copy"):
        return _with_system(_framed(rng, pieces) if kind == "frame" else _copy(rng, pieces), rng)
    drawn = {
        "question": _single,
        "turns": _turns,
        "small_talk": _small_talk,
        "unknown": _unknown,
        "story": _story,
    }[kind](rng)
    return _with_system(drawn, rng)


def _with_system(drawn: Chat, rng: random.Random) -> Chat:
    if drawn[0]["role"] != "system" and rng.random() < 0.12:
        drawn.insert(0, _message("system", rng.choice(SYSTEM_PROMPTS)))
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
        float(_SHARES.get(name) or len({q.key for q in items}))
        for name, items in by_relation.items()
    ]
    return _Deck(list(by_relation), weights, by_relation, by_phrasing)


def draw_question(rng: random.Random) -> Question:
    """One training question, each fact about equally often."""
    deck = _deck()
    (relation,) = rng.choices(deck.relations, weights=deck.weights)
    return rng.choice(deck.by_relation[relation])


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _exchange(question: str, answer: str) -> Chat:
    return [_message("user", question), _message("assistant", answer)]


def disguised(question: str, rng: random.Random) -> str:
    """The same question as people type it: with a greeting, in lower case, without its mark."""
    roll = rng.random()
    if roll < 0.12:
        question = f"{rng.choice(_OPENERS)} {question}"
    elif roll < 0.18:
        question = f"{question} {rng.choice(_CLOSERS)}"
    if rng.random() < 0.08:
        question = question.rstrip("?.")
    if rng.random() < 0.08:
        question = question.lower()
    return question


def _single(rng: random.Random) -> Chat:
    question = draw_question(rng)
    return _exchange(disguised(question.question, rng), question.answer)


def _turns(rng: random.Random) -> Chat:
    turns: Chat = []
    name = rng.choice(facts.NAMES) if rng.random() < 0.2 else None
    if name:
        said = rng.choice(["My name is {}.", "I am {}.", "Hello, I am {}!", "Call me {}."])
        turns += _exchange(said.format(name), f"Nice to meet you, {name}!")
    wanted = 2 if rng.random() < 0.75 else rng.randint(3, 12)
    while len(turns) < 2 * wanted:
        roll = rng.random()
        if roll < 0.15:
            turns += _small_talk(rng)
        elif roll < 0.2:
            turns += _unknown(rng)
        elif roll < 0.6:
            turns += _single(rng)
        else:
            turns += _follow_up(rng)
    if name:
        asked = rng.choice(["What is my name?", "Who am I?", "Do you know my name?"])
        turns += _exchange(asked, f"Your name is {name}.")
    return turns


def _follow_up(rng: random.Random) -> Chat:
    """A question, then "And Spain?", answered with the wording of the first."""
    relation = rng.choice(list(FOLLOWABLE))
    same = _deck().by_phrasing[relation, rng.choice(_phrasing_numbers(relation))]
    first, *rest = rng.sample(same, rng.choice([2, 2, 3]))
    turns = _exchange(disguised(first.question, rng), first.answer)
    for later in rest:
        turns += _exchange(follow_up(later, rng.choice(FOLLOW_UPS)), later.answer)
    return turns


def _phrasing_numbers(relation: str) -> list[int]:
    return [number for name, number in _deck().by_phrasing if name == relation]


def follow_up(question: Question, pattern: str) -> str:
    """Ask `question` again in short, after another one of the same phrasing."""
    return pattern.format(q=dict(question.fields)[FOLLOWABLE[question.relation]])


def _small_talk(rng: random.Random) -> Chat:
    said, answer = rng.choice(SMALL_TALK)
    return _exchange(rng.choice(said), answer)


def _unknown(rng: random.Random) -> Chat:
    return _exchange(disguised(unknown_question(rng), rng), UNKNOWN)


def _story(rng: random.Random) -> Chat:
    if rng.random() < 0.3:
        asked = rng.choice(["Tell me a story.", "Tell me a short story.", "I want a story."])
        return _exchange(asked, story(rng))
    hero = story_hero(rng)
    return _exchange(rng.choice(STORY_REQUESTS).format(hero=hero), story(rng, hero))


def _copy(rng: random.Random, pieces: Sequence[str]) -> Chat:
    words = " ".join(_any_word(rng, pieces) for _ in range(rng.randint(1, 5)))
    asked = rng.choice(["Repeat: {}", "Repeat after me: {}", "Say: {}", "Copy this: {}"])
    return _exchange(asked.format(words), words)


def _any_word(rng: random.Random, pieces: Sequence[str]) -> str:
    if pieces and rng.random() < 0.5:
        return "".join(rng.choice(pieces) for _ in range(rng.randint(1, 3)))
    if rng.random() < 0.4:
        word = made_up_word(rng)
    else:
        word = rng.choice(draw_question(rng).answer.rstrip(".").split())
    return rng.choice([word, word, word.lower(), capitalised(word)])


def _framed(rng: random.Random, pieces: Sequence[str]) -> Chat:
    """A question and an instruction about the form of its answer, in either place."""
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
    return rng.choice(
        [
            (rng.choice(['Begin with "{}".', 'Start with "{}".', 'First say "{}".']).format(start),
             f"{start} {answer}"),
            (rng.choice(['End with "{}".', 'Finish with "{}".', 'Then say "{}".']).format(end),
             f"{answer} {end}"),
            (f'Begin with "{start}" and end with "{end}".', f"{start} {answer} {end}"),
            (f"Put the key word in {left}{right}.", _marked(answer, word, left, right)),
            (f"Say the key word first, then {mark}.", f"{word} {mark} {answer}"),
            (f"Say the key word last, after {mark}.", f"{answer} {mark} {word}"),
            (f"Fill the gap: {gap}", gap.replace("___", word)),
            (f"Answer with this: {gap}", gap.replace("___", word)),
        ]
    )  # fmt: skip


def _words(rng: random.Random, pieces: Sequence[str]) -> str:
    return capitalised(" ".join(_any_word(rng, pieces) for _ in range(rng.randint(1, 3))))


def _marked(answer: str, word: str, left: str, right: str) -> str:
    for form in (word, capitalised(word)):
        if form in answer:
            before, _, after = answer.rpartition(form)
            return f"{before}{left}{form}{right}{after}"
    return answer
