"""Parts of a row that a template moves, cuts or reads under another name.

The cases are those of public reports; templates and rows are written here.
"""

from dataclasses import replace

import numpy as np
import pytest

from studio.data.column_mapping import Mapping
from studio.data.conversation_records import Conversation, Problem, Row
from studio.data.model_tokenizer import model_name
from studio.data.prepare_run_data import prepare
from studio.data.row_converters import converter
from studio.data.template.choose_template import choose
from studio.data.template.lost_parts import find_text
from studio.data.xray import xray
from studio.spec import DataSource
from tests.studio.data.conftest import assert_same, labelled, write_rows
from tests.studio.data.families import (
    FAMILIES,
    IM,
    SYSTEM,
    TOOLS,
    answer,
    calls,
    result,
    user,
)  # fmt: skip


@pytest.fixture
def shown(byte_backend, bracketed):
    """Encode a conversation with a family's template; return its views with brackets."""

    def show(family, messages, tools=None, *, train_on="assistant", muted=(), **how):
        backend = FAMILIES[family].backend(byte_backend)
        batch = choose(backend, **how).encode_batch(
            [Conversation(messages, tools, muted=muted)], train_on
        )
        views = [batch.row(i) for i in range(len(batch.views))]
        return [
            view.text
            if isinstance(view, Problem)
            else bracketed(
                backend, view.ids.tolist(), np.where(view.trained, view.ids, -100).tolist()
            )
            for view in views
        ]

    return show


def converted(turns, **row):
    mapping = Mapping(format="messages", columns={"messages": "messages"} | {k: k for k in row})
    if "functions" in row:
        mapping = Mapping(format="messages", columns={"messages": "messages", "tools": "functions"})
    made = converter(mapping)(Row(1, {"messages": turns, **row}))
    assert isinstance(made, Conversation), made
    return made


def test_a_system_prompt_that_waits_for_the_last_question_stands_before_the_first(shown):
    turns = [SYSTEM, user("Map?"), answer("Chest."), user("Key?"), answer("Neck.")]

    assert shown("Mistral v0.2", turns) == [
        "<s>[INST] Speak plainly.\n\nMap?[/INST][[ Chest.</s>]][INST] Key?[/INST][[ Neck.</s>]]"
    ]


@pytest.mark.parametrize("family", ["Mistral v0.2", "Mistral v0.3", "Phi-3 (first)", "Gemma 2"])
def test_the_prompt_of_a_folded_system_prompt_is_the_beginning_of_the_trained_text(
    family, byte_backend
):
    template = choose(FAMILIES[family].backend(byte_backend))
    turns = [SYSTEM, user("Map?"), answer("Chest."), user("Key?"), answer("Neck.")]

    ids, _ = labelled(template, turns)
    prompt = template.encode_prompt(turns[:-1])

    assert ids[: len(prompt)] == prompt


@pytest.mark.parametrize("arguments", ['{"city": "Oslo"}', {"city": "Oslo"}])
@pytest.mark.parametrize("content", [None, ""])
def test_a_call_is_trained_where_the_template_wants_null_content_and_arguments_as_text(
    arguments, content, shown
):
    call = {"id": "c0", "type": "function",
            "function": {"name": "weather", "arguments": arguments}}  # fmt: skip
    made = converted([
        user("Oslo?"), {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": "snow", "tool_call_id": "c0"}, answer("It snows."),
    ])  # fmt: skip

    assert shown("DeepSeek V3/R1", made.messages) == [
        "<｜begin▁of▁sentence｜><｜User｜>Oslo?<｜Assistant｜>[[<｜tool▁calls▁begin｜>"
        '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Oslo"}\n```'
        "<｜tool▁call▁end｜><｜tool▁outputs▁begin｜>]]<｜tool▁output▁begin｜>snow"
        "<｜tool▁output▁end｜><｜tool▁outputs▁end｜>[[It snows.<｜end▁of▁sentence｜>]]"
    ]


def test_a_call_beside_a_text_is_refused_where_the_template_writes_one_of_them(shown):
    turns = [user("Oslo?"), calls("Oslo") | {"content": "Let me look."}]

    (left,) = shown("DeepSeek V3/R1", turns, accept_lost=True)

    assert left.endswith("[[Let me look.<｜end▁of▁sentence｜>]]")


@pytest.mark.parametrize(
    ("family", "message", "sentence"),
    [
        (
            "DeepSeek V3/R1",
            calls("Oslo") | {"content": "Let me look."},
            "cuts the tool call of message 2. Choose another data.chat_template, or change the "
            "row; data.accept_lost trains what is left of it.",
        ),
        (
            "gpt-oss",
            calls("Oslo", "Rome"),
            "cuts the tool call of message 2. Choose another data.chat_template, or give each tool "
            "call a message of its own; data.accept_lost trains what is left of it.",
        ),
        (
            "Llama 3.x",
            calls("Oslo", "Rome"),
            "refuses it: This model only supports single tool-calls at once. Choose another "
            "data.chat_template, or give each tool call a message of its own.",
        ),
    ],
)
def test_a_refusal_names_model_part_row_and_ways_out(family, message, sentence, byte_backend):
    backend = FAMILIES[family].backend(byte_backend)
    row = Conversation([user("Oslo?"), message, result("snow"), answer("It snows.")], TOOLS, 7)

    refused = choose(replace(backend, name="acme/small")).encode_batch([row]).row(0)

    assert refused[::2] == (7, f"The chat template of acme/small {sentence}")
    alone = [calls("Oslo"), result("snow"), calls("Rome"), result("sun"), answer("It snows.")]
    batch = choose(backend).encode_batch([Conversation([user("Oslo, Rome?"), *alone], TOOLS)])
    assert not batch.problems and not batch.views[0].lost


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/small", "small"),
        ("/cache/hub/models--acme--small/snapshots/0af1/", "acme/small"),
        ("", ""),
    ],
)
def test_a_model_is_named_after_its_folder(path, name):
    assert model_name(path) == name


