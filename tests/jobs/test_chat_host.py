"""The chat host as a page meets it: a real process, real models, over its loopback port."""

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from jobs import chat_client
from jobs.chat_client import state_path
from jobs.chat_host import batches, make_app
from jobs.chat_worker import ChatWorker, EventBuffer
from jobs.job_queue import JobStore
from jobs.runner_processes import spawn
from studio.backbone import Backbone
from studio.chat.lanes import ChatRequest, Delta
from studio.errors import ChatError
from studio.home import Home, open_home
from studio.methods import named
from tests.jobs.conftest import until

pytestmark = pytest.mark.usefixtures("forked")
LONG = 6000  # tokens of an answer that is still being written when the test acts


def make_base(folder: Path, *, hidden: int = 32, more_words: int = 0) -> Path:
    """A tiny random Llama that reads bytes and never ends by itself, saved like any model."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=256 + more_words, max_position_embeddings=8192,
        eos_token_id=None, bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, *, seed: int = 1) -> Path:
    """A LoRA moved by noise, so that it changes answers."""
    backbone = Backbone(LlamaForCausalLM.from_pretrained(base))
    adapter = backbone.attach("x", named("lora")(r=4), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
    folder.mkdir(parents=True, exist_ok=True)
    backbone.save("x", folder)
    return folder


@pytest.fixture(scope="module")
def place(forked, tmp_path_factory):
    """A home with a base, an adapter, and a running host that is ended afterwards."""
    root = tmp_path_factory.mktemp("chat")
    home = open_home(root / "home")
    base = make_base(root / "base")
    make_adapter(base, home.adapters / "noisy")
    chat_client.ensure_host(home, idle_seconds=300)
    yield home, base
    chat_client.quit_host(home)


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def lane(base: Path, *stack: str, prompt: str = "Hello there", **sampling) -> dict:
    return asked(
        prompt, model=str(base), stack=[{"name": name, "weight": 1.0} for name in stack],
        sampling={"temperature": 0, "max_new_tokens": 12} | sampling,
    )  # fmt: skip


def long_answer(home: Home, base: Path, name: str, *stack: str) -> Iterator[dict]:
    """Begin an answer that is still being written when the test acts; return its events."""
    one = lane(base, *stack, temperature=3.0, max_new_tokens=LONG)
    events = chat_client.generate(home, {"id": name, "lanes": [one]})
    next(events)
    return events


def ask(home: Home, *lanes: dict, request_id: str = "") -> dict[int | None, dict]:
    """Send a request and gather what each lane said."""
    said: dict = {}
    for event in chat_client.generate(home, {"id": request_id, "lanes": list(lanes)}):
        mine = said.setdefault(event["lane"], {"text": "", "status": [], "end": None})
        if event["type"] == "delta":
            mine["text"] += event["text"]
        elif event["type"] == "status":
            mine["status"].append(event["text"])
        else:
            mine["end"] = event
    return said


def raw(home: Home) -> httpx.Client:
    return chat_client.find_host(home).client(read_seconds=20)


def test_base_and_adapter_answer_together_and_say_who_they_are(place):
    home, base = place
    assert stat.S_IMODE(state_path(home).stat().st_mode) == 0o600
    pid = chat_client.status(home)["pid"]

    said = ask(home, lane(base), lane(base, "noisy"))

    assert said[0]["text"] != said[1]["text"]
    assert said[0]["end"]["active"]["stack"] == []
    assert said[1]["end"]["active"]["stack"] == [{"name": "noisy", "weight": 1.0}]
    assert said[1]["end"]["active"]["max_logit_difference"] > 0.01
    assert all(said[n]["end"]["active"]["verified"] for n in (0, 1))
    assert said[1]["end"]["tokens"] <= 12
    assert said[1]["end"]["first_token_seconds"] <= said[1]["end"]["seconds"]
    first, second = (ask(home, lane(base, temperature=1.0, seed=7))[0]["text"] for _ in range(2))
    assert first == second
    assert chat_client.ensure_host(home).identity.pid == pid, "the same process"


def test_the_queue_knows_what_the_host_holds_until_it_is_released(place):
    home, base = place
    ask(home, lane(base))
    with closing(JobStore(home)) as store:
        row = next(row for row in store.processes() if row["role"] == "chat")
        lease = until(store.leases)[0]
    assert row["pid"] == lease["pid"] == chat_client.status(home)["pid"]
    assert (lease["device"], lease["holder"]) == ("cpu", "chat")
    assert lease["memory_bytes"] > 0 and chat_client.status(home)["models"]

    chat_client.release(home)

    assert chat_client.status(home)["models"] == []
    assert ask(home, lane(base))[0]["end"]["type"] == "done", "the next question loads again"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": ""}, 401),
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://localhost:9999"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_strangers_are_refused(place, headers, code):
    home, _ = place
    with raw(home) as client:
        assert client.get("/status", headers=headers).status_code == code
        assert client.post("/release", headers=headers).status_code == code


def test_a_lane_that_cannot_be_answered_costs_only_itself(place, tmp_path):
    """An adapter that is gone, one of another base, a prompt that is too long."""
    home, base = place
    brief = make_adapter(base, home.adapters / "brief", seed=1)
    before = ask(home, lane(base, "brief"))[0]["end"]["active"]["max_logit_difference"]
    make_adapter(base, brief, seed=2)
    after = ask(home, lane(base, "brief"))[0]["end"]["active"]["max_logit_difference"]
    assert before != after, "what changed on disk is loaded again"
    shutil.rmtree(brief)
    make_adapter(make_base(tmp_path / "other", hidden=48), tmp_path / "foreign")

    said = ask(
        home, lane(base, "brief"), lane(base, str(tmp_path / "foreign")),
        lane(base, prompt="<script>alert(1)</script>" * 400), lane(base, "noisy", prompt="<b>"),
    )  # fmt: skip

    ends = [said[number]["end"] for number in range(4)]
    assert [end.get("kind") for end in ends] == ["adapter", "adapter", "chat", None]
    assert '"brief"' in ends[0]["text"] and "Traceback" not in ends[1]["text"]
    assert "shorten it" in ends[2]["text"] and ends[3]["type"] == "done"


def test_two_bases_answer_in_one_request(place, tmp_path):
    home, base = place
    other = make_base(tmp_path / "other", hidden=48, more_words=64)

    said = ask(home, lane(base), lane(other), lane("/no/such/model"))

    assert said[0]["end"]["type"] == said[1]["end"]["type"] == "done"
    # Other vocabulary, other base: allowed, and its memory is said before it is taken.
    assert re.fullmatch(rf"Loading {other} \([\d.]+ KiB\)…", said[1]["status"][0])
    assert said[2]["end"]["kind"] == "model"


def test_a_stop_or_a_reader_that_goes_ends_the_answer_where_it_is(place):
    home, base = place
    events = long_answer(home, base, "long")

    assert chat_client.stop(home, "long")
    last = list(events)[-1]

    assert (last["type"], last["reason"]) == ("done", "stopped")
    assert last["tokens"] < LONG
    assert not chat_client.stop(home, "long")

    long_answer(home, base, "left").close()
    until(lambda: chat_client.status(home)["answering"] == 0)
    assert ask(home, lane(base))[0]["end"]["type"] == "done"


def test_weights_move_while_an_answer_is_written(place):
    home, base = place
    events = long_answer(home, base, "slid", "noisy")

    weights = {"id": "slid", "lane": 0}
    assert chat_client.weigh(home, weights | {"stack": [{"name": "noisy", "weight": 0.25}]})
    read_until = time.monotonic() + 1
    for _ in events:  # what was under way when they moved, and more
        if time.monotonic() > read_until:
            break
    assert chat_client.stop(home, "slid")
    last = list(events)

    assert last[-1]["active"]["stack"] == [{"name": "noisy", "weight": 0.25}]
    assert any("Weights changed" in event.get("text", "") for event in last)
    assert not chat_client.weigh(home, weights | {"stack": ["noisy"]})
    with pytest.raises(ChatError, match="lane is 99"):
        chat_client.weigh(home, weights | {"lane": 99})


class Unloaded:
    """Resident models without a model."""

    def describe(self) -> list[Any]:
        return []

    def release(self) -> None: ...


def talk(home: Home, models: type, *prompts: str, let: threading.Event | None = None) -> list:
    """Ask a host in this process, whose models are a test's, and return the events of each."""

    async def answers() -> list:
        host = ChatWorker(home)
        host._get_residents = models
        requests = [host.submit(ChatRequest.parse({"lanes": [asked(text)]})) for text in prompts]
        if let is not None:
            let.set()
        said = [[event async for events in batches(r) for event in events] for r in requests]
        host.close()
        return said

    return asyncio.run(answers())


