"""Fit a conversation into the model's context, and note what was left out.

The oldest turns are dropped first; the system prompt and the last question stay. The text of a turn
is never cut. The chat template turns messages into tokens, as in training.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.chat.lanes import Lane, Sampling
from studio.errors import ChatError

if TYPE_CHECKING:
    from studio.data.template.template import Template


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedPrompt:
    """The prompt's tokens, the limit of the answer, and a note for the user.

    The last `num_continued` tokens are of an unfinished answer.
    """

    ids: list[int]
    max_new_tokens: int
    num_continued: int = 0
    note: str = ""


def fit_prompt(
    lane: Lane, template: Template, tokenizer: Any, *, context: int, before: int = 0
) -> FittedPrompt:
    """Return the prompt's tokens; drop the oldest turns where they are too long.

    Args:
        lane: The conversation and the maximum length of the answer.
        template: Turns the conversation into tokens.
        tokenizer: Encodes an unfinished answer.
        context: The model's context in tokens.
        before: Positions of the stack's virtual tokens.

    Raises:
        ChatError: The last question alone is longer than the context.
        DataError: The template refuses the conversation.
    """
    room = context - before
    asked = lane.sampling.max_new_tokens
    usual = Sampling().max_new_tokens  # for an answer that may fill the context
    wanted = min(asked if asked < room else usual, max(16, room // 4), room // 2)
    turns = lane.conversation()
    head = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    system, turns = turns[:head], turns[head:]
    starts = [i for i, turn in enumerate(turns) if turn["role"] == "user" or i == 0] or [0]

    unfinished: list[int] = []
    if len(system + turns) > 1 and turns and turns[-1]["role"] == "assistant":
        unfinished = tokenizer.encode(turns.pop()["content"], add_special_tokens=False)

    def encoded(place: int) -> list[int]:
        shown = system + turns[starts[place] :]
        return template.encode_prompt(shown, [*lane.tools] or None) + unfinished

    ids = encoded(0)
    place = 0
    if len(ids) > room - wanted and len(starts) > 1:
        places = range(len(starts) - 1)
        place = bisect_left(places, True, lo=1, key=lambda p: len(encoded(p)) <= room - wanted)
        ids = encoded(place)
    if len(ids) >= room:
        raise ChatError(
            f"The prompt has {len(ids):,} tokens, but the model reads at most {room - 1:,} at once"
            f"{f' beside {before} virtual tokens' if before else ''}: shorten it, or choose a "
            "model with a longer context."
        )
    if not ids:
        raise ChatError("The prompt is empty: write something.")
    note = ""
    if left_out := starts[place]:
        note = (
            f"The oldest {left_out} messages no longer fit into the {context:,} tokens of the "
            "context and were left out."
        )
    return FittedPrompt(
        ids=ids, max_new_tokens=min(lane.sampling.max_new_tokens, room - len(ids)),
        num_continued=len(unfinished), note=note,
    )  # fmt: skip
