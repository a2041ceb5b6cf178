"""Learn from a few made-up conversations what a template reads, and what ends its turns.

Each fact is a rendering that holds, or does not hold, a word that no template writes by itself.
Nothing is concluded from the template's source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

from studio.data.conversation_records import Message, num_equal
from studio.data.template.adapt_conversation import PARTS, THOUGHT_KEYS, Facts, Way, inline
from studio.data.template.jinja_sandbox import DATA_END, DATA_START, TemplateRefused
from studio.data.template.lost_parts import OPEN_CLOSE

SYSTEM, TOOL, KEY, VALUE, THOUGHT, ANSWER = (
    f"zq{word}zq" for word in ("system", "tool", "key", "value", "thought", "answer")
)
USER: Message = {"role": "user", "content": "u"}
REPLY: Message = {"role": "assistant", "content": "a"}
LONG_ID, NINE_ID = "call_zq_00001", "zqcall001"
TOOLS = [
    {"type": "function", "function": {
        "name": TOOL, "description": "d",
        "parameters": {
            "type": "object", "properties": {KEY: {"type": "string", "description": "d"}},
            "required": [KEY],
        },
    }}
]  # fmt: skip
Renders = Callable[..., str]
"""Renders messages and tools, with `cue` the generation prompt too; raises `TemplateRefused`."""
ARGUMENTS = ({KEY: VALUE, "flag": True}, f'{{"{KEY}": "{VALUE}", "flag": true}}')


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """The texts that end a turn.

    `texts` may stand behind an answer; `stops` are those that the model writes itself, where
    generation stops. `after_answer` and `after_call` are appended to a conversation's last answer
    where the template writes no end; "" where it does.
    """

    texts: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    after_answer: str = ""
    after_call: str = ""

    @property
    def asked_for(self) -> tuple[str, ...]:
        """The texts of which one must stand behind every answer; none if nothing marks turns."""
        return (*self.texts, self.after_answer or self.texts[0]) if self.texts else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ThoughtFrame:
    """The text of a thought before an answer: `before` thought `after` answer.

    An answer whose thought was cut has `instead` there, or the white space that stood behind the
    thought if the template `leaves_space`. `learned` is False if the template writes no thoughts.
    """

    before: str = "<think>\n"
    after: str = "\n</think>\n\n"
    instead: str = ""
    leaves_space: bool = False
    learned: bool = False


def learn_facts(render: Renders, source: str) -> Facts:
    """Return the forms that a template reads."""
    tool_role = bool(re.search(r"""['"](tool|ipython)['"]""", source))
    id_length = _id_length(render)
    way = _way(render, NINE_ID if id_length else LONG_ID)
    keys, reads_inline = _thought_forms(render)
    return Facts(
        system=_writes(render, SYSTEM, [{"role": "system", "content": SYSTEM}]),
        later_system=_writes_later(render),
        tools=_writes(render, TOOL, [], TOOLS),
        calls=way is not None,
        tool_role=tool_role,
        way=way or Way(),
        call_ids=bool(id_length)
        or bool(re.search(r"tool_call_id|\.id\b|\[['\"]id['\"]\]", source)),
        id_length=id_length,
        thought_keys=keys,
        inline=reads_inline,
        tags=tuple(tag for tag in OPEN_CLOSE.values() if tag in source),
    )


def learn_ends(render: Renders, facts: Facts, controls: Sequence[str], eos: str) -> Ends:
    """Return what ends a turn, from answers and calls at the end and in the middle."""
    if not controls:
        return Ends(after_answer=eos, after_call=eos)
    one = "|".join(map(re.escape, sorted(controls, key=len, reverse=True)))
    # A marker right before the end of the sequence ends the turn together with it.
    end = re.compile(f"(?:{one})*?{re.escape(eos)}|{one}" if eos else one)
    answer = {"role": "assistant", "content": f"{DATA_START}a{DATA_END}"}
    question = {"role": "user", "content": f"{DATA_START}u{DATA_END}"}
    last = end.findall(_after(render, [USER, answer], DATA_END))[:1]
    nexts = [question | {"role": role} for role in ("user", "assistant", "system")]
    between = [_after(render, [USER, answer, after], DATA_END) for after in nexts]
    middle, *others = (end.findall(text.partition(DATA_START)[0])[:1] for text in between)
    call, written = _call_end(render, facts, re.compile(one), last) if facts.calls else ("", True)
    own = [*last, *(middle if not last or last[0] not in controls else [])]
    found = dict.fromkeys([*last, *middle, *([call] if call else []), *chain(*others)])
    return Ends(
        texts=tuple(found),
        stops=tuple(dict.fromkeys(o if o in controls else eos for o in [*own, call] if o)),
        # Where an answer stands does not change its end: the model cannot know what follows.
        after_answer="" if last else "".join(middle) or eos,
        after_call="" if written else call or eos,
    )


