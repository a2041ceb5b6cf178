"""Thoughts and tool calls of an answer are told apart by the markers of the model's template."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.chat.lanes import Message
from studio.chat.thought_and_tool_parser import (
    MarkedText,
    OpenAIMessage,
    Piece,
    markers_in,
    message_of,
    read_calls,
)

QWEN = "{{ '<think>' }}{{ '</think>' }}{{ '<tool_call>' }}{{ '</tool_call>' }}"
HARMONY = "<|start|><|channel|><|message|><|end|><|call|>"
CALL = '{"name": "f", "arguments": {"city": "Oslo"}}'


def pieces_of(source, *texts, prompt=""):
    marked = MarkedText(markers_in(source), prompt)
    found = [piece for text in texts for piece in marked.add(text)] + marked.flush()
    joined = []
    for piece in found:
        if joined and joined[-1].kind == piece.kind and piece.kind != "mark":
            joined[-1] = Piece(piece.kind, joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


def gathered_of(source, *texts, prompt=""):
    message = OpenAIMessage(lambda place: f"call_{place}")
    for piece in pieces_of(source, *texts, prompt=prompt):
        message.take(piece)
    return message.finish()


def test_thought_text_and_calls_are_told_apart():
    text = f"<think>\nhm\n</think>\n\nLet me see.\n<tool_call>\n{CALL}\n</tool_call>"

    message = gathered_of(QWEN, text)

    assert message["reasoning_content"] == "hm" and message["content"] == "Let me see."
    (call,) = message["tool_calls"]
    assert call["id"] == "call_0" and call["type"] == "function"
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}


def test_a_thought_that_the_prompt_opened_only_ends_in_the_answer():
    message = gathered_of(QWEN, "hm</think>yes", prompt="<|im_start|>assistant\n<think>\n")

    assert (message["reasoning_content"], message["content"]) == ("hm", "yes")


def test_markers_that_the_template_does_not_know_are_text():
    text = f"<think>a</think><tool_call>{CALL}</tool_call>"

    assert gathered_of("{{ messages }}", text)["content"] == text


def test_a_call_that_cannot_be_read_is_content():
    text = "<tool_call>{broken</tool_call> ok"

    assert gathered_of(QWEN, text) == {"role": "assistant", "content": text, "refusal": None}


def test_an_answer_of_harmony_is_read():
    text = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.f <|constrain|>json<|message|>{"city": "Oslo"}'
    )
    message = gathered_of(HARMONY, text)

    assert message["reasoning_content"] == "hm" and message["content"] is None
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Oslo"}
    final = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes"
    )
    assert gathered_of(HARMONY, final)["content"] == "yes"


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        f"[{CALL}]",
        '{"type": "function", "name": "f", "parameters": {"city": "Oslo"}}',
        '{"function": {"name": "f", "arguments": {"city": "Oslo"}}}',
        'f[ARGS]{"city": "Oslo"}',
        'f{"city": "Oslo"}',
        'functions.f <|constrain|>json<|message|>{"city": "Oslo"}',
        "<function=f>\n<parameter=city>\nOslo\n</parameter>\n</function>",
        "f\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
        '{"city": "Oslo"}\n```<｜tool▁call▁end｜>',
        '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"city": "Oslo"}<｜tool▁call▁end｜>',
        "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        '{"city": "Oslo"}<|tool_call_end|>',
    ],
)
def test_calls_are_read_in_the_forms_of_todays_models(text):
    assert read_calls(text) == [{"name": "f", "arguments": {"city": "Oslo"}}]


def test_several_calls_are_read_in_order():
    assert [call["name"] for call in read_calls(f'{CALL}\n{{"name": "g"}}')] == ["f", "g"]
    found = read_calls('f[ARGS]{"city": "Oslo"}[TOOL_CALLS]g[ARGS]{}')
    assert [call["name"] for call in found] == ["f", "g"]


@pytest.mark.parametrize("text", ["", "{", '{"city": "Oslo"}', "[1]", "two words"])
def test_what_is_no_call_is_not_read_as_one(text):
    assert read_calls(text) == []


WRITTEN = st.lists(
    st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "<", "<th", "a", "\n"])
)


@given(WRITTEN, st.integers(0, 20))
def test_nothing_is_lost_however_the_text_arrives(parts, cut):
    text = "".join(parts)

    found = pieces_of(QWEN, text[:cut], text[cut:])

    assert "".join(piece.text for piece in found) == text
    assert found == pieces_of(QWEN, *text)


def test_an_earlier_answer_is_read_from_its_parts_without_markers():
    parts = [["mark", "<|channel|>analysis<|message|>"], ["thought", "hm"], ["mark", "<|end|>"],
             ["mark", "<|channel|>final<|message|>"], ["text", "Hi"]]  # fmt: skip
    raw = "".join(text for _, text in parts)
    message = Message.model_validate({"role": "assistant", "content": raw, "parts": parts})
    assert message.turn() == {"role": "assistant", "content": "Hi", "reasoning_content": "hm"}

    called = Message(**message_of([["mark", "<tool_call>"], ["call", '{"name": "f"}']]))
    assert called.tool_calls[0]["function"]["name"] == "f" and not called.content
    with pytest.raises(ValueError, match="pairs of a kind and a text"):
        Message.model_validate({"role": "assistant", "parts": "ab cd"})