def test_a_second_request_waits_its_turn_and_is_told_so(home):
    let = threading.Event()

    class Models(Unloaded):
        def stream(self, lanes, stopped, wanted):
            let.wait(10)
            yield Delta(lane=0, text=lanes[0].messages[0].content)

    first, second = talk(home, Models, "one", "two", let=let)

    assert [event["text"] for event in first] == ["Starting the chat engine…", "one"]
    assert second[0]["text"] == "Another answer is being written; this one is next."
    assert second[-1]["text"] == "two"


def test_a_running_host_obeys_the_offline_switch_of_another_process(home, monkeypatch):
    seen, place = [], home.state / "offline"
    monkeypatch.setattr("studio.offline._GIVEN", "")
    monkeypatch.setattr("studio.offline._applied", None)

    class Models(Unloaded):
        def stream(self, lanes, stopped, wanted):
            seen.append(constants.HF_HUB_OFFLINE)
            place.unlink() if place.exists() else place.touch()
            yield Delta(lane=0, text="x")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    talk(home, Models, "a", "b", "c")
    assert seen == [False, True, False]
    place.unlink()


def test_a_client_that_leaves_an_answer_that_is_not_streamed_stops_it(home):
    sent = []

    class Models(Unloaded):
        def stream(self, lanes, stopped, wanted):
            yield Delta(lane=0, text="half")
            until(stopped, seconds=20)
            yield Delta(lane=0, done=True, reason="stopped")

    async def leave() -> None:
        worker = ChatWorker(home)
        worker._get_residents = Models
        body = json.dumps(completion(Path("starter"))).encode()
        messages = iter(({"type": "http.request", "body": body}, {"type": "http.disconnect"}))

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
            "headers": [(b"host", b"localhost:1"),
                        (b"authorization", f"Bearer {worker.token}".encode())],
        }  # fmt: skip
        await make_app(worker, 1)(scope, receive, send)
        worker.close()

    asyncio.run(leave())
    assert sent[0]["status"] == 503 and json.loads(sent[1]["body"])["error"]["code"] == "stopped"


