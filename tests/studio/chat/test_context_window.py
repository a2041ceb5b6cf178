"""Conversations are shortened by whole old turns, or refused in one sentence."""

import pytest

from studio.chat.context_window import FittedPrompt, fit_prompt
from studio.chat.lanes import Lane, Message, Sampling
from studio.errors import ChatError
from tests.studio.chat.tiny import WordTemplate, make_tokenizer


def lane_of(*turns: tuple[str, str], system: str = "", max_new_tokens: int = 8) -> Lane:
    return Lane(
        system=system,
        messages=tuple(Message(role=role, content=content) for role, content in turns),
        sampling=Sampling(max_new_tokens=max_new_tokens),
    )


def fitted(lane: Lane, *, context: int = 64, template: object = None, **more: int) -> FittedPrompt:
    return fit_prompt(lane, template or WordTemplate(), make_tokenizer(), context=context, **more)


def test_a_short_conversation_is_read_whole_and_a_last_answer_is_continued():
    whole = fitted(lane_of(("user", "w5"), ("assistant", "w6"), ("user", "w7")))
    assert whole.ids == [1, 5, 2, 1, 6, 2, 1, 7, 2]
    assert (whole.max_new_tokens, whole.note) == (8, "")
    begun = fitted(lane_of(("user", "w5"), ("assistant", "w6 w7")))
    assert (begun.ids, begun.num_continued) == ([1, 5, 2, 6, 7], 2)
    with pytest.raises(ValueError, match="there is no prompt to answer"):
        lane_of(("user", "  "))


def test_the_oldest_turns_go_first_and_it_is_said():
    old = [("user", "w5 w5 w5 w5 w5 w5"), ("assistant", "w6 w6")] * 4

    cut = fitted(lane_of(*old, ("user", "w7"), system="w9"), context=32)

    # 24 of 32 may be read: the system prompt (3), the question (3), one old pair (8 + 4).
    assert cut.ids == [1, 9, 2, 1, 5, 5, 5, 5, 5, 5, 2, 1, 6, 6, 2, 1, 7, 2]
    assert cut.note == (
        "The oldest 6 messages no longer fit into the 32 tokens of the context and were left out."
    )


def test_a_question_that_nearly_fills_the_context_leaves_the_rest_for_the_answer():
    lane = lane_of(("user", "w7 " * 58), max_new_tokens=30)

    found = fitted(lane)
    assert (len(found.ids), found.max_new_tokens) == (60, 4)
    assert fitted(lane, before=3).max_new_tokens == 1
    with pytest.raises(ChatError, match="beside 4 virtual tokens"):
        fitted(lane, before=4)
    with pytest.raises(ChatError, match="The prompt has 72 tokens, but the model reads at most 63"):
        fitted(lane_of(("user", "w7 " * 70)))
