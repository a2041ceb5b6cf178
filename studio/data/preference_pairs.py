"""Pairs of answers: the prompt that both sides share, scored answers, verdicts, length bias."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, NamedTuple

from studio.data.conversation_records import (
    Conversation,
    Dropped,
    Judged,
    Message,
    Pair,
    num_equal,
    num_shared,
)
from studio.data.messages import as_messages, has_value, is_message

Choice = Literal["best", "all"]
BIAS, MIN_TO_JUDGE = 1.25, 10
_REFUSED = {
    "no_prompt": "Chosen and rejected share no prompt",
    "empty_rejected": "The rejected answer is empty",
    "equal_pair": "Chosen and rejected are equal",
    "label": "The label is neither yes nor no",
    "scores": "Fewer than two answers have a score",
    "margin": "The scores differ too little (data.margin)",
}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_TEXTS = ("answer", "response", "text", "content", "completion", "output", "generated_text")
_SCORES = ("overall_score", "score", "reward", "rating", "quality", "rank")
_TRUTHS = dict.fromkeys(("true", "1", "yes", "good", "desirable", "chosen"), True) | dict.fromkeys(
    ("false", "0", "-1", "no", "bad", "undesirable", "rejected"), False
)
_PASSES = {"five_star": 4, "pass_fail": 1, "pass_fail_critical": 1}  # types of Kiln's ratings


def pair_of(chosen: Conversation, rejected: Conversation) -> Pair:
    """Return two conversations as a pair: answers in the prompt that they share carry no loss.

    Raises:
        Dropped: They are equal, or do not answer the same prompt.
    """
    pair = Pair(chosen, rejected)
    if _plain(chosen.messages) == _plain(rejected.messages):
        raise Dropped("equal_pair", "The chosen and the rejected answer are equal.")
    shared = num_shared(pair)
    if not any(message["role"] == "user" for message in chosen.messages[:shared]):
        raise Dropped("no_prompt", "The chosen and the rejected side share no prompt.")
    for side in pair:
        if [m["role"] for m in side.messages[shared : shared + 1]] != ["assistant"]:
            raise Dropped(
                "no_prompt",
                f"The sides of the pair first differ at message {shared + 1}, where not both "
                "have an answer: they do not answer the same prompt.",
            )
    return Pair(*(_muted(side, shared) for side in pair))


def judged(conversation: Conversation, good: bool) -> Judged:
    """Return a conversation with its verdict, which is about what follows the last question."""
    asked = [i for i, m in enumerate(conversation.messages) if m["role"] == "user"]
    return Judged(_muted(conversation, asked[-1] if asked else 0), good)


def _muted(row: Conversation, shared: int) -> Conversation:
    if row.weights:
        given = f"{row.weights[0][1]:g}"
        raise Dropped(
            "weight", f"Losses of preferences take the loss weights 0 and 1, not {given}."
        )
    earlier = sum(message["role"] == "assistant" for message in row.messages[:shared])
    return row._replace(muted=tuple(sorted({*row.muted, *range(earlier)})))


def _plain(messages: list[Message]) -> list[Message]:
    return [message | {"content": message["content"].strip()} for message in messages]


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return the words that two texts begin with as their prompt, and what follows in each.

    Raises:
        Dropped: They are equal, or begin differently.
    """
    end = num_equal(chosen, rejected)
    if chosen.strip() == rejected.strip():
        raise Dropped("equal_pair", "The chosen and the rejected answer are equal.")
    if any(text[end : end + 1].isalnum() for text in (chosen, rejected)):
        while end and chosen[end - 1].isalnum():
            end -= 1
    if not chosen[:end].strip():
        raise Dropped(
            "no_prompt",
            "The chosen and the rejected text do not begin alike: map the column of their prompt.",
        )
    return chosen[:end].strip(), chosen[end:].strip(), rejected[end:].strip()


def transcript(text: Any) -> list[Message] | None:
    """Return the messages of a text such as `Human: … Assistant: …`; None if it is not one."""
    if not isinstance(text, str) or not text.lstrip().startswith("Human:"):
        return None
    names_and_texts = iter(_TURN.split(text.strip())[1:])
    turns = [
        {"role": _ROLES[name], "content": words.strip()}
        for name, words in zip(names_and_texts, names_and_texts, strict=True)
    ]
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns.pop()  # a prompt that ends where its answer begins
    return turns if len(turns) > 1 or text.rstrip().endswith("\n\nAssistant:") else None


def truth(value: Any) -> bool | None:
    """Return what a judgement says of an answer; None if it is neither yes nor no."""
    if isinstance(value, dict) and isinstance(stars := value.get("value"), int | float):
        passes = _PASSES.get(str(value.get("type")))
        return None if passes is None else stars >= passes
    if isinstance(value, float) and value in (-1, 0, 1):
        value = int(value)
    return _TRUTHS.get(str(value).strip().lower())