def test_calls_are_trained_with_the_role_marker_that_ends_them(shown):
    turns = [
        user("Oslo?"), calls("Oslo"), result("snow"), answer("It snows."),
        user("Rome?"), calls("Rome") | {"content": "Let me look."},
    ]  # fmt: skip

    (text,) = shown("GLM-4.5", turns)

    call = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>{}</arg_value>\n"
    call += "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
    assert text == (
        f"[gMASK]<sop><|user|>\nOslo?<|assistant|>[[\n<think></think>\n{call.format('Oslo')}"
        "<|observation|>]]\n<tool_response>\nsnow\n</tool_response>"
        "<|assistant|>[[\n<think></think>\nIt snows.<|user|>]]\nRome?"
        f"<|assistant|>[[\n<think></think>\nLet me look.\n{call.format('Rome')}<|observation|>]]"
    )


def test_generation_stops_where_training_taught_it_to(byte_backend):
    def stops(family):
        backend = FAMILIES[family].backend(byte_backend)
        return {backend.core.id_to_token(token) for token in choose(backend).stop_ids}

    assert stops("GLM-4.5") == {"<|user|>", "<|observation|>", "<|endoftext|>"}
    assert stops("gpt-oss") == {"<|return|>", "<|call|>"}
    assert stops("Qwen 3") == {"<|im_end|>"}


def test_a_function_call_and_functions_are_a_tool_call_and_tools(shown):
    function = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    call = {"name": "weather", "arguments": '{"city": "Rome"}'}

    made = converted(
        [
            user("Rome?"), {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "weather", "content": "sun"}, answer("Sunny."),
        ],
        functions=[function],
    )  # fmt: skip

    assert made.tools == [{"type": "function", "function": function}]
    (text,) = shown("Qwen 3", made.messages, made.tools)
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    assert f"assistant\n[[{call}<|im_end|>]]" in text
    assert "\n<tool_response>\nsun\n</tool_response>" in text


