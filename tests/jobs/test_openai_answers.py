"""Thoughts and tool calls in answers of the OpenAI route, whole and streamed."""

import asyncio
import json

import pytest

from jobs.openai_api import chat_request, chunks, completion, status_of
from studio.errors import ChatError
from studio.home import open_home

DONE = {
    "type": "done",
    "lane": 0,
    "reason": "stop",
    "tokens": 9,
    "prompt_tokens": 4,
    "active": None,
}
CALL = '{"name": "f", "arguments": {"city": "Oslo"}}'
EVENTS = [
    ("mark", "<think>"), ("thought", "\nhm"), ("thought", ", yes"), ("mark", "</think>"),
    ("text", "\n\nI look."), ("mark", "<tool_call>"), ("call", CALL[:9]), ("call", CALL[9:]),
    ("mark", "</tool_call>"),
]  # fmt: skip


async def batches(events):
    for part, text in events:
        yield [{"type": "delta", "lane": 0, "text": text, "part": part}]
    yield [DONE]


def whole(events):
    return asyncio.run(completion(batches(events), "x", {"model": "m"}))["choices"][0]


def streamed(events):
    async def gather():
        return [chunk async for chunk in chunks(batches(events), "x", {"model": "m"})]

    lines = [chunk.decode().removeprefix("data: ").strip() for chunk in asyncio.run(gather())]
    return [json.loads(line)["choices"][0] for line in lines if line != "[DONE]"]


def test_a_completion_has_thought_and_calls_beside_its_content():
    choice = whole(EVENTS)

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant", "content": "I look.", "refusal": None, "reasoning_content": "hm, yes",
        "tool_calls": [{
            "id": "call_x_0", "type": "function",
            "function": {"name": "f", "arguments": '{"city": "Oslo"}'},
        }],
    }  # fmt: skip


def test_a_stream_joins_to_the_same_message():
    found = streamed(EVENTS)
    deltas = [choice["delta"] for choice in found]

    assert "".join(d.get("reasoning_content", "") for d in deltas) == "hm, yes"
    assert "".join(d.get("content", "") for d in deltas) == "I look."
    (call,) = (call for d in deltas for call in d.get("tool_calls", []))
    assert call["index"] == 0 and call["function"]["name"] == "f"
    assert found[-1]["finish_reason"] == "tool_calls"


def test_a_call_that_only_the_end_closes_is_streamed():
    events = [("mark", "[TOOL_CALLS]"), ("call", f"[{CALL}]")]

    assert streamed(events)[-2]["delta"]["tool_calls"][0]["id"] == "call_x_0"


def test_plain_text_is_unchanged():
    events = [("text", " a"), ("text", "\nb ")]

    assert whole(events)["message"] == {"role": "assistant", "content": " a\nb ", "refusal": None}
    assert [choice["delta"] for choice in streamed(events)[1:-1]] == [
        {"content": " a"}, {"content": "\nb "},
    ]  # fmt: skip


def test_an_answer_that_the_host_cut_off_is_an_error_not_a_whole_answer():
    async def cut():
        yield [{"type": "delta", "lane": 0, "text": "half an"}]
        yield [DONE | {"reason": "stopped"}]

    async def gather():
        return [chunk async for chunk in chunks(cut(), "x", {"model": "m"})]

    body = asyncio.run(completion(cut(), "x", {"model": "m"}))
    *_, last = [json.loads(one.decode().removeprefix("data: ")) for one in asyncio.run(gather())]

    for found in (body, last):
        assert found["error"]["code"] == "stopped" and found["error"]["type"] == "server_error"
    assert status_of(body) == 503
    assert status_of({"error": {"code": "model"}}) == 400 and status_of({"choices": []}) == 200


def test_tools_calls_and_results_of_a_request_reach_the_conversation(tmp_path):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
    ]
    asked = {"model": "starter", "messages": messages, "tools": [tool]}

    (lane,) = chat_request(asked, open_home(tmp_path / "home")).lanes
    (without,) = chat_request(asked | {"tool_choice": "none"}, open_home(tmp_path / "home")).lanes

    assert [*lane.tools] == [tool] and not without.tools
    assert lane.conversation() == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
    ]


def asked(home, **values):
    messages = [{"role": "user", "content": "q"}]
    (lane,) = chat_request({"model": "starter", "messages": messages} | values, home).lanes
    return lane


def make_adapter(home, folder, name, base, *, age=0):
    path = home.adapters / folder
    path.mkdir()
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(b"")
    (path / "passport.json").write_text(json.dumps({
        "name": name, "base": {"path": base}, "created": f"2026-01-{20 - age:02}T00:00:00Z",
    }))  # fmt: skip


def test_names_that_are_listed_can_be_requested(home):
    for name in ("a+b", "c:d", "starter"):
        make_adapter(home, name, name, "/own")
    lanes = {
        "a+b": "/own~a%2Bb:1", "a+b:0.5+e": "/own~a%2Bb:0.5+e:1", "c:d:2": "/own~c%3Ad:2",
        "m+a%2Bb+c%3Ad:0.5": "m~a%2Bb:1+c%3Ad:0.5", "starter": "starter",
        "starter+starter": "starter~starter:1", "other+e:2": "other~e:2",
    }  # fmt: skip
    assert {name: asked(home, model=name).name for name in lanes} == lanes


def test_of_adapters_with_one_name_the_newest_is_meant(home):
    make_adapter(home, "x1", "x", "/old", age=9)
    make_adapter(home, "x2", "x", "/new")
    assert asked(home, model="x").model == "/new"


def test_fields_that_change_nothing_are_accepted_and_wrong_ones_named(home):
    asked(home, min_p=0, service_tier="auto", parallel_tool_calls=False)
    how = asked(home, reasoning_effort="low", chat_template_kwargs="enable_thinking=false")
    assert how.sampling.chat_template_kwargs == "enable_thinking=false, reasoning_effort=low"
    assert [asked(home, logprobs=on, top_logprobs=2).sampling.logprobs for on in (True, False)] == [
        2, -1
    ]  # fmt: skip
    for values, sentence in (
        ({"reasoning_effort": "low", "chat_template_kwargs": "x"}, "chat_template_kwargs: write"),
        ({"logprobs": True, "top_logprobs": "many"}, "logprobs is 'many'"),
        ({"stream_options": [1]}, "stream_options must be an object"),
        ({"min_p": 0.1}, '"min_p" is not supported'),
    ):
        with pytest.raises(ChatError, match=sentence):
            asked(home, **values)
