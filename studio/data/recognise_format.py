"""Guess how the rows of a dataset are read, from columns and first values, with a reason.

The guess is a `Mapping`, which the user can correct. Names decide first, the most telling ones
before the others; the shape of the values decides where names tell nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from studio.data.column_mapping import PARTS, Mapping, at_path
from studio.data.conversation_records import Dropped, Problem, Row
from studio.data.dataset_report import why_nothing
from studio.data.messages import messages_in
from studio.data.preference_pairs import ranked, split_texts, transcript
from studio.errors import DataError
from studio.spec import DataSource

if TYPE_CHECKING:
    from studio.data.dataset_files import Origin

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
    "answer": ("answer", *_ANSWERS, "solution", "groundtruth"),
    "context": ("context", "passage"),
    "chosen": (
        "chosen", "preferred", "accepted", "chosenmessages", "chosenresponse", "chosenanswer", "yw",
    ),
    "rejected": (
        "rejected", "dispreferred", "rejectedmessages", "rejectedresponse", "rejectedanswer", "yl",
    ),
    "chosen_score": ("scorechosen", "chosenscore", "chosenrating", "chosenreward"),
    "rejected_score": ("scorerejected", "rejectedscore", "rejectedrating", "rejectedreward"),
    "answers": ("answers", "responses", "completions", "candidates", "outputs", "generations"),
    "scores": ("scores", "score", "ratings", "rewards", "ranks", "rank", "rankings"),
    "text": (
        "text", "sentence", "content", "document", "review", "utterance", "body", "query",
        "message", "comment", "tweet", "story", "markdown", "code", "description", "title",
    ),
    "label": (
        "label", "category", "class", "intent", "sentiment", "labels", "topic", "labeltext",
        "target", "tag", "emotion", "rating", "stars",
    ),
}  # fmt: skip

_PROMPTS = {
    name for part in ("instruction", "prompt", "question") for name in ALIASES[part]
} - {"source"}  # fmt: skip


class Guess(NamedTuple):
    """A mapping, the reason for it in one sentence, and True in `sure` if names decided it."""

    mapping: Mapping
    reason: str
    sure: bool = True


class ColumnsError(DataError):
    """Nothing follows from the columns of a file; a page with its mapping shows `what` alone."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what} {advice}")
        self.what = what


def recognise(rows: Sequence[Row], *, wanted: str = "auto", plain: bool = False) -> Guess:
    """Guess the mapping of the first rows of a file.

    Args:
        rows: The first rows (some hundreds).
        wanted: A format that the user chose; only its columns are guessed then.
        plain: The file is a text file.

    Raises:
        DataError: Nothing fits; names the columns.
    """
    if plain and wanted in ("auto", "text"):
        return _guess("text", {"text": "text"}, "a text file: every line is a row of one long text")
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    if wanted != "auto":
        return _as_wanted(wanted, columns, rows)
    for find in (
        _judged, _preference, _scored, _conversation, _by_names, _labelled, _text, _two_texts,
    ):  # fmt: skip
        if guess := find(columns, rows):
            return guess
    raise ColumnsError(
        f"The columns {shown(columns)} tell no question, answer, messages or text.",
        "Say which column plays which part: `studio data import FILE --column prompt=COLUMN "
        "--column completion=COLUMN`, or the mapping on the Data page.",
    )


def shown(columns: Sequence[str]) -> str:
    """Return the first columns' names for a sentence."""
    names = ", ".join(f'"{name[:40]}"' for name in columns[:12])
    return names + (f" and {len(columns) - 12:,} more" if len(columns) > 12 else "")


def _guess(format: str, columns: dict[str, str], reason: str, *, sure: bool = True) -> Guess:
    return Guess(Mapping.model_validate({"format": format, "columns": columns}), reason, sure)


def _plain_name(name: str) -> str:
    return re.sub(r"[\s_\-.:]+", "", name.lower())


def _find(part: str, columns: Sequence[str], taken: Collection[str] = ()) -> str | None:
    by_name = {_plain_name(name): name for name in reversed(columns) if name not in taken}
    return next((by_name[alias] for alias in ALIASES[part] if alias in by_name), None)


