"""Modelfiles: templates translated from the model's own, and every end of an answer."""

import re

import pytest

from studio.adapters.card_and_modelfile import CONVERSATIONS, PLAIN_NOTE, frame_of, modelfile
from tests.families import byte_tokenizer, write_family

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULTED = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% set s = '' %}{% if messages[0].role == 'system' %}{% set s = "
    "messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ s if loop.first else '' }}{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}{% if m.role == 'user' %}[INST] {{ m.content }} "
    "[/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML, "chatml-default": DEFAULTED, "llama3": LLAMA3, "gemma": GEMMA,
    "mistral": NO_SYSTEM,
}  # fmt: skip


def tokenizer_with(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def played(go, messages):
    """Run the few words of Go's template language that a Modelfile has here."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    go = re.sub(
        r"\{\{ if not \.System \}\}(.*?)\{\{ end \}\}", "" if system else r"\1", go, flags=re.S
    )
    head, _, rest = go.partition("{{ range $i, $_ := .Messages }}")
    body, _, tail = rest.rpartition("{{ end }}")
    parts = []
    for i, message in enumerate(messages):
        text = re.sub(
            r"\{\{ if and \$\.System \(le \$i 1\) \}\}\{\{ \$\.System \}\}(.*?)\{\{ end \}\}",
            (lambda m: system + m[1]) if system and i <= 1 else "", body, flags=re.S,
        )  # fmt: skip
        cases = re.findall(r'\{\{ if eq \.Role "(\w+)" \}\}(.*?)\{\{ end \}\}', text, flags=re.S)
        parts.append(
            dict(cases).get(message["role"], "").replace("{{ .Content }}", message["content"])
        )
    return head + "".join(parts) + tail


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_translated_template_renders_as_the_models_own(name):
    tokenizer = tokenizer_with(TEMPLATES[name])
    frame = frame_of(tokenizer)
    for messages in CONVERSATIONS:
        if name == "mistral" and messages[0]["role"] == "system":
            continue
        wanted = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        assert played(frame.go(), messages) == wanted


@pytest.mark.parametrize(
    ("name", "stop"),
    [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("gemma", "<end_of_turn>")],
)
def test_every_end_of_a_turn_is_a_stop(tmp_path, name, stop):
    folder = write_family("llama", tmp_path / "m")
    tokenizer_with(TEMPLATES[name]).save_pretrained(folder)

    text, notes = modelfile(folder, "./x.gguf")

    assert notes == []
    assert f'PARAMETER stop "{stop}"' in text and 'PARAMETER stop "</s>"' in text
    assert text.startswith("FROM ./x.gguf\nTEMPLATE ") and "Jinja" not in text


def test_a_template_that_cannot_be_translated_is_plain_with_a_warning(tmp_path):
    folder = write_family("llama", tmp_path / "m")
    numbered = "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}"
    tokenizer_with(numbered).save_pretrained(folder)

    text, notes = modelfile(folder, "BASE.gguf", adapter="adapter.gguf")

    assert notes == [PLAIN_NOTE]
    assert "ADAPTER ./adapter.gguf" in text and 'PARAMETER stop "User:"' in text