def test_a_fault_of_ours_is_one_sentence_and_the_host_lives_on(home):
    class Broken:
        def stream(self, lanes, stopped, wanted):
            raise ZeroDivisionError("division by zero")
            yield

    for said in talk(home, Broken, "x", "x"):
        assert said[-1]["type"] == "error"
        assert said[-1]["text"].startswith(
            "The chat engine failed (ZeroDivisionError: division by zero). Send again"
        )


def test_text_that_nobody_fetched_is_joined_and_half_a_line_is_kept_back():
    async def two_takes():
        buffer = EventBuffer()
        for text in ("a", "b"):
            buffer.put({"type": "delta", "lane": 0, "text": text})
            buffer.put({"type": "delta", "lane": 1, "text": text.upper(), "tokens": [text]})
        buffer.put({"type": "done", "lane": 0})
        first = buffer.take()
        buffer.put({"type": "delta", "lane": 1, "text": "C"})
        return first, buffer.take()

    first, second = asyncio.run(two_takes())

    assert first == [
        {"type": "delta", "lane": 0, "text": "ab"},
        {"type": "delta", "lane": 1, "text": "AB", "tokens": ["a", "b"]},
        {"type": "done", "lane": 0},
    ]
    assert second == [{"type": "delta", "lane": 1, "text": "C"}]

    class Response:
        def iter_raw(self):
            yield from (b'{"a"', b': 1}\n{"b', b'": 2}\n{"c": 3}\n', b'{"cut')

    got = list(chat_client._whole_lines(Response()))
    assert got == [b'{"a": 1}\n', b'{"b": 2}\n{"c": 3}\n']


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"lanes": []}, "lanes is []"),
        ({"lanes": [{"messages": []}]}, "Lane 1: there is no prompt to answer"),
        ({"lanes": [asked("x", sampling={"top_p": 2})]}, "Lane 1: sampling.top_p is 2"),
        ({"lanes": [asked("x", colour=1)]}, "colour"),
    ],
)
def test_a_wrong_request_is_refused_in_one_sentence(place, request_, sentence):
    with pytest.raises(ChatError) as caught:
        list(chat_client.generate(place[0], request_))

    assert sentence in caught.value.text