def _find_parts(
    parts: Sequence[str], columns: Sequence[str], found: dict[str, str]
) -> dict[str, str]:
    """Return `found` with the columns that are named like these parts."""
    for part in parts:
        if name := _find(part, columns, found.values()):
            found = found | {part: name}
    return found


def _needed_parts(format: str, columns: Sequence[str]) -> dict[str, str] | None:
    found = _find_parts(PARTS[format][0], columns, {})
    return found if len(found) == len(PARTS[format][0]) else None


def _conversation(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    shaped = [name for name in columns if _message_keys(name, rows)]
    shaped = shaped or [path for path in _inner(rows) if _message_keys(path, rows)]
    plain = {_plain_name(name) for name in shaped}
    if not shaped or plain & {"chosen", "rejected"}:
        return None
    if len(shaped) == 2 and plain == {"prompt", "completion"}:
        columns_of = {"prompt": "prompt", "completion": "completion"}
        reason = '"prompt" and "completion" hold lists of messages'
        return _guess("prompt_completion", columns_of, reason)
    if plain == {"prompt"} and (answer := _find("answer", columns, shaped)):
        reason = f'"{shaped[0]}" holds lists of messages and "{answer}" the answer'
        return _guess("prompt_completion", {"prompt": shaped[0], "completion": answer}, reason)
    named = _find("messages", columns)
    name = named if named in shaped else shaped[0]
    is_sharegpt = "from" in _message_keys(name, rows)
    format, pair = (
        ("sharegpt", "from and value") if is_sharegpt else ("messages", "role and content")
    )
    found = _find_parts(PARTS[format][1], columns, {"messages": name})
    tools = f', and tools in "{found["tools"]}"' if "tools" in found else ""
    return _guess(format, found, f'"{name}" holds lists of messages with {pair}{tools}')


def _inner(rows: Sequence[Row]) -> list[str]:
    """Return the paths of what lies in objects, as in a log of requests."""
    first = rows[0].values if rows else {}
    objects = {k: v for k, v in first.items() if isinstance(v, dict) and len(v) <= MAX_INNER}
    return [f"{name}.{key}" for name, value in objects.items() for key in value]


def _message_keys(name: str, rows: Sequence[Row]) -> set[str]:
    """Return the keys of the first message in a column; none if it holds no messages."""
    for row in rows:
        try:
            value = at_path(row.values, name)
            value = messages_in(value, name) or value
        except (KeyError, Dropped):
            continue
        if isinstance(value, list) and value:
            first = value[0]
            is_message = isinstance(first, dict) and bool({"role", "from"} & set(first))
            return set(first) if is_message else set()
    return set()


def _preference(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    found = _find_parts(("chosen", "rejected"), columns, {})
    if len(found) < 2:
        found = _answer_couples(columns, rows) or _repaired(columns, rows)
    if not found:
        return None
    shaped = [name for name in columns if _message_keys(name, rows)]
    prompts = ("prompt", "question", "instruction", "input")
    prompt = next((name for name in columns if _plain_name(name) in prompts), None)
    prompt = prompt or next((name for name in shaped if name not in found.values()), None)
    both = f'"{found["chosen"]}" and "{found["rejected"]}" are a preference pair'
    if prompt:
        found["prompt"] = prompt
        if _plain_name(prompt) == "instruction":
            found = _find_parts(("input",), columns, found)
    elif not _message_keys(found["chosen"], rows):
        if _begin_alike(found, rows):
            both += " whose common beginning is the prompt"
        elif prompt := _find("prompt", columns, found.values()):
            found["prompt"] = prompt
        else:
            both += ", whose texts do not begin alike: their prompt is missing"
    more = ("system", "tools", "chosen_score", "rejected_score")
    found = _find_parts(more, columns, found)
    return _guess("preference", found, both)


def _begin_alike(found: dict[str, str], rows: Sequence[Row]) -> bool:
    """Return True if most pairs of texts begin with the same words, or are transcripts."""
    pairs = [tuple(row.values.get(found[part]) for part in ("chosen", "rejected")) for row in rows]
    texts = [(a, b) for a, b in pairs if isinstance(a, str) and isinstance(b, str)]
    return 2 * sum(_splits(a, b) for a, b in texts) > len(pairs)


def _splits(chosen: str, rejected: str) -> bool:
    try:
        return bool(transcript(chosen) or split_texts(chosen, rejected))
    except Dropped as dropped:
        return dropped.kind == "equal_pair"


def _answer_couples(columns: list[str], rows: Sequence[Row]) -> dict[str, str]:
    """Return the parts of Alpaca pairs whose output is a list: the better answer, the worse one."""
    name = next((name for name in columns if _plain_name(name) == "output"), "")
    values = [row.values.get(name) for row in rows]
    if not all(
        isinstance(value, list) and [type(text) for text in value] == [str, str] for value in values
    ):
        return {}
    return {"chosen": f"{name}.0", "rejected": f"{name}.1"} if values else {}


def _repaired(columns: list[str], rows: Sequence[Row]) -> dict[str, str]:
    """Return the parts of Kiln's runs where most answers were repaired by hand."""
    path = "repaired_output.output"
    repaired = [row for row in rows if at_path(row.values, path, None)]
    return {"chosen": path, "rejected": "output.output"} if 2 * len(repaired) > len(rows) else {}


def _judged(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    """Recognise answers with a verdict each, as KTO trains them."""
    if found := _rated(rows):
        return _guess("judged", found, f'"{found["label"]}" rates the answers')
    label = next((name for name in columns if _plain_name(name) in _VERDICTS), None)
    if label is None or "chosen" in {_plain_name(name) for name in columns}:
        return None
    values = [str(row.values.get(label)).lower() for row in rows]
    chat = next((name for name in columns if name != label and _message_keys(name, rows)), None)
    verdicts = {"true", "false", *(("0", "1") if chat else ())}
    if 10 * sum(value not in verdicts for value in values) > len(values) or not values:
        return None
    if chat and _plain_name(chat) != "prompt":
        found = {"answer": chat, "label": label}
    else:
        named = _find_parts(("prompt", "completion"), columns, {})
        if len(named) < 2:
            return None
        found = {"answer": named["completion"], "prompt": named["prompt"], "label": label}
    found = _find_parts(("system", "tools"), columns, found)
    reason = f'"{label}" judges the answer in "{found["answer"]}" as good or bad'
    return _guess("judged", found, reason)


def _rated(rows: Sequence[Row]) -> dict[str, str]:
    """Return the parts of the rated exports of Kiln (runs) and Open WebUI (feedback)."""
    for found in _EXPORTS:
        paths = found.values()
        whole = [row for row in rows if all(at_path(row.values, path, None) for path in paths)]
        if 2 * len(whole) > len(rows):
            return {**found}
    return {}


def _scored(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    """Recognise several answers to a prompt with a score or a rank each."""
    asked = next(
        (p for part in ("instruction", "prompt", "question") if (p := _find(part, columns))), ""
    )
    for name in (name for name in columns if _plain_name(name) in ALIASES["answers"] and asked):
        scores = _find("scores", [other for other in columns if other != name]) or ""
        lists = [(row.values.get(name), row.values.get(scores)) for row in rows]
        if 2 * sum(_is_ranked(*both, name=name, scores=scores) for both in lists) > len(rows):
            found = {"answers": name, "prompt": asked}
            if any(isinstance(values, list) for _, values in lists):
                found["scores"] = scores
            found = _find_parts(("system", "tools"), columns, found)
            return _guess("scored", found, f'"{name}" holds several answers with scores')
    return None


def _is_ranked(answers: Any, values: Any, *, name: str, scores: str) -> bool:
    try:
        return bool(ranked(answers, values, name=name, score_name=scores))
    except Dropped:
        return False


_EXPORTS = (
    {"prompt": "input", "answer": "output.output", "label": "output.rating"},
    {
        "answer": "snapshot.chat.chat.history.messages", "label": "data.rating",
        "message": "meta.message_id",
    },
)  # fmt: skip
_VERDICTS = ("label", "labels", "ktotag", "desirable")


def _by_names(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    names = {_plain_name(name) for name in columns}
    formats = ["alpaca", "prompt_completion", "question_answer"]
    if "question" in names:
        formats = ["alpaca", "question_answer", "prompt_completion"]
    for format in formats:
        found = _needed_parts(format, columns)
        if found and (format != "prompt_completion" or "prompt" in names or len(columns) <= 4):
            found = _find_parts(PARTS[format][1], columns, found)
            like = ", ".join(
                f'"{name}" is the {part}' if name != part else f'"{name}"'
                for part, name in found.items()
            )
            reason = f"the columns are named like {format.replace('_', '/')}: {like}"
            return _guess(format, found, reason)
    return None


def _labelled(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    found = _needed_parts("labelled", columns)
    if not found:
        return None
    labels = [str(row.values.get(found["label"])) for row in rows]
    if max(map(len, labels), default=0) > 100:
        return None
    reason = (
        f'"{found["text"]}" is a text and "{found["label"]}" its label ({len(set(labels))} '
        f"different in the first {len(rows)} rows); the label becomes the answer"
    )
    return _guess("labelled", found, reason)


def _texts(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return the columns that hold words."""
    found = []
    for name in columns:
        values = (row.values.get(name) for row in rows)
        texts = islice((value for value in values if isinstance(value, str)), 50)
        if any(re.search(r"[^\W\d_]", text) for text in texts):
            found.append(name)
    return found


def _text(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    texts = _texts(columns, rows)
    named = _find("text", texts)
    if not (named and _plain_name(named) == "text") and len(texts) != 1:
        return None
    name = named or texts[0]
    nested = any(isinstance(v, list | dict) and v for row in rows for v in row.values.values())
    if nested and _plain_name(name) not in _WHOLE_TEXTS:
        return None  # a title beside the real content
    if _plain_name(name) in _PROMPTS:
        reason = (
            f'"{name}" looks like a prompt, but no column holds an answer, so that its text was '
            "taken as plain text"
        )
        return _guess("text", {"text": name}, reason, sure=False)
    return _guess("text", {"text": name}, f'"{name}" is plain text; everything in it is trained')


def _two_texts(columns: list[str], rows: Sequence[Row]) -> Guess | None:
    texts = _texts(columns, rows)
    if len(texts) != 2:
        return None
    reason = (
        f'there are two columns of text: "{texts[0]}" was taken as the question and "{texts[1]}" '
        "as the answer, which is a guess"
    )
    found = {"prompt": texts[0], "completion": texts[1]}
    return _guess("prompt_completion", found, reason, sure=False)


def _as_wanted(wanted: str, columns: list[str], rows: Sequence[Row]) -> Guess:
    found = _needed_parts(wanted, columns)
    if wanted in ("messages", "sharegpt"):
        shaped = next((name for name in columns if _message_keys(name, rows)), None)
        found = {"messages": shaped} if shaped else found
    elif wanted == "text" and not found and (texts := _texts(columns, rows)):
        found = {"text": texts[0]}
    if not found:
        needed = " and ".join(f'"{part}"' for part in PARTS[wanted][0])
        raise DataError(
            f'The format "{wanted}" was chosen, but the columns {shown(columns)} have no '
            f"{needed}. Choose another format or map the columns."
        )
    found = _find_parts(PARTS[wanted][1], columns, found)
    return _guess(wanted, found, "the format was chosen by hand")


def guess_origin(origin: Origin, source: DataSource, mapping: Mapping | None = None) -> Guess:
    """Return the format of an origin's rows: as given, as settled at the import, or recognised.

    Raises:
        DataError: Nothing fits, or not one row can be read.
    """
    if mapping:
        return Guess(mapping.checked(), "the mapping was given")
    if origin.guess and source.format in ("auto", origin.guess.mapping.format):
        return origin.guess
    sample: list[Row] = []
    problems: list[Problem] = []
    for item in origin.rows():
        if isinstance(item, Row):
            sample.append(item)
        else:
            problems.append(item)
        if len(sample) >= SAMPLE_ROWS or len(problems) >= 100_000:
            break
    if not sample:
        counts = Counter(problem.kind for problem in problems)
        raise DataError(why_nothing(origin.name, len(problems), problems, counts))
    return recognise(sample, wanted=source.format, plain=origin.plain)
