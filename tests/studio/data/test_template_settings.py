"""Settings of a chat template reach training, chat and the adapter that was trained with them."""

import pytest
from pydantic import ValidationError

from studio.chat.lanes import Sampling
from studio.data.template import read_settings, written_settings
from studio.data.template.choose_template import choose, choose_for
from studio.errors import DataError
from studio.spec import DataSource
from tests.studio.data.conftest import labelled

THINKING = """
{%- for m in messages -%}
<{{ m.role }}>{% if m.role == 'assistant' and enable_thinking is defined and not enable_thinking -%}
<none>{% endif %}{{ m.content }}<end>
{%- endfor -%}
{%- if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking
-%} <none>{% endif %}{% endif -%}
"""
SPECIALS = ["<user>", "<assistant>", "<system>", "<end>", "<none>"]
QUESTION = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(("given", "expected"), [
    ("enable_thinking=false,reasoning_effort=high", "enable_thinking=false, reasoning_effort=high"),
    ("  budget=3   enable_thinking=True ", "budget=3, enable_thinking=true"),
    ('{"enable_thinking": false, "t": 0.5}', "enable_thinking=false, t=0.5"),
    ({"reasoning_effort": "low"}, "reasoning_effort=low"),
    ("", ""),
])  # fmt: skip
def test_settings_have_one_written_form(given, expected):
    assert written_settings(given) == expected
    assert written_settings(read_settings(expected)) == expected
    assert DataSource(chat_template_kwargs=given).chat_template_kwargs == expected


@pytest.mark.parametrize("given", [
    "enable_thinking", "messages=1", "{broken", '{"a": [1]}', "a-b=1", 3, '{"a": "two words"}',
])  # fmt: skip
def test_other_forms_are_refused(given):
    with pytest.raises(ValidationError):
        Sampling(chat_template_kwargs=given)


def test_training_and_chat_render_with_the_setting(byte_backend):
    backend = byte_backend(SPECIALS, THINKING, eos="<end>")
    plain = choose(backend).encode_prompt(QUESTION)
    off = choose(backend, chat_template_kwargs="enable_thinking=false")
    asked = off.encode_prompt(QUESTION)
    assert (
        len(asked)
        > len(plain)
        == len(choose(backend, chat_template_kwargs="enable_thinking=true").encode_prompt(QUESTION))
    )
    trained = choose_for(backend, DataSource(chat_template_kwargs="enable_thinking=false"))
    ids, labels = labelled(trained, [*QUESTION, {"role": "assistant", "content": "ok"}])
    assert ids[: len(asked)] == asked  # an answer is trained behind what chat asks with
    assert labels[: len(asked)] == [-100] * len(asked)


def test_a_setting_that_the_template_does_not_read_is_refused(byte_backend):
    backend = byte_backend(SPECIALS, THINKING, eos="<end>")
    with pytest.raises(DataError, match='does not read "reasoning_effort"'):
        choose(backend, chat_template_kwargs="reasoning_effort=high")
    with pytest.raises(DataError, match='does not read "enable_thinking"'):
        choose(backend, "chatml", chat_template_kwargs="enable_thinking=false")
