"""Loss masks on templates of the shapes of Llama-3, Qwen, Gemma, Mistral, Phi and ChatML.

The templates are small equivalents written here; every expected mask was written by hand. Trained
parts stand in double square brackets.
"""

import json

import numpy as np
import pytest

from studio.data.conversation_records import Conversation
from studio.data.model_tokenizer import Backend
from studio.data.prepare_run_data import prepare
from studio.data.template.choose_template import choose
from studio.data.xray import xray
from studio.errors import DataError
from studio.spec import DataSource
from tests.studio.data.conftest import Make, assert_same, labelled, write_rows

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
LLAMA3_SPECIALS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Thinking is cut out of every answer but the last, as Qwen 3 does.
QWEN = (
    "{% for m in messages %}{% set content = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in content and not loop.last %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ content }}\n</tool_response>"
    "<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ content }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}{% endif %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)

PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
)

SMOL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

IM = ["<|im_start|>", "<|im_end|>"]
SHAPES = {
    "llama3": (LLAMA3, LLAMA3_SPECIALS, "<|eot_id|>", "<|begin_of_text|>"),
    "chatml": (CHATML, IM, "<|im_end|>", ""),
    "qwen": (QWEN, [*IM, "<|endoftext|>"], "<|im_end|>", ""),
    "gemma": (GEMMA, ["<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"], "<eos>", "<bos>"),
    "mistral": (MISTRAL, ["<s>", "</s>"], "</s>", "<s>"),
    "phi": (PHI, ["<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"], "<|endoftext|>", ""),
    "generation": (SMOL, IM, "<|im_end|>", ""),
}


def shaped(make: Make, shape: str) -> Backend:
    """Make the byte tokenizer with the template and the special tokens of a shape."""
    source, specials, eos, bos = SHAPES[shape]
    return make(specials, source, eos=eos, bos=bos)


TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]
MULTI_TURN = {
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[Hello!<|eot_id|>]]"
        "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[4<|eot_id|>]]"
    ),
    "chatml": (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[Hello!<|im_end|>]]\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n[[4<|im_end|>]]\n"
    ),
    "gemma": (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n[[Hello!<end_of_turn>]]\n"
        "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n[[4<end_of_turn>]]\n"
    ),
    "mistral": "<s>[INST] Hi [/INST][[ Hello!</s>]][INST] 2+2? [/INST][[ 4</s>]]",
    "phi": (
        "<|user|>\nHi<|end|>\n<|assistant|>\n[[Hello!<|end|>]]\n"
        "<|user|>\n2+2?<|end|>\n<|assistant|>\n[[4<|end|>]]\n<|endoftext|>"
    ),
}
MULTI_TURN["qwen"] = MULTI_TURN["generation"] = MULTI_TURN["chatml"]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_answer_the_last_or_everything_is_trained_as_asked(shape, byte_backend, bracketed):
    backend = shaped(byte_backend, shape)
    template, every = choose(backend), MULTI_TURN[shape]
    first, _, rest = every.partition("[[")
    last = first + rest.replace("]]", "", 1)

    for train_on, expected in (("assistant", every), ("last", last)):
        assert bracketed(backend, *labelled(template, TURNS, train_on)) == expected
    ids, labels = labelled(template, TURNS, "all")
    assert ids == labels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("train_on", ["assistant", "last"])
def test_an_answer_without_weight_is_read_and_not_trained(shape, train_on, byte_backend, bracketed):
    backend = shaped(byte_backend, shape)

    row = Conversation(TURNS, muted=(0,) if train_on == "assistant" else (1,))
    batch = choose(backend).encode_batch([row, Conversation(TURNS)], train_on)
    ids, trained, _ = batch.row(0)

    expected = MULTI_TURN[shape].replace("[[", "", 1).replace("]]", "", 1)
    expected = expected if train_on == "assistant" else expected.replace("[[", "").replace("]]", "")
    assert bracketed(backend, ids.tolist(), np.where(trained, ids, -100).tolist()) == expected
    assert batch.teaches == [train_on == "assistant", True]


