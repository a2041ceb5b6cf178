"""Turn rows of each format into conversations, documents, pairs or judged answers.

A row that cannot be used is dropped with a sentence; nothing is repaired by guessing. A new format
is an entry of `_MAKERS`, of `column_mapping.PARTS` and a rule in `recognise_format`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from studio.data.column_mapping import Mapping, as_text, getter
from studio.data.conversation_records import (
    AnyRecord,
    Conversation,
    Document,
    Dropped,
    Problem,
    Row,
)
from studio.data.messages import (
    MEDIA_COLUMNS,
    as_messages,
    conversation,
    history_of,
    is_message,
    messages_in,
    parsed,
    refuse_media,
    role_of,
    system_message,
    system_text,
    thread,
    tools_of,
)
from studio.data.preference_pairs import (
    Choice,
    best_and_worst,
    far_enough,
    judged,
    pair_of,
    ranked,
    split_texts,
    transcript,
    truth,
)

Made = Conversation | Document
Converter = Callable[[Row], Made | Problem]
T = TypeVar("T")
RecordConverter = Callable[[Row], list[AnyRecord] | Problem]


def converter(mapping: Mapping) -> Converter:
    """Return the function that turns rows into what plain training reads of them.

    That is the chosen answer of a pair, the best of scored answers, and of judged answers the good.
    """
    return _catching(_MAKERS[mapping.checked().format](mapping))


def prompt_converter(mapping: Mapping) -> Converter:
    """Return the function that turns rows into conversations that may end with a question.

    An answer at the end is a reference that other answers are compared with. A text is a question.
    """
    format = mapping.checked().format
    if format in ("messages", "sharegpt"):
        return _catching(_messages(mapping, may_ask=True))
    if format in _PAIRED:
        return _catching(_pair(mapping, *_PAIRED[format], may_ask=True))
    if format == "text":
        return _catching(_text(mapping, asked=True))
    return converter(mapping)


def record_converter(
    mapping: Mapping, *, pairs: Choice = "best", margin: float = 0.0
) -> RecordConverter:
    """Return the function that turns rows into records of their own kind, pairs and judged too.

    Args:
        pairs: Of scored answers: the best against the worst, or each against all worse ones.
        margin: The least difference of the scores of a pair.
    """
    mapping.checked()
    if mapping.format == "preference" and getter(mapping, "rejected"):
        return _catching(_pairs(mapping, margin))
    if mapping.format == "scored":
        return _catching(_scored_pairs(mapping, pairs, margin))
    if mapping.format == "judged":
        read = _verdicts(mapping)
        return _catching(lambda row: [judged(*read(row))])
    make = _MAKERS[mapping.format](mapping)
    return _catching(lambda row: [make(row)])


def _catching(make: Callable[[Row], T]) -> Callable[[Row], T | Problem]:
    def convert(row: Row) -> T | Problem:
        try:
            if not MEDIA_COLUMNS.isdisjoint(row.values):
                refuse_media(row.values)
            return make(row)
        except Dropped as dropped:
            return Problem(row.line, dropped.kind, dropped.text)

    return convert


class _Part:
    """One part of the rows; an optional one may have no source, or be missing in some rows."""

    def __init__(self, mapping: Mapping, part: str) -> None:
        self.name = mapping.columns.get(part, part)
        found = getter(mapping, part)
        self.given, self.get = found is not None, found or (lambda _: None)

    def text(self, values: dict[str, Any]) -> str:
        return as_text(self.get(values), self.name)

    def value_or_none(self, values: dict[str, Any]) -> Any:
        try:
            return self.get(values)
        except Dropped as dropped:
            if dropped.kind == "missing":
                return None
            raise

    def text_or_empty(self, values: dict[str, Any]) -> str:
        return as_text(self.value_or_none(values), self.name) if self.given else ""

    def empty(self, kind: str) -> Dropped:
        return Dropped(kind, f'"{self.name}" is empty.')


def _text(mapping: Mapping, *, asked: bool = False) -> Callable[[Row], Made]:
    part = _Part(mapping, "text")

    def make(row: Row) -> Made:
        text = part.text(row.values)
        if not text.strip():
            raise part.empty("empty_prompt" if asked else "empty")
        if asked:
            return Conversation([{"role": "user", "content": text}], None, row.line)
        return Document(text, row.line)

    return make


def _pair(
    mapping: Mapping, ask: str, reply: str, extra: str = "", *, may_ask: bool = False,
    lead: str = "",
) -> Callable[[Row], Made]:  # fmt: skip
    """Return the maker of one question, with `lead` in front, and its answer."""
    question, answer, system = (_Part(mapping, part) for part in (ask, reply, "system"))
    more, history = _Part(mapping, extra), _Part(mapping, "history")
    extra_first = extra == "context"

    def make(row: Row) -> Conversation:
        values = row.values
        asked = question.get(values)
        answered = answer.value_or_none(values) if may_ask else answer.get(values)
        if type(asked) is list and asked and is_message(asked[0]):
            turns = [*asked]
            if answered or not may_ask:
                turns += as_messages(answered, answer.name)
            before = system.text_or_empty(values)
            return conversation(turns, mapping, row, before, may_ask=may_ask)
        text, reply = as_text(asked, question.name), as_text(answered, answer.name)
        if not reply.strip() and not may_ask:
            raise answer.empty("empty_answer")
        if more.given and (added := more.text_or_empty(values)).strip():
            first, second = (added, text) if extra_first else (text, added)
            text = f"{first}\n\n{second}" if first.strip() else second
        if not text.strip():
            raise question.empty("empty_prompt")
        messages = system_message(system.text_or_empty(values)) if system.given else []
        if history.given:
            messages += history_of(history.value_or_none(values))
        messages.append({"role": "user", "content": lead + text})
        if reply.strip():
            messages.append({"role": "assistant", "content": reply})
        return Conversation(messages, None, row.line)

    return make


def _labelled(mapping: Mapping) -> Callable[[Row], Made]:
    name = mapping.columns.get("label", "label").lower()
    lead = "" if "text" in mapping.templates else f"What is the {name}?\n"
    return _pair(mapping, "text", "label", lead=lead)


def _preference(mapping: Mapping) -> Callable[[Row], Made]:
    """Return the maker of conversations that end with the chosen answer of a pair."""
    sides, whole = _sides(mapping), _answered(mapping)
    return lambda row: whole(row, as_messages(*sides(row)[0]))


def _pairs(mapping: Mapping, margin: float) -> Callable[[Row], list[AnyRecord]]:
    sides, whole = _sides(mapping), _answered(mapping)
    score, other = _Part(mapping, "chosen_score"), _Part(mapping, "rejected_score")

    def make(row: Row) -> list[AnyRecord]:
        good, bad = sides(row)
        values = row.values
        if margin and not far_enough(score.get(values), other.get(values), margin):
            raise Dropped("margin", f"The scores do not differ by {margin:g} (data.margin).")
        chosen = whole(row, as_messages(*good))
        try:
            rejected = whole(row, as_messages(*bad))
        except Dropped as dropped:
            if dropped.kind != "empty_answer":
                raise
            raise Dropped(
                "empty_rejected", f'The rejected answer in "{bad[1]}" is empty.'
            ) from None
        return [pair_of(chosen, rejected)]

    return make


def _sides(mapping: Mapping) -> Callable[[Row], list[tuple[Any, str]]]:
    """Return the function that reads both answers of a row, each with its column's name.

    Two texts without a prompt beside them are split where they begin to differ.
    """
    parts = [_Part(mapping, part) for part in ("chosen", "rejected")]
    has_prompt = getter(mapping, "prompt") is not None

    def read(row: Row) -> list[tuple[Any, str]]:
        values = (parts[0].get(row.values), parts[1].value_or_none(row.values))
        texts: list[Any] = [transcript(value) or value for value in values]
        if not has_prompt and all(type(t) is str and t[:1] not in ("[", "{") for t in texts):
            asked, *answers = split_texts(*texts)
            turns = ({"role": "assistant", "content": answer} for answer in answers)
            texts = [[{"role": "user", "content": asked}, turn] for turn in turns]
        return [(text, part.name) for text, part in zip(texts, parts, strict=True)]

    return read


def _scored(mapping: Mapping) -> Callable[[Row], Made]:
    """Return the maker of conversations that end with the best of several answers."""
    answers, whole = _ranked(mapping), _answered(mapping)
    return lambda row: whole(row, answers(row)[0].turns)


def _scored_pairs(
    mapping: Mapping, pairs: Choice, margin: float
) -> Callable[[Row], list[AnyRecord]]:
    answers, whole = _ranked(mapping), _answered(mapping)

    def make(row: Row) -> list[AnyRecord]:
        made: list[AnyRecord] = []
        for good, bad in best_and_worst(answers(row), pairs, margin):
            try:
                made.append(pair_of(whole(row, good), whole(row, bad)))
            except Dropped as dropped:
                last = dropped
        if not made:
            raise last
        return made

    return make


def _ranked(mapping: Mapping) -> Callable[[Row], list[Any]]:
    answers, scores = _Part(mapping, "answers"), _Part(mapping, "scores")
    return lambda row: ranked(
        answers.get(row.values), scores.value_or_none(row.values),
        name=answers.name, score_name=scores.name,
    )  # fmt: skip


def _judged(mapping: Mapping) -> Callable[[Row], Made]:
    """Return the maker of conversations with the answers that are judged as good."""
    read = _verdicts(mapping)

    def make(row: Row) -> Conversation:
        made, good = read(row)
        if not good:
            raise Dropped("judged_bad", "The answer is judged as bad: only good ones are trained.")
        return made

    return make


def _verdicts(mapping: Mapping) -> Callable[[Row], tuple[Conversation, bool]]:
    """Return the function that reads an answer and whether it is good."""
    answer, label, last = (_Part(mapping, part) for part in ("answer", "label", "message"))
    whole = _answered(mapping)

    def read(row: Row) -> tuple[Conversation, bool]:
        value = label.get(row.values)
        verdict = truth(value)
        if verdict is None:
            is_empty = value is None or value == "" or value != value
            what = "is empty: the answer is not judged" if is_empty else "is neither true nor false"
            raise Dropped("label", f'"{label.name}" {what}.')
        found = answer.get(row.values)
        turns = thread(found, last.value_or_none(row.values)) or as_messages(found, answer.name)
        return whole(row, turns), verdict

    return read


def _answered(mapping: Mapping) -> Callable[[Row, list[Any]], Conversation]:
    """Return the function that puts a row's prompt in front of its answer."""
    prompt, more, system, tools = (
        _Part(mapping, part) for part in ("prompt", "input", "system", "tools")
    )

    def make(row: Row, turns: list[Any]) -> Conversation:
        asked = prompt.value_or_none(row.values)
        if isinstance(asked, str):
            asked = messages_in(asked, prompt.name) or transcript(asked) or asked
        roles = (role_of(turn, mapping) for turn in turns)
        if asked and next((role for role in roles if role != "system"), "") != "user":
            if type(asked) is not list:
                texts = (as_text(asked, prompt.name), more.text_or_empty(row.values))
                text = "\n\n".join(text for text in texts if text.strip())
                asked = [{"role": "user", "content": text}]
            turns = [*asked, *turns]
        known = tools_of(tools.value_or_none(row.values))
        return conversation(turns, mapping, row, system.text_or_empty(row.values), known)

    return make