def learn_header(render: Renders, facts: Facts) -> ThoughtFrame:
    """Return what stands around a thought, from an answer that keeps it and one that loses it."""
    question = {"role": "user", "content": f"u{DATA_END}"}
    kept = lost = None
    for message in _thoughtful(facts):
        text = _text(render, [question, message]).rpartition(DATA_END)[2]
        if THOUGHT in text and ANSWER in text:
            kept = text
            text = _text(render, [question, message, USER, REPLY]).rpartition(DATA_END)[2]
            lost = text if THOUGHT not in text and ANSWER in text else None
            break
    plain = _text(render, [question, {"role": "assistant", "content": ANSWER}])
    if kept is None:
        cut = _text(render, [question, {"role": "assistant", "content": inline("t", ANSWER)}])
        left = cut.partition(ANSWER)[0].removeprefix(plain.partition(ANSWER)[0])
        return ThoughtFrame(leaves_space=left == "\n\n")
    before, _, rest = kept.partition(THOUGHT)
    usual = (lost or plain.rpartition(DATA_END)[2]).partition(ANSWER)[0]
    same = num_equal(before, usual)
    after = rest.partition(ANSWER)[0]
    return ThoughtFrame(before=before[same:], after=after, instead=usual[same:], learned=True)


def learn_opening(render: Renders, facts: Facts) -> str:
    """Return what an answer that begins with a call writes before the call's name."""
    if not facts.calls:
        return ""
    question = {"role": "user", "content": f"u{DATA_END}"}
    calling, plain = (
        _text(render, [question, message]).rpartition(DATA_END)[2].partition(mark)[0]
        for message, mark in (
            (_called(facts)[0], TOOL), ({"role": "assistant", "content": ANSWER}, ANSWER)
        )
    )  # fmt: skip
    return calling[num_equal(calling, plain) :]


def _thoughtful(facts: Facts) -> list[Message]:
    base: Message = {"role": "assistant", "content": ANSWER}
    made = [_under(key) for key in facts.thought_keys]
    return [*made, base | {"content": inline(THOUGHT, ANSWER)}] if facts.inline else made


