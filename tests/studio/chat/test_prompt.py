"""Conversations are shortened by whole old turns, or refused in one sentence."""

import pytest

from studio.chat.lanes import Lane, Message, Sampling
from studio.chat.prompt import fit_prompt
from studio.errors import ChatError
from tests.studio.chat.tiny import WordTemplate, make_tokenizer


def lane_of(*turns: tuple[str, str], system: str = "", max_new_tokens: int = 8) -> Lane:
    return Lane(
        system=system,
        messages=tuple(Message(role=role, content=content) for role, content in turns),
        sampling=Sampling(max_new_tokens=max_new_tokens),
    )


def test_a_short_conversation_is_read_whole():
    lane = lane_of(("user", "w5"), ("assistant", "w6"), ("user", "w7"))

    fitted = fit_prompt(lane, WordTemplate(), make_tokenizer(), context=64)

    assert fitted.ids == [1, 5, 2, 1, 6, 2, 1, 7, 2]
    assert (fitted.max_new_tokens, fitted.note) == (8, "")


def test_the_oldest_turns_go_first_and_it_is_said():
    old = [("user", "w5 w5 w5 w5 w5 w5"), ("assistant", "w6 w6")] * 4
    lane = lane_of(*old, ("user", "w7"), system="w9")

    fitted = fit_prompt(lane, WordTemplate(), make_tokenizer(), context=32)

    # 24 of 32 may be read: the system prompt (3), the question (3), one old pair (8 + 4).
    assert fitted.ids == [1, 9, 2, 1, 5, 5, 5, 5, 5, 5, 2, 1, 6, 6, 2, 1, 7, 2]
    assert fitted.note == (
        "The oldest 6 messages no longer fit into the 32 tokens of the context and were left out."
    )


def test_a_question_longer_than_the_context_is_refused():
    lane = lane_of(("user", "w7 " * 70))

    with pytest.raises(ChatError, match="The prompt has 72 tokens, but the model reads at most 63"):
        fit_prompt(lane, WordTemplate(), make_tokenizer(), context=64)


def test_a_question_that_nearly_fills_the_context_gets_the_rest_for_the_answer():
    lane = lane_of(("user", "w7 " * 58), max_new_tokens=30)

    fitted = fit_prompt(lane, WordTemplate(), make_tokenizer(), context=64)

    assert (len(fitted.ids), fitted.max_new_tokens) == (60, 4)


def test_virtual_tokens_take_their_room():
    lane = lane_of(("user", "w7 " * 58), max_new_tokens=30)

    assert (
        fit_prompt(lane, WordTemplate(), make_tokenizer(), context=64, before=3).max_new_tokens == 1
    )
    with pytest.raises(ChatError, match="beside 4 virtual tokens"):
        fit_prompt(lane, WordTemplate(), make_tokenizer(), context=64, before=4)


def test_a_last_assistant_message_is_continued():
    lane = lane_of(("user", "w5"), ("assistant", "w6 w7"))

    fitted = fit_prompt(lane, WordTemplate(), make_tokenizer(), context=64)

    assert fitted.ids == [1, 5, 2, 6, 7]


def test_a_lane_without_a_prompt_is_refused():
    with pytest.raises(ValueError, match="there is no prompt to answer"):
        lane_of(("user", "  "))


def test_a_template_that_fails_costs_a_sentence():
    from jinja2 import TemplateError

    class Broken:
        name, stop_ids = "theirs", ()

        def encode_prompt(self, messages, tools=None):
            raise TemplateError("roles must alternate")

    with pytest.raises(ChatError) as caught:
        fit_prompt(lane_of(("user", "w5")), Broken(), make_tokenizer(), context=96)

    assert caught.value.text == (
        "The chat template theirs fails on this conversation (roles must alternate)."
    )
