"""Guess what a file's rows are from their columns and first values, and say why.

The guess is a `Mapping`, so a person can correct it. Names decide first, in the order of how much
they tell; the shape of the values decides where names say nothing. It never reads the whole file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from studio.data.mapping import PARTS, DataFormat, Mapping, at_path
from studio.data.records import Row
from studio.errors import DataError

SAMPLE_ROWS = 200
MAX_INNER = 50
_WHOLE_TEXTS = ("text", "content", "document", "markdown", "story", "body")

_ANSWERS = (
    "output", "response", "answer", "completion", "target", "reply", "assistant", "answers",
)  # fmt: skip
ALIASES: dict[str, tuple[str, ...]] = {
    "messages": (
        "messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns",
    ),
    "tools": ("tools", "functions"),
    "system": ("system", "systemprompt", "systemmessage", "systeminstruction"),
    "history": ("history",),
    "instruction": ("instruction", "instructions"),
    "input": ("input", "context", "inputs"),
    "output": _ANSWERS,
    "prompt": ("prompt", "input", "source", "user", "query", "human", "request", "inputs"),
    "completion": ("completion", "chosen", *_ANSWERS, "gpt", "bot", "targets", "summary"),
    "question": ("question", "query", "problem", "questions"),
    "answer": ("answer", *_ANSWERS, "solution"),
    "context": ("context", "passage"),
    "chosen": ("chosen", "preferred", "accepted"),
    "rejected": ("rejected", "dispreferred"),
    "text": (
        "text", "sentence", "content", "document", "review", "utterance", "body", "query",
        "message", "comment", "tweet", "story", "markdown", "code", "description", "title",
    ),
    "label": (
        "label", "category", "class", "intent", "sentiment", "labels", "topic", "labeltext",
        "target", "tag", "emotion", "rating", "stars",
    ),
}  # fmt: skip


class Guess(NamedTuple):
    """The mapping that was guessed, the reason in one sentence, and whether names decided it."""

    mapping: Mapping
    reason: str
    sure: bool = True


def recognise(rows: Sequence[Row], *, wanted: str = "auto", plain: bool = False) -> Guess:
    """Guess the mapping of the first rows of a file.

    Args:
        rows: The first rows (some hundreds).
        wanted: A format a person chose; only its columns are guessed then.
        plain: The file is a text file.

    Raises:
        DataError: Nothing fits; names the columns.
    """
    if plain and wanted in ("auto", "text"):
        mapping = Mapping(format="text", columns={"text": "text"})
        return Guess(mapping, "a text file: every line is a row of one long text")
    columns = _columns(rows)
    if wanted != "auto":
        return _as_wanted(wanted, columns, rows)  # type: ignore[arg-type]
    for find in (_conversation, _preference, _by_names, _labelled, _text):
        guess = find(columns, rows)
        if guess:
            return guess
    guess = _by_shape(columns, rows)
    if guess:
        return guess
    raise DataError(
        f"The columns {shown(columns)} tell no question, answer, messages or text. "
        "Say which column plays which part: `studio data import FILE --column prompt=COLUMN "
        "--column completion=COLUMN`, or the mapping on the Data page."
    )


def _columns(rows: Sequence[Row]) -> list[str]:
    seen: dict[str, int] = {}
    for row in rows:
        for name in row.values:
            seen[name] = seen.get(name, 0) + 1
    return list(seen)


def _plain_name(name: str) -> str:
    return re.sub(r"[\s_\-.:]+", "", name.lower())


def _find(part: str, columns: Sequence[str], taken: Sequence[str] = ()) -> str | None:
    by_name = {_plain_name(name): name for name in reversed(columns) if name not in taken}
    return next((by_name[alias] for alias in ALIASES[part] if alias in by_name), None)


def _optional(format: DataFormat, columns: Sequence[str], found: dict[str, str]) -> dict[str, str]:
    for part in PARTS[format][1]:
        name = _find(part, columns, list(found.values()))
        if name:
            found[part] = name
    return found


def _conversation(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    shaped = [name for name in columns if _message_keys(name, rows)]
    shaped = shaped or [path for path in _inner(rows) if _message_keys(path, rows)]
    named = _find("messages", columns)
    if not shaped:
        return None
    name = named if named in shaped else shaped[0]
    if {"chosen", "rejected"} & {_plain_name(c) for c in shaped}:
        return None
    keys = _message_keys(name, rows)
    format: DataFormat = "sharegpt" if "from" in keys else "messages"
    if len(shaped) == 2 and {_plain_name(c) for c in shaped} == {"prompt", "completion"}:
        mapping = Mapping(
            format="prompt_completion", columns={"prompt": "prompt", "completion": "completion"}
        )
        return Guess(mapping, '"prompt" and "completion" hold lists of messages')
    mapping = Mapping(format=format, columns=_optional(format, columns, {"messages": name}))
    pair = "from and value" if format == "sharegpt" else "role and content"
    tools = f', and tools in "{mapping.columns["tools"]}"' if "tools" in mapping.columns else ""
    return Guess(mapping, f'"{name}" holds lists of messages with {pair}{tools}')


def _inner(rows: Sequence[Row]) -> list[str]:
    """Return the paths of what lies in objects, as in a log of requests."""
    first = rows[0].values if rows else {}
    return [
        f"{name}.{key}"
        for name, value in first.items() if isinstance(value, dict) and len(value) <= MAX_INNER
        for key in value
    ]  # fmt: skip


def _message_keys(name: str, rows: Sequence[Row]) -> set[str]:
    for row in rows:
        try:
            value = at_path(row.values, name)
        except KeyError:
            continue
        if isinstance(value, str) and value.lstrip().startswith(("[{", "[ {")):
            import json

            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                continue
        if isinstance(value, list) and value:
            first = value[0]
            if isinstance(first, dict) and {"role", "from"} & set(first):
                return set(first)
            return set()
    return set()


def _preference(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    chosen, rejected = _find("chosen", columns), _find("rejected", columns)
    if not chosen or not rejected:
        return None
    found = {"chosen": chosen, "rejected": rejected}
    prompt = next((c for c in columns if _plain_name(c) in ("prompt", "question", "instruction",
                                                            "input")), None)  # fmt: skip
    if prompt:
        found["prompt"] = prompt
    elif not _message_keys(chosen, rows):
        return None
    mapping = Mapping(format="preference", columns=found)
    return Guess(
        mapping,
        f'"{chosen}" and "{rejected}" are a preference pair; the chosen answer is trained, '
        "the rejected one is not used",
    )


def _by_names(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    formats: list[DataFormat] = ["alpaca", "prompt_completion", "question_answer"]
    names = {_plain_name(c) for c in columns}
    if "question" in names:
        formats = ["alpaca", "question_answer", "prompt_completion"]
    for format in formats:
        found = _needed_parts(format, columns)
        if found and (format != "prompt_completion" or "prompt" in names or len(columns) <= 4):
            mapping = Mapping(format=format, columns=_optional(format, columns, found))
            return Guess(mapping, _named_reason(mapping))
    return None


def _needed_parts(format: DataFormat, columns: Sequence[str]) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for part in PARTS[format][0]:
        name = _find(part, columns, list(found.values()))
        if not name:
            return None
        found[part] = name
    return found


def _named_reason(mapping: Mapping) -> str:
    shown = ", ".join(
        f'"{name}" is the {part}' if name != part else f'"{name}"'
        for part, name in mapping.columns.items()
    )
    return f"the columns are named like {mapping.format.replace('_', '/')}: {shown}"


def _labelled(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    found = _needed_parts("labelled", columns)
    if not found:
        return None
    labels = [str(row.values.get(found["label"])) for row in rows]
    kinds = len(set(labels))
    if max(map(len, labels), default=0) > 100:
        return None
    mapping = Mapping(format="labelled", columns=found)
    return Guess(
        mapping,
        f'"{found["text"]}" is a text and "{found["label"]}" its label ({kinds} different in the '
        f"first {len(rows)} rows); the label becomes the answer",
    )


def _text(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    texts = [name for name in columns if _is_text(name, rows)]
    named = _find("text", texts)
    if (named and _plain_name(named) == "text") or len(texts) == 1:
        name = named or texts[0]
        if _plain_name(name) not in _WHOLE_TEXTS and _is_nested(rows):
            return None  # a title beside what really matters
        mapping = Mapping(format="text", columns={"text": name})
        return Guess(mapping, f'"{name}" is plain text; everything in it is trained')
    return None


def _is_nested(rows: Sequence[Row]) -> bool:
    return any(isinstance(v, list | dict) and v for row in rows for v in row.values.values())


def _by_shape(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    texts = [name for name in columns if _is_text(name, rows)]
    if len(texts) != 2:
        return None
    first, second = texts
    mapping = Mapping(format="prompt_completion", columns={"prompt": first, "completion": second})
    return Guess(
        mapping,
        f'there are two columns of text: "{first}" was taken as the question and "{second}" as '
        "the answer, which is a guess",
        sure=False,
    )


def _is_text(name: str, rows: Sequence[Row]) -> bool:
    values = [row.values.get(name) for row in rows]
    texts = [value for value in values if isinstance(value, str)]
    return bool(texts) and any(re.search(r"[^\W\d_]", text) for text in texts[:50])


def _as_wanted(wanted: DataFormat, columns: list[str], rows: Sequence[Row]) -> Guess:
    found = _needed_parts(wanted, columns)
    if wanted in ("messages", "sharegpt"):
        shaped = next((name for name in columns if _message_keys(name, rows)), None)
        found = {"messages": shaped} if shaped else found
    elif wanted == "text" and not found:
        texts = [name for name in columns if _is_text(name, rows)]
        found = {"text": texts[0]} if texts else None
    if not found:
        needed = " and ".join(f'"{part}"' for part in PARTS[wanted][0])
        raise DataError(
            f'The format "{wanted}" was chosen, but the columns {shown(columns)} have no '
            f"{needed}. Choose another format or map the columns."
        )
    mapping = Mapping(format=wanted, columns=_optional(wanted, columns, found))
    return Guess(mapping, "the format was chosen by hand")


def shown(columns: Sequence[str]) -> str:
    """Return the first columns' names for a sentence."""
    names = ", ".join(f'"{name[:40]}"' for name in columns[:12])
    return names + (f" and {len(columns) - 12:,} more" if len(columns) > 12 else "")