class Scored(NamedTuple):
    """One of several answers to a prompt, as messages."""

    turns: list[Any]
    score: float


def ranked(answers: Any, scores: Any, *, name: str, score_name: str) -> list[Scored]:
    """Return the answers of a row that have a score, the best first.

    Args:
        answers: A list of texts, messages, or objects with a text and perhaps a score.
        scores: The scores in a list of their own, if the answers do not bring them.
        name: The answers' column.
        score_name: The scores' column; where it is called a rank, 1 is the best.

    Raises:
        Dropped: It is not a list, or fewer than two answers have a text and a score.
    """
    if not isinstance(answers, list):
        raise Dropped("type", f'"{name}" is not a list of answers.')
    given = scores if isinstance(scores, list) else []
    found = []
    for at, answer in enumerate(answers):
        text, score, score_key = answer, given[at] if at < len(given) else None, score_name
        if isinstance(answer, dict):
            text = answer if is_message(answer) else _first(answer, _TEXTS)[1]
            if score is None:
                score_key, score = _first(answer, _SCORES)
        number = _number(score)
        if number is not None and has_value(text):
            sign = -1 if "rank" in score_key.lower() else 1
            found.append(Scored(as_messages(text, name), sign * number))
    if len(found) < 2:
        raise Dropped("scores", f'Fewer than two answers in "{name}" have a text and a score.')
    return sorted(found, key=lambda answer: -answer.score)


def best_and_worst(found: list[Scored], choice: Choice, margin: float) -> list[tuple[Any, Any]]:
    """Return the messages of better and worse answers: the extremes, or all pairs by choice.

    Raises:
        Dropped: No two scores differ, or none by `margin`.
    """
    couples = [(found[0], found[-1])] if choice == "best" else [*combinations(found, 2)]
    made = [(a.turns, b.turns) for a, b in couples if far_enough(a.score, b.score, margin)]
    if not made:
        by = f" by {margin:g} (data.margin)" if margin else ""
        raise Dropped("margin", f"No two scores differ{by}.")
    return made


def far_enough(better: Any, worse: Any, margin: float) -> bool:
    """Return True if one score is above another, by `margin` at least."""
    high, low = _number(better), _number(worse)
    return high is not None and low is not None and high > low and high - low >= margin


def _first(values: dict[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    return next(((name, values[name]) for name in names if has_value(values.get(name))), ("", None))


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number == number else None


@dataclass(slots=True)
class PairCounter:
    """Counts pairs and judged answers, and how long the better and the worse ones are."""

    pairs: int = 0
    num: list[int] = field(default_factory=lambda: [0, 0])  # worse, better
    characters: list[int] = field(default_factory=lambda: [0, 0])

    def see(self, row: Pair | Judged) -> None:
        """Count one record."""
        if isinstance(row, Pair):
            self.pairs += 1
            shared = num_shared(row)
            self._add(True, row.chosen.messages[shared:])
            self._add(False, row.rejected.messages[shared:])
        else:
            self._add(row.good, row.conversation.messages[-1:])

    def _add(self, good: bool, answers: list[Message]) -> None:
        self.num[good] += 1
        self.characters[good] += sum(len(message["content"]) for message in answers)

    def sentences(self, dropped: Counter[str]) -> Iterator[str]:
        """Yield what the set is, what was dropped and why, and what may be learned by mistake."""
        bad, good = self.num
        words = ("chosen", "rejected") if self.pairs else ("good", "bad")
        if self.pairs:
            yield f"{self.pairs:,} pairs; plain training (train.loss=sft) takes the chosen answers."
        elif good or bad:
            yield f"{good:,} answers are judged as good and {bad:,} as bad."
            if not (good and bad):
                yield f"All are {words[not good]}: KTO needs good and bad answers."
        for kind, text in _REFUSED.items():
            if count := dropped[kind]:
                yield f"{text}: {count:,} row{'s are' if count > 1 else ' is'} dropped."
        if min(good, bad) < MIN_TO_JUDGE or not all(self.characters):
            return
        longer, shorter = self.characters[1] / good, self.characters[0] / bad
        if max(longer, shorter) < BIAS * min(longer, shorter):
            return
        if longer < shorter:
            longer, shorter, words = shorter, longer, words[::-1]
        yield (
            f"The {words[0]} answers are {longer / shorter:.1f} times as long as the {words[1]} "
            f"ones ({longer:,.0f} and {shorter:,.0f} characters on average): training may learn "
            "the length."
        )
