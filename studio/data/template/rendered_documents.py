"""Read documents that are chats rendered already: a `text` column with `<|im_start|>` in it.

Control tokens typed inside data are broken, so that no row can forge a turn. A document that begins
with a control token and in which the template's own markers open and end an answer is a rendering:
its control tokens are read as tokens, and its answers are found between those markers.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from studio.data.template.jinja_sandbox import Guard, TemplateRefused
from studio.data.template.lost_parts import OPEN_CLOSE, Spans

if TYPE_CHECKING:
    from studio.data.template.render_conversation import Layout, Reading

ControlTokens = Literal["auto", "text", "tokens"]
_FOREIGN = (
    "<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "[INST]", "<|user|>", "<｜User｜>",
    "<|start_of_role|>", "<|START_OF_TURN_TOKEN|>", "<|start|>",
)  # fmt: skip
_QUESTION, _ANSWER = "Quest8f31", "Reply7c52"


class Renderings:
    """The text that a template writes around an answer, and the documents that hold it.

    `opening` stands before an answer and `end` behind it; both are "" where the template writes no
    control token around answers, so that no document is taken for a rendering.
    """

    def __init__(self, layout: Layout, controls: tuple[str, ...]) -> None:
        self._controls = tuple(control for control in controls if len(control) > 1)
        self.opening, self.end = _learned(layout)
        around = (self.opening, self.end)
        if not all(any(c in text for c in self._controls) for text in around):
            self.opening = self.end = ""

    def answers(self, text: str) -> Spans:
        """Return where the answers of a rendering stand, each with what ends it."""
        spans: Spans = []
        bare = self.opening.rstrip()
        at = text.find(bare) if bare else -1
        while at >= 0:
            start = at + len(self.opening if text.startswith(self.opening, at) else bare)
            stop = text.find(self.end, start)
            stop = len(text) if stop < 0 else stop + len(self.end)
            if start < stop:
                spans.append((start, stop))
            at = text.find(bare, stop)
        return spans

    def is_rendering(self, text: str) -> bool:
        """Return True if a document is plainly a chat that this template rendered."""
        if not self.opening or not text.lstrip().startswith(self._controls):
            return False
        at = text.find(self.opening.rstrip())
        return at >= 0 and text.find(self.end, at + len(self.opening.rstrip())) >= 0


def has_foreign_turns(text: str) -> bool:
    """Return True if a document holds what begins a turn in the chats of well-known models."""
    return any(start in text for start in _FOREIGN)


def line_readings(text: str, every: Guard, some: Guard, kept: Reading) -> Counter[Reading]:
    """Count a rendered document's lines with control tokens by how they are read.

    `every` breaks all control tokens and `some` those read as text; others are read as `kept` says.
    """
    found: Counter[Reading] = Counter()
    if every(text) is not text or has_foreign_turns(text):
        for line in text.split("\n"):
            if some(line) is not line:
                found["text"] += 1
            elif every(line) is not line:
                found[kept] += 1
            elif has_foreign_turns(line):
                found["foreign"] += 1
    return found


def _learned(layout: Layout) -> tuple[str, str]:
    """Return what a template writes before an answer and what ends one."""
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        laid = layout.render(turns * 2)
    except TemplateRefused:
        return "", ""
    asked, answered = laid.text.find(_QUESTION), laid.text.find(_ANSWER)
    if min(asked, answered) < 0 or len(laid.spans) != 2:
        return "", ""
    end = laid.text[answered + len(_ANSWER) : laid.spans[0][1]].strip()
    between = laid.text[asked + len(_QUESTION) : laid.spans[0][0]]
    # Users' turns end as answers do in most templates; what is left opens the answer.
    opening = between.lstrip().removeprefix(end).lstrip() if end else ""
    for thought in OPEN_CLOSE:  # an empty one before the answer is the answer's
        opening = opening.partition(thought)[0]
    return opening, end