# A question of many q, answered "yes", in 20 tokens (a byte is a token, so is a special one): the
# answer stays whole with its end, and what the template puts in front stays.
CUT_START = {
    "llama3": "<|begin_of_text|>q<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "[[yes<|eot_id|>]]",
    "chatml": "qqq<|im_end|>\n<|im_start|>assistant\n[[yes<|im_end|>]]",
    "gemma": "<bos>qqqqqq<end_of_turn>\n<start_of_turn>model\n[[yes<end_of_turn>]]",
    "mistral": "<s>qqqqqq [/INST][[ yes</s>]]",
    "phi": "qqqqqqqqqqqq<|end|>\n<|assistant|>\n[[yes<|end|>]]",
}
# A short question and an answer of many a, in 60 tokens: the answer loses its end.
CUT_END = {
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
    f"<|start_header_id|>assistant<|end_header_id|>\n\n[[{'a' * 36}]]",
    "chatml": f"<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[[{'a' * 40}]]",
    "gemma": f"<bos><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n[[{'a' * 43}]]",
    "mistral": f"<s>[INST] q [/INST][[ {'a' * 42}]]",
    "phi": f"<|user|>\nq<|end|>\n<|assistant|>\n[[{'a' * 53}]]",
}
for expected in (CUT_START, CUT_END):
    expected["qwen"] = expected["generation"] = expected["chatml"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("question", "answer", "limit", "expected"),
    [("q" * 90, "yes", 20, CUT_START), ("q", "a" * 100, 60, CUT_END)],
    ids=["start", "end"],
)
def test_a_row_that_is_too_long_keeps_its_mask(
    shape, question, answer, limit, expected, byte_backend, bracketed, tmp_path
):
    backend = shaped(byte_backend, shape)
    path = write_rows(tmp_path / "a.jsonl", [{"question": question, "answer": answer}])
    data = DataSource(path=path, max_length=limit, validation_fraction=0)

    (row,) = prepare(data, backend, context_length=1000, seed=0).train

    assert bracketed(backend, row.input_ids.tolist(), row.labels.tolist()) == expected[shape]
    assert_same(xray(data, backend, context_length=1000, count=1), [row])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_prompt_is_exactly_what_stands_before_the_answer(shape, byte_backend):
    template = choose(shaped(byte_backend, shape))

    ids, labels = labelled(template, TURNS, "last")
    prompt = template.encode_prompt(TURNS[:3])

    assert ids[: len(prompt)] == prompt
    assert labels[: len(prompt)] == [-100] * len(prompt)
    assert labels[len(prompt)] == ids[len(prompt)]


SYSTEM = [{"role": "system", "content": "Be brief."}, *TURNS[:2]]
WITH_SYSTEM = {
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[Hello!<|eot_id|>]]"
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n[[Hello!<|im_end|>]]\n"
    ),
    "gemma": (
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n"
        "<start_of_turn>model\n[[Hello!<end_of_turn>]]\n"
    ),
    "mistral": "<s>[INST] Be brief.\n\nHi [/INST][[ Hello!</s>]]",
    "phi": (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n"
        "<|assistant|>\n[[Hello!<|end|>]]\n<|endoftext|>"
    ),
}
WITH_SYSTEM["qwen"] = WITH_SYSTEM["generation"] = WITH_SYSTEM["chatml"]


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
CALLING = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "It is 4."},
]
WITH_CALL = {
    "qwen": (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
        '[[<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>]]\n'
        "<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n[[It is 4.<|im_end|>]]\n"
    ),
    # These know no tools: the call is written out as JSON, the result comes from the user.
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '[[{"name": "add", "arguments": {"a": 2}}<|eot_id|>]]'
        "<|start_header_id|>user<|end_header_id|>\n\n4<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[It is 4.<|eot_id|>]]"
    ),
    "chatml": (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
        '[[{"name": "add", "arguments": {"a": 2}}<|im_end|>]]\n'
        "<|im_start|>user\n4<|im_end|>\n<|im_start|>assistant\n[[It is 4.<|im_end|>]]\n"
    ),
    "gemma": (
        "<bos><start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n"
        '[[{"name": "add", "arguments": {"a": 2}}<end_of_turn>]]\n'
        "<start_of_turn>user\n4<end_of_turn>\n<start_of_turn>model\n[[It is 4.<end_of_turn>]]\n"
    ),
    "mistral": (
        '<s>[INST] 2+2? [/INST][[ {"name": "add", "arguments": {"a": 2}}</s>]]'
        "[INST] 4 [/INST][[ It is 4.</s>]]"
    ),
    "phi": (
        '<|user|>\n2+2?<|end|>\n<|assistant|>\n[[{"name": "add", "arguments": {"a": 2}}<|end|>]]\n'
        "<|user|>\n4<|end|>\n<|assistant|>\n[[It is 4.<|end|>]]\n<|endoftext|>"
    ),
}
WITH_CALL["generation"] = WITH_CALL["chatml"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("messages", "expected"), [(SYSTEM, WITH_SYSTEM), (CALLING, WITH_CALL)], ids=["system", "call"]
)
def test_system_prompts_and_results_are_masked_and_calls_are_trained(
    shape, messages, expected, byte_backend, bracketed
):
    backend = shaped(byte_backend, shape)

    assert bracketed(backend, *labelled(choose(backend), messages)) == expected[shape]