def test_a_body_that_is_no_request_is_refused(place):
    with raw(place[0]) as client:
        for body in (b"{", b"[1]", b"\xff", b"[" * 100_000):
            answer = client.post("/generate", content=body)
            assert (answer.status_code, answer.json()["error"]["kind"]) == (400, "chat")


def test_a_page_gets_the_same_events_as_whole_lines(place):
    home, base = place
    request = {"lanes": [lane(base), lane(base, "noisy")]}

    pieces = list(chat_client.relay(home, request))

    assert all(piece.endswith(b"\n") for piece in pieces)
    events = [json.loads(line) for line in b"".join(pieces).splitlines()]
    said = ask(home, *request["lanes"])
    for number in (0, 1):
        text = "".join(e["text"] for e in events if (e["type"], e["lane"]) == ("delta", number))
        assert text == said[number]["text"]
    assert [e["type"] for e in events].count("done") == 2


# -- the OpenAI-compatible side ------------------------------------------------------------------


def completion(base: Path, **values) -> dict:
    return asked("Hello there", model=str(base), temperature=0, max_tokens=12) | values


def test_an_openai_completion_is_the_lanes_answer(place):
    home, base = place
    expected = ask(home, lane(base, "noisy"))[0]

    with raw(home) as client:
        answer = client.post(
            "/v1/chat/completions", json=completion(f"{base}+noisy", logprobs=True, top_logprobs=2)
        ).json()

    choice = answer["choices"][0]
    assert choice["message"] == {
        "role": "assistant", "content": expected["text"], "refusal": None,
    }  # fmt: skip
    assert choice["finish_reason"] == expected["end"]["reason"]
    assert answer["usage"]["completion_tokens"] == expected["end"]["tokens"]
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert answer["object"] == "chat.completion"


def test_an_openai_stream_joins_to_the_same_answer(place):
    home, base = place
    expected = ask(home, lane(base))[0]["text"]

    body = completion(base, stream=True, stream_options={"include_usage": True})
    with raw(home) as client:
        text = client.post("/v1/chat/completions", json=body).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]

    chunks = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]"
    pieces = [c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]]
    assert "".join(pieces) == expected
    assert chunks[-1]["usage"]["total_tokens"] > 0


def test_an_adapters_name_alone_means_its_base(place):
    home, base = place
    make_adapter(base, home.adapters / "documented")
    passport = {"name": "documented", "base": {"path": str(base)}}
    (home.adapters / "documented" / "passport.json").write_text(json.dumps(passport))

    with raw(home) as client:
        names = {model["id"] for model in client.get("/v1/models").json()["data"]}
        known = client.post("/v1/chat/completions", json=completion("documented"))
        unknown = client.post("/v1/chat/completions", json=completion("noisy"))

    assert {"noisy", "documented"} <= names
    assert known.json()["active"]["model"] == str(base)
    assert known.json()["active"]["stack"] == [{"name": "documented", "weight": 1.0}]
    assert unknown.json()["error"]["message"] == (
        'The adapter "noisy" does not say which base it was trained on: name it as BASE+noisy.'
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"n": 2}, "n must be 1"),
        ({"presence_penalty": 1.0}, '"presence_penalty" is not supported'),
        ({"model": ""}, "model is missing"),
        ({"messages": "hi"}, "messages must be a list"),
        (asked([{"type": "image_url"}]), "Only text"),
        ({"temperature": 99}, "temperature is 99"),
        ({"model": "/no/such/model"}, "There is no model folder"),
    ],
)
def test_what_openai_clients_ask_and_we_cannot_is_said(place, values, sentence):
    home, base = place
    with raw(home) as client:
        answer = client.post("/v1/chat/completions", json=completion(base) | values)

    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]


