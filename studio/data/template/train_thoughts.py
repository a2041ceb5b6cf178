"""Train thoughts that a template cuts: one row per answer, or the thought written back.

Templates cut the thoughts of earlier answers, because a model never reads them again; some cut all.
As it was generated, each answer followed its own prompt: `turns` gives one conversation per answer,
of which the others carry no loss. `with_thoughts` writes a thought in front of its answer, with the
text that the template itself puts around thoughts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from studio.data.conversation_records import Conversation
from studio.data.template.lost_parts import Quote, find_text, split_thought, thought_of
from studio.data.template.probe_template import ThoughtFrame
from studio.data.template.render_conversation import Rendered


def turns(row: Conversation) -> Iterator[Conversation]:
    """Yield one conversation per answer that carries loss, up to that answer."""
    answers = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
    for number, index in enumerate(answers):
        if number not in row.muted:
            muted = tuple(range(number))
            yield row._replace(messages=row.messages[: index + 1], muted=muted)


def with_thoughts(
    row: Conversation,
    laid: Rendered,
    messages: Collection[int],
    *,
    header: ThoughtFrame,
    cue: str,
    quote: Quote,
) -> Rendered:
    """Write the thoughts of some messages in front of their answers.

    An answer without text, or whose text has no place, stays as it is: its thought stays lost.

    Args:
        messages: The messages, by their place in the conversation, whose thoughts are written.
        header: What stands around a thought.
        cue: The generation prompt; what it opens of a thought is not trained.
        quote: Breaks control tokens inside data.
    """
    text, spans, lost = laid.text, list(laid.spans), list(laid.lost)
    answers = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
    for number, index in enumerate(answers):
        thought, content = thought_of(row.messages[index])
        start, stop = spans[number]
        place = find_text(content.strip(), text, start, stop, quote) if content.strip() else None
        if index not in messages or place is None:
            continue
        split = split_thought(row.messages[index]["content"])
        at, written = place[0], header.before + quote(thought) + header.after
        if split and not header.learned:
            written = quote(split.lead)
            space = split.lead[len(split.lead.rstrip()) :]
            if header.leaves_space and text.endswith(space, 0, at):
                at -= len(space)
        elif header.instead and text.endswith(header.instead, 0, at):
            at -= len(header.instead)
        elif header.instead:
            continue
        text = text[:at] + written + text[place[0] :]
        grown = len(written) - (place[0] - at)
        opened = _num_opened(text, min(start, at), at, cue)
        spans[number] = (opened, stop + grown)
        spans[number + 1 :] = [(a + grown, b + grown) for a, b in spans[number + 1 :]]
        lost = [part for part in lost if (part.message, part.kind) != (index, "thought")]
    return Rendered(text, spans, lost)


def _num_opened(text: str, start: int, at: int, cue: str) -> int:
    """Return where a span begins whose first characters the generation prompt has written."""
    for known in range(len(cue), 0, -1):
        if text.endswith(cue[:known], 0, at) and text.startswith(cue[known:], at):
            return at + len(cue) - known
    return start