def _messages(mapping: Mapping, *, may_ask: bool = False) -> Callable[[Row], Made]:
    messages, tools, system = (_Part(mapping, part) for part in ("messages", "tools", "system"))
    older = mapping.columns.get("tools") == "functions"  # OpenAI's older name, without wrappers

    def make(row: Row) -> Conversation:
        turns = messages.get(row.values)
        if isinstance(turns, str):
            turns = parsed(turns, messages.name)
        if not isinstance(turns, list):
            raise Dropped("type", f'"{messages.name}" is not a list of messages.')
        known = tools_of(tools.value_or_none(row.values))
        if older and known:
            known = [t if "function" in t else {"type": "function", "function": t} for t in known]
        before = system_text(system.value_or_none(row.values))
        return conversation(turns, mapping, row, before, known, may_ask=may_ask)

    return make


_PAIRED = {
    "alpaca": ("instruction", "output", "input"),
    "prompt_completion": ("prompt", "completion"),
    "question_answer": ("question", "answer", "context"),
}


_MAKERS: dict[str, Callable[[Mapping], Callable[[Row], Made]]] = {
    "messages": _messages,
    "sharegpt": _messages,
    "alpaca": lambda m: _pair(m, *_PAIRED["alpaca"]),
    "prompt_completion": lambda m: _pair(m, *_PAIRED["prompt_completion"]),
    "question_answer": lambda m: _pair(m, *_PAIRED["question_answer"]),
    "preference": _preference,
    "judged": _judged,
    "scored": _scored,
    "labelled": _labelled,
    "text": _text,
}