def test_the_official_client_is_answered(place):
    openai = pytest.importorskip("openai")
    home, base = place
    endpoint = chat_client.find_host(home)
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.token) as client:
        options = {
            "model": f"{base}+noisy:0.5", "temperature": 0, "max_tokens": 8,
            "messages": [{"role": "user", "content": "Hello"}],
        }  # fmt: skip
        whole = client.chat.completions.create(**options).choices[0].message.content
        stream = client.chat.completions.create(**options, stream=True)
        joined = "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert joined == whole


def test_a_command_says_where_clients_find_the_lanes(place, capsys):
    from ui.cli.main import main

    home, _ = place
    with pytest.raises(SystemExit) as ended:
        main(["endpoint", "--home", str(home.path), "--json"])
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)

    reached = chat_client.find_host(home)
    assert (told["base_url"], told["api_key"]) == (f"{reached.url}/v1", reached.token)
    assert {"starter", "noisy"} <= set(told["models"])


# -- life and death; last, because they end the shared host ----------------------------------------


def test_a_host_that_is_killed_costs_one_sentence_and_starts_anew(place):
    home, base = place
    events = long_answer(home, base, "doomed")
    os.kill(chat_client.find_host(home).identity.pid, signal.SIGKILL)

    with pytest.raises(ChatError, match="ended in the middle of the answer"):
        list(events)

    assert ask(home, lane(base))[0]["end"]["type"] == "done"


def test_a_host_that_was_ending_when_it_was_asked_is_asked_anew(home, monkeypatch):
    asked = []

    def streamed(endpoint, request):
        asked.append(endpoint)
        if len(asked) == 1:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        yield b'{"type": "done"}\n'

    monkeypatch.setattr(chat_client, "find_host", lambda home: "dying")
    monkeypatch.setattr(chat_client, "ensure_host", lambda home: "new")
    monkeypatch.setattr(chat_client, "_streamed", streamed)

    assert list(chat_client.generate(home, {})) == [{"type": "done"}]
    assert asked == ["dying", "new"]


def test_a_host_has_a_session_of_its_own_and_leaves_when_told(place):
    home, base = place
    events = long_answer(home, base, "cut")
    old = chat_client.find_host(home)
    with old.client(read_seconds=20) as client:
        client.post("/quit")  # in the middle of an answer: another one follows
    assert ask(home, lane(base))[0]["end"]["type"] == "done"
    endpoint = chat_client.ensure_host(home)
    assert endpoint.identity != old.identity
    until(lambda: not old.identity.alive())
    events.close()
    assert os.getsid(endpoint.identity.pid) == endpoint.identity.pid

    assert chat_client.quit_host(home)

    assert not endpoint.identity.alive()
    assert chat_client.find_host(home) is None
    assert not state_path(home).exists()


def test_a_running_host_stays_as_long_as_is_asked_for(home):
    first = chat_client.ensure_host(home, idle_seconds=300)
    try:
        with first.client(read_seconds=20) as client:
            for asked_for, stays in ((600, 600), (60, 600)):
                assert chat_client.ensure_host(home, idle_seconds=asked_for) == first
                answer = client.post("/stay", json={"idle_seconds": 1})
                assert answer.json() == {"idle_seconds": stays}
    finally:
        chat_client.quit_host(home)


def test_a_host_that_nobody_asks_leaves(home):
    endpoint = chat_client.ensure_host(home, idle_seconds=2)

    until(lambda: not endpoint.identity.alive())

    assert chat_client.status(home) is None


def test_a_host_that_cannot_start_says_why(home, monkeypatch):
    monkeypatch.setattr(chat_client, "spawn", spawn)
    monkeypatch.setattr(sys, "executable", "/bin/false")

    with pytest.raises(ChatError, match="does not start"):
        chat_client.ensure_host(home)