@pytest.mark.parametrize("given", ["abcDEF123", "call_1", None])
def test_ids_of_calls_have_the_nine_letters_that_the_template_demands(given, shown):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    call |= {"id": given} if given else {}
    turns = [
        user("Oslo?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "snow"} | ({"tool_call_id": given} if given else {}),
        answer("It snows."),
    ]  # fmt: skip

    (text,) = shown("Mistral v0.3", turns)

    identity = text.partition('"id": "')[2].partition('"')[0]
    assert len(identity) == 9 and identity.isalnum()
    assert f'"call_id": "{identity}"}}[/TOOL_RESULTS][[ It snows.</s>]]' in text
    assert given != "abcDEF123" or identity == given


THOUGHT = "Seventeen and twenty-five."
THINKING = {
    "reasoning_content": answer("42.", reasoning_content=THOUGHT),
    "reasoning": answer("42.", reasoning=THOUGHT),
    "thinking": answer("42.", thinking=THOUGHT),
    "tags": answer(f"<think>\n{THOUGHT}\n</think>\n\n42."),
    "brackets": answer(f"[THINK]{THOUGHT}[/THINK]42."),
    "parts": {"role": "assistant", "content": [
        {"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": "42."}]},
    "value parts": {"role": "assistant", "content": [
        {"type": "reasoning", "value": THOUGHT}, {"type": "text", "value": "42."}]},
}  # fmt: skip


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize(
    ("family", "written"),
    [
        ("Qwen 3", "assistant\n[[<think>\n{}\n</think>\n\n42.<|im_end|>]]\n"),
        ("Qwen 3.5", "assistant\n<think>\n[[{}\n</think>\n\n42.<|im_end|>]]\n"),
        ("Magistral", "[/INST][[[THINK]{}[/THINK]42.</s>]]"),
        ("gpt-oss", "assistant[[<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
         "<|channel|>final<|message|>42.<|return|>]]"),
        ("DeepSeek V3/R1", "<｜Assistant｜><think>\n[[{}\n</think>\n\n42.<｜end▁of▁sentence｜>]]"),
    ],
)  # fmt: skip
def test_a_thought_reaches_the_template_under_the_name_it_reads(name, family, written, shown):
    made = converted([user("17 + 25?"), THINKING[name]])

    (text,) = shown(family, made.messages, thoughts="turns")

    if (name, family) == ("brackets", "DeepSeek V3/R1"):  # it cuts these tags from no answer
        written = "<｜Assistant｜>[[[THINK]{}[/THINK]42.<｜end▁of▁sentence｜>]]"
    assert text.endswith(written.format(THOUGHT))


TWO_THOUGHTS = [
    user("Hi"), answer("Hello!", reasoning_content="They greet."),
    user("2+2?"), answer("Four.", reasoning_content="Simple sum."),
]  # fmt: skip


def test_cut_thoughts_are_trained_turn_by_turn_as_the_template_leaves_them_or_all(shown):
    first = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    asked = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    greet = "<think>\nThey greet.\n</think>\n\nHello!<|im_end|>"
    add = "<think>\nSimple sum.\n</think>\n\nFour.<|im_end|>"

    assert shown("Qwen 3", TWO_THOUGHTS, thoughts="turns") == [
        f"{first}[[{greet}]]\n",
        f"{first}Hello!<|im_end|>\n{asked}[[{add}]]\n",
    ]
    assert shown("Qwen 3", TWO_THOUGHTS) == [f"{first}[[Hello!<|im_end|>]]\n{asked}[[{add}]]\n"]
    assert shown("Qwen 3", TWO_THOUGHTS, thoughts="keep") == [
        f"{first}[[{greet}]]\n{asked}[[{add}]]\n"
    ]


def test_only_the_turns_that_carry_loss_become_rows(shown):
    assert len(shown("Qwen 3", TWO_THOUGHTS, thoughts="turns", train_on="last")) == 1
    assert len(shown("Qwen 3", TWO_THOUGHTS, thoughts="turns", muted=(0,))) == 1
    assert len(shown("Qwen 3", TWO_THOUGHTS, thoughts="turns", muted=(1,))) == 1


def test_all_thoughts_are_kept_in_channels_too(shown):
    (text,) = shown("gpt-oss", TWO_THOUGHTS, thoughts="keep")

    assert text.count("<|channel|>analysis<|message|>") == 2
    assert (
        "assistant[[<|channel|>analysis<|message|>They greet.<|end|><|start|>assistant"
        "<|channel|>final<|message|>Hello!<|end|>]]<|start|>user" in text
    )


def test_rows_with_tools_use_the_template_named_tool_use(byte_backend):
    plain = "{% for m in messages %}{{ '<|im_start|>' ~ m.content ~ '<|im_end|>' }}{% endfor %}"
    named = {"default": plain, "tool_use": FAMILIES["Qwen 3"].source, "rag": "no"}
    template = choose(byte_backend([*IM], named, eos="<|im_end|>"))
    turns = [user("Oslo?"), answer("Cold.")]

    without, _ = labelled(template, turns)
    using, _ = labelled(template, turns, tools=TOOLS)

    decode = template.backend.core.decode
    assert decode(without, skip_special_tokens=False) == (
        "<|im_start|>Oslo?<|im_end|><|im_start|>Cold.<|im_end|>"
    )
    assert "# Tools" in decode(using, skip_special_tokens=False)


CUTS_USER = (
    "{% for m in messages %}{% if m.role != 'tool' %}{{ '<|im_start|>' ~ m.role ~ '\n' }}"
    "{{ m.content[:40] ~ '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
LONG = "word " * 20


def test_what_a_template_cuts_is_counted_named_and_shown(byte_backend, tmp_path):
    backend = byte_backend([*IM], CUTS_USER, eos="<|im_end|>")
    turns = [(LONG, "Short."), ("Hi", LONG), ("Hi", "Hello!")]
    rows = [{"messages": [user(question), answer(text)]} for question, text in turns]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    data = DataSource(path=path, validation_fraction=0)

    report = prepare(data, backend, context_length=500, seed=0).report
    rows = xray(data, backend, context_length=500, count=3)
    accepted = prepare(
        data.model_copy(update={"accept_lost": True}), backend, context_length=500, seed=0
    ).report

    assert (report.rows.kept, report.problem_counts) == (2, {"lost": 1})
    assert "The chat template leaves out 1 question." in report.warnings
    assert report.lost_parts == {"user": 1}
    assert "cuts the text of message 2" in report.problems[0].text
    assert [[(p.kind, p.message, p.text) for p in row.lost] for row in rows] == [
        [("user", 1, LONG.strip())], [("answer", 2, LONG.strip())], [],
    ]  # fmt: skip
    assert rows[0].lost[0].before == 0 and not rows[0].problem and rows[1].problem
    assert accepted.rows.kept == 3
    assert "The chat template cuts the text of 1 answer." in accepted.warnings


def test_keys_and_columns_that_are_not_read_are_counted_and_named_once(byte_backend, tmp_path):
    turns = [user("Hi") | {"mood": "calm", "note": None}, answer("Hello!") | {"mood": "glad"}]
    rows = [{"messages": turns, "id": n, "empty": None} for n in range(3)]
    path = write_rows(tmp_path / "rows.jsonl", rows)

    report = prepare(
        DataSource(path=path, validation_fraction=0),
        byte_backend([*IM], eos="<|im_end|>"), context_length=500, seed=0,
    ).report  # fmt: skip

    assert 'Not read: the column "id" of 3 rows.' in report.warnings
    assert 'Not read: the key "mood" of 6 messages.' in report.warnings
    assert not any("empty" in text or "note" in text for text in report.warnings)


def test_the_xray_shows_every_turn_that_is_trained(byte_backend, tmp_path):
    backend = FAMILIES["Qwen 3"].backend(byte_backend)
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": TWO_THOUGHTS}])
    data = DataSource(path=path, validation_fraction=0, thoughts="turns")

    made = prepare(data, backend, context_length=500, seed=0)
    rows = xray(data, backend, context_length=500, rows=[1])

    assert [(row.part, row.num_parts) for row in rows] == [(1, 2), (2, 2)]
    assert_same(rows, made.train)
    assert any("1 row is trained turn by turn" in text for text in made.report.warnings)
    assert (made.report.rows.kept, made.report.examples) == (1, 2)


@pytest.mark.parametrize(
    "written",
    [
        "a \"b\" 'c' \\ d\né",
        r"""a \"b\" 'c' \\ d\né""",
        r"""a \"b\" 'c' \\ d\n\u00e9""",
        r"""a \\\"b\\\" 'c' \\\\ d\\né""",
        r"""a "b" \'c\' \\ d\né""",
    ],
)
def test_a_text_is_found_in_every_quoting_of_templates(written):
    text = f"x{written}y"

    assert find_text("a \"b\" 'c' \\ d\né", text, 0, len(text), str) == (1, 1 + len(written))


def test_where_a_text_before_a_call_is_cut_later_the_answers_behind_it_are_found(byte_backend):
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if not m.tool_calls or loop.last %}{{ m.content }}{% endif %}"
        "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    backend = byte_backend([*IM], source, eos="<|im_end|>")
    row = Conversation(
        [user("Oslo?"), calls("Oslo") | {"content": "I look."}, result("snow"), answer("Snow.")]
    )

    (refused,) = choose(backend).encode_batch([row]).problems.values()
    batch = choose(backend, thoughts="turns").encode_batch([row])

    assert "cuts the text of message 2" in refused.text
    said = [backend.core.decode(r.ids[r.trained].tolist(), skip_special_tokens=False)
            for r in map(batch.row, range(2))]  # fmt: skip
    assert said == [
        'I look.{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}<|im_end|>',
        "Snow.<|im_end|>",
    ]