@pytest.mark.parametrize("shape", SHAPES)
def test_special_tokens_typed_inside_data_are_text(shape, byte_backend):
    backend, specials = shaped(byte_backend, shape), SHAPES[shape][1]
    clean = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    typed = "".join(specials)
    dirty = [{"role": "user", "content": typed}, {"role": "assistant", "content": f"y{typed}"}]

    ids, labels = labelled(choose(backend), dirty)
    plain, _ = labelled(choose(backend), clean)

    lowest = min(backend.token_id(s) for s in specials)
    assert [i for i in ids if i >= lowest] == [i for i in plain if i >= lowest]
    text = backend.core.decode(ids, skip_special_tokens=False)
    assert text.count(typed) == 2
    answer = backend.core.decode([t for t in labels if t >= 0], skip_special_tokens=False)
    assert answer.lstrip().startswith(f"y{typed}") and "\ufdd4" not in text


def test_an_earlier_thought_is_cut_by_the_template_and_the_last_one_is_trained(
    byte_backend, bracketed
):
    backend = byte_backend([*IM, "<|endoftext|>"], QWEN, eos="<|im_end|>")
    turns = [
        TURNS[0],
        {"role": "assistant", "content": "<think>\nwave\n</think>\n\nHello!"},
        TURNS[2],
        {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4"},
    ]

    ids, labels = labelled(choose(backend), turns)

    assert bracketed(backend, ids, labels) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[Hello!<|im_end|>]]\n"
        "<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n[[<think>\nadd\n</think>\n\n4<|im_end|>]]\n"
    )


def test_white_space_that_the_template_trims_does_not_move_the_mask(byte_backend, bracketed):
    backend = byte_backend(LLAMA3_SPECIALS, LLAMA3, eos="<|eot_id|>", bos="<|begin_of_text|>")

    ids, labels = labelled(
        choose(backend),
        [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "\n  a b\n"}],
    )

    assert bracketed(backend, ids, labels).endswith("<|end_header_id|>\n\n[[a b<|eot_id|>]]")


def test_white_space_that_the_template_keeps_is_trained(byte_backend, bracketed):
    backend = byte_backend(IM, CHATML, eos="<|im_end|>")

    ids, labels = labelled(
        choose(backend),
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  é🙂\n"}],
    )

    assert bracketed(backend, ids, labels).endswith("assistant\n[[  é🙂\n<|im_end|>]]\n")


def test_answers_equal_to_the_markers_of_the_template_do_not_confuse_the_mask(
    byte_backend, bracketed
):
    backend = byte_backend(
        ["<e>"], "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}", eos="<e>",
    )  # fmt: skip
    turns = [
        {"role": "user", "content": "assistant: no\nassistant: "},
        {"role": "assistant", "content": "user: assistant: yes"},
    ]

    ids, labels = labelled(choose(backend), turns)

    assert bracketed(backend, ids, labels) == (
        "user: assistant: no\nassistant: \nassistant: [[user: assistant: yes<e>]]"
    )


def test_a_template_that_refuses_roles_drops_the_row_with_its_own_words(byte_backend):
    backend = byte_backend(["<bos>", "<end_of_turn>"], GEMMA, bos="<bos>", eos="<end_of_turn>")

    with pytest.raises(DataError, match="must alternate"):
        labelled(choose(backend), [TURNS[0], TURNS[0], TURNS[1]])


def test_a_template_cannot_reach_python(byte_backend):
    backend = byte_backend(IM, "{{ ''.__class__.__mro__[1].__subclasses__() }}", eos="<|im_end|>")

    with pytest.raises(Exception, match="unsafe|cannot be used"):
        labelled(choose(backend), TURNS)


def test_the_real_chatml_template_masks_tool_conversations(real, bracketed):
    from studio.data.model_tokenizer import backend_from_folder

    backend = backend_from_folder(real / "tokenizers" / "minimind")

    ids, labels = labelled(choose(backend), CALLING, tools=[{"name": "add"}])

    written = bracketed(backend, ids, labels)
    assert written.startswith("<|im_start|>system\n# Tools\n")
    assert json.dumps({"name": "add"}) in written
    assert written.endswith(
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        '[[<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>]]\n'
        "<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n[[It is 4.<|im_end|>]]\n"
    )


def test_ids_equal_those_of_transformers_own_rendering(real):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real / "tokenizers" / "minimind")

    for messages in (TURNS, SYSTEM, CALLING):
        ids, _ = labelled(choose(tokenizer), messages)
        assert ids == tokenizer.apply_chat_template(messages, return_dict=False)
        prompt = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, return_dict=False
        )
        assert choose(tokenizer).encode_prompt(messages[:-1]) == prompt
