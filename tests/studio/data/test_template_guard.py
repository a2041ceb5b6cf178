"""Random conversations on every family's template: nothing is lost without a word.

The oracle is a search of its own, over the tokens that are trained and those that are not, and for
rows that are refused over what transformers renders. `STUDIO_LONG=1` tries a thousand conversations
on each template, else 25.
"""

import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from studio.data.conversation_records import Conversation, Problem
from studio.data.template.choose_template import choose
from tests.studio.data.families import FAMILIES, TOOLS
from tests.studio.data.test_template_families import THOUGHTS

WORDS = st.sampled_from(
    ["plum", "oak tree", "né 🙂", 'a "b"', "x\ny", "1 < 2", "</s>", "<|im_end|>", "{}",
     "back\\slash", "<think>", "a", "  padded  ", "42", "[INST]", "true", "Ω"]
)  # fmt: skip
USUAL = 1000 if os.environ.get("STUDIO_LONG") else 25
EXAMPLES = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", USUAL)),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
COMPLAINTS = ("refuses it", "cuts the", "writes nothing that ends")


@st.composite
def conversations(draw):
    """Draw a conversation whose texts are all different, with its tools."""
    count = 0

    def text():
        nonlocal count
        count += 1
        return f"{draw(WORDS)} n{count}n {draw(WORDS)}"

    messages = [{"role": "system", "content": text()}] if draw(st.booleans()) else []
    tools = None
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": text()})
        if draw(st.booleans()):
            tools = TOOLS
            values = st.sampled_from([text(), 7, 2.5, True, None, {"deep": [text()]}])
            calls = [
                {"type": "function", "id": f"weather{n:02}",
                 "function": {"name": "weather", "arguments": {"city": text(), "v": draw(values)}}}
                for n in range(draw(st.integers(1, 2)))
            ]  # fmt: skip
            said = text() if draw(st.integers(0, 3)) == 0 else ""
            messages.append({"role": "assistant", "content": said, "tool_calls": calls})
            for call in calls:
                result = {"role": "tool", "content": text(), "tool_call_id": call["id"]}
                messages.append(result)
        thought = {"reasoning_content": text()} if draw(st.booleans()) else {}
        messages.append({"role": "assistant", "content": text(), **thought})
    return Conversation(messages, tools, 1)


class Backends(dict):
    """Tokenizers by family; hypothesis prints its arguments, and these are long."""

    def __repr__(self):
        return "backends"


@pytest.fixture(scope="session")
def backends(byte_backend):
    """Make a tokenizer of each family."""
    return Backends((name, kind.backend(byte_backend)) for name, kind in FAMILIES.items())


def said(text):
    """Return a text without what quoting and trimming change."""
    for old, new in (("\\\\", "\\"), ("\\n", "\n"), ('\\"', '"'), ("\\\\", "\\")):
        text = text.replace(old, new)
    return "".join(text.split())


def trained_parts(message):
    """Yield the texts that an answer teaches."""
    yield message["content"]
    yield message.get("reasoning_content", "")
    for call in message.get("tool_calls", ()):
        arguments = call["function"]["arguments"]
        yield call["function"]["name"]
        yield arguments["city"]
        deep = arguments["v"]
        if isinstance(deep, dict):
            yield deep["deep"][0]
        else:
            yield deep if isinstance(deep, str) else json.dumps(deep)


def split(backend, row):
    """Return the trained text of a row, and the rest."""
    decode = backend.core.decode
    trained = decode(row.ids[row.trained].tolist(), skip_special_tokens=False)
    return said(trained), said(decode(row.ids[~row.trained].tolist(), skip_special_tokens=False))


@pytest.mark.parametrize("family", FAMILIES)
@EXAMPLES
@given(row=conversations())
def test_every_part_of_a_row_that_is_trained_is_trained(family, row, backends):
    backend = backends[family]
    batch = choose_once(backend).encode_batch([row])

    found = [batch.row(number) for number in range(len(batch.views))]
    if isinstance(found[0], Problem):
        assert any(complaint in found[0].text for complaint in COMPLAINTS)
        assert not is_whole_in_transformers(backend, family, row), found[0].text
        return
    texts = [split(backend, one) for one in found]
    trained = "".join(text for text, _ in texts)
    lost = {(part.message, part.kind) for view in batch.views for part in view.lost}
    for index, message in enumerate(row.messages):
        if message["role"] == "assistant":
            for part in trained_parts(message):
                assert said(part) in trained, (message, part)
        elif (index, message["role"]) not in lost:
            assert any(said(message["content"]) in rest for _, rest in texts), message
        assert message["role"] == "assistant" or said(message["content"]) not in trained
    if batch.views[0].num_parts == 1:
        assert bool(np.any(found[0].trained))


def is_whole_in_transformers(backend, family, row):
    """Return True if transformers renders every part of a conversation."""
    messages = [THOUGHTS.get(family, dict)(message) for message in row.messages]
    peer = _PEERS.setdefault(family, PreTrainedTokenizerFast(tokenizer_object=backend.core))
    names = {name: backend.special.get(name) for name in ("bos_token", "eos_token")}
    try:
        text = peer.apply_chat_template(
            messages, row.tools, chat_template=FAMILIES[family].source, tokenize=False,
            **{name: text for name, text in names.items() if text},
        )  # fmt: skip
    except (TemplateError, TypeError, ValueError):
        return False
    parts = [part for m in row.messages if m["role"] == "assistant" for part in trained_parts(m)]
    asked = [m["content"] for m in row.messages if m["role"] != "assistant"]
    return all(said(part) in said(text) for part in [*parts, *asked])


_PEERS = {}
_TEMPLATES = {}


def choose_once(backend):
    """Return a backend's template, probed once."""
    return _TEMPLATES.setdefault(id(backend), choose(backend, thoughts="turns"))


@pytest.mark.parametrize("family", FAMILIES)
@EXAMPLES
@given(row=conversations())
def test_no_plain_row_is_refused(family, row, backends):
    spoken = [m for m in row.messages if m["role"] != "tool" and "tool_calls" not in m]
    plain = [{"role": m["role"], "content": m["content"]} for m in spoken]

    batch = choose_once(backends[family]).encode_batch([Conversation(plain)])

    assert not batch.problems and not any(view.lost for view in batch.views)