def _under(key: str) -> Message:
    if key != PARTS:
        return {"role": "assistant", "content": ANSWER, key: THOUGHT}
    parts = [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": ANSWER}]
    return {"role": "assistant", "content": parts}


def _thought_forms(render: Renders) -> tuple[tuple[str, ...], bool]:
    def reads(message: Message, mark: str) -> bool:
        text = _text(render, [USER, message])
        found = text.find(mark)
        return 0 <= found < text.rfind(ANSWER)

    keys = [key for key in THOUGHT_KEYS if reads(_under(key), THOUGHT)]
    # A template that prints lists as Python does shows the names of the parts.
    as_parts = _text(render, [USER, _under(PARTS)])
    if 0 <= as_parts.find(THOUGHT) < as_parts.rfind(ANSWER) and "'thinking'" not in as_parts:
        keys += [] if '"thinking"' in as_parts else [PARTS]
    written = {"role": "assistant", "content": inline(THOUGHT, ANSWER)}
    return tuple(keys), reads(written, THOUGHT)


def _writes(
    render: Renders, mark: str, before: list[Message], tools: list[Any] | None = None
) -> bool:
    """Return True if conversations with one or two questions, open or answered, hold the mark."""
    turns = [*before, USER, REPLY, USER, REPLY]
    first = len(before) + 1
    return all(mark in _text(render, turns[: first + n], tools, cue=n % 2 == 0) for n in range(4))


def _writes_later(render: Renders) -> bool:
    """Return True if system prompts stand behind the message before them, whichever that is."""
    system: Message = {"role": "system", "content": SYSTEM}
    for before in (
        [{"role": "system", "content": KEY}],
        [USER | {"content": KEY}],
        [USER, REPLY | {"content": KEY}],
    ):
        text = _text(render, [*before, system, USER, REPLY])
        if not 0 <= text.find(KEY) < text.find(SYSTEM):
            return False
    return True


def _way(render: Renders, identity: str) -> Way | None:
    """Return the first way of writing calls that a template takes; None if it takes none."""

    def kept(way: Way, given: Any, *, strict: bool) -> bool:
        text = _text(render, [USER, _calling(way, given, identity)], TOOLS)
        text = text or _text(render, [USER, _calling(way, given, identity)])
        bare = _text(render, [USER, REPLY], TOOLS) or _text(render, [USER, REPLY])
        added = [text.count(word) - bare.count(word) for word in (TOOL, KEY, VALUE)]
        if min(added) <= 0 or not strict:
            return min(added) > 0
        as_python = any(text.count(word) > bare.count(word) for word in ("True", "None"))
        return not as_python and f'\\"{VALUE}' not in text

    for strict in (True, False):
        for null in (False, True):
            takes = [kept(Way(null=null), given, strict=strict) for given in ARGUMENTS]
            if all(takes):
                return Way("given", null)
            if any(takes):
                return Way("object" if takes[0] else "text", null)
    return None


def _calling(way: Way, given: Any, identity: str, *, times: int = 1) -> Message:
    function = {"name": TOOL, "arguments": given}
    call = {"id": identity, "type": "function", "function": function}
    content = None if way.null else ""
    return {"role": "assistant", "content": content, "tool_calls": [call] * times}


def _id_length(render: Renders) -> int:
    """Return 9 if a template refuses a call's id of another length, else 0."""
    for way, given in product((Way(), Way(null=True)), ARGUMENTS):
        long, nine = (
            _text(render, [USER, _calling(way, given, identity)]) for identity in (LONG_ID, NINE_ID)
        )
        if nine and not long:
            return 9
    return 0


def _call_end(
    render: Renders, facts: Facts, pattern: re.Pattern[str], last: list[str]
) -> tuple[str, bool]:
    """Return what ends a turn of calls, and if the template writes it behind the last message.

    The text that closes each of several calls ends no turn.
    """
    one, result = _called(facts)
    alone = _after(render, [USER, one], VALUE)
    found = pattern.findall(alone)
    if last and last[0] in found:
        return last[0], True
    repeated = _text(render, [USER, _called(facts, times=2)[0]])
    inner = pattern.findall(repeated[: repeated.rfind(TOOL)])
    if found and (repeated.count(VALUE) < 2 or found[-1] not in inner):
        return str(found[-1]), True
    followed = _after(render, [USER, one, result], VALUE).partition(DATA_START)[0]
    behind = pattern.findall(followed[len(alone.rstrip()) :])
    return str(behind[0]) if behind else "", False


def _called(facts: Facts, *, times: int = 1) -> tuple[Message, Message]:
    """Return a call and its result, written as the template reads them."""
    given = ARGUMENTS[facts.way.arguments == "text"]
    identity = NINE_ID if facts.id_length else LONG_ID
    result: Message = {"role": "tool", "content": f"{DATA_START}r{DATA_END}"}
    result |= {"tool_call_id": identity, "name": TOOL}
    return _calling(facts.way, given, identity, times=times), result


def _after(render: Renders, messages: list[Message], mark: str) -> str:
    """Return what a rendering has behind the first place of a mark's last run."""
    text = _text(render, messages)
    return text.partition(mark)[2] if mark == DATA_END else text.rpartition(mark)[2]


def _text(
    render: Renders, messages: list[Message], tools: list[Any] | None = None, *, cue: bool = False
) -> str:
    """Return a rendering, "" where the template refuses."""
    try:
        return render(messages, tools, cue=cue)
    except TemplateRefused:
        return ""
