"""Contents given as parts, preference pairs, judged answers, images: nothing is lost unsaid."""

import json
from collections import Counter

import pytest

from studio.data.conversation_records import Conversation, Dropped, Problem, Row, content_hash
from studio.data.dataset_files import from_files
from studio.data.import_dataset import check_file
from studio.data.messages import Parts, read_content
from studio.data.prepare_run_data import prepare
from studio.data.recognise_format import guess_origin, recognise
from studio.data.row_converters import converter
from studio.errors import DataError
from studio.spec import DataSource

USER, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in (("user", "q"), ("assistant", "good"), ("assistant", "bad"))
)
HUMAN = {"from": "human", "value": "q"}


def converted(row):
    guess = recognise([Row(1, row)])
    return guess.mapping.format, converter(guess.mapping)(Row(1, row))


def texts(row):
    return [(m["role"], m["content"]) for m in row.messages]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], Parts("ab")),
        ([{"type": "text", "value": "a"}], Parts("a")),
        ([{"type": "text", "content": "a"}], Parts("a")),
        ([{"text": "a"}], Parts("a")),
        (["a", "b"], Parts("ab")),
        ({"type": "text", "text": "a"}, Parts("a")),
        ({"city": "Oslo"}, Parts('{"city": "Oslo"}')),
        (None, Parts("")),
        ([{"type": "reasoning", "value": "t"}, {"type": "text", "value": "a"}], Parts("a", "t")),
        ([{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}], Parts("a", "t")),
        ([{"thinking": "t"}, {"text": "a"}], Parts("a", "t")),
        ([{"type": "text", "text": "a", "image_url": None, "thinking": None}], Parts("a")),
        ([{"type": "text", "text": None}, {"type": "text", "text": "a"}], Parts("a")),
        ({"content_type": "text", "parts": ["a", "b"]}, Parts("ab")),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "t"}]}], Parts("", "t")),
        ([{"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'}],
         Parts("", "", ({"name": "f", "arguments": {"x": 1}},))),
        ([{"type": "tool_call", "tool_call": {"name": "f", "arguments": {}}}],
         Parts("", "", ({"name": "f", "arguments": {}},))),
        ([{"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}],
         Parts("", "", ({"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}},))),
    ],
)  # fmt: skip
def test_parts_are_read_under_every_name_in_use(content, parts):
    assert read_content(content, 0) == parts


@pytest.mark.parametrize("more", [
    {"tools": [{"name": "half \ud83d"}]},
    {"system": {"parts": {"a": "\ud83d"}}},
    {"messages": [USER, GOOD | {"tool_calls": [{"name": "f", "arguments": {"x": ["\ud83d"]}}]}]},
    {"messages": [USER, {"role": "tool", "content": "a", "name": "\ud83d"}, GOOD]},
])  # fmt: skip
def test_half_a_character_in_tools_and_calls_is_dropped_too(more):
    assert converted({"messages": [USER, GOOD]} | more)[1].kind == "encoding"


@pytest.mark.parametrize("schema", [{"type": ["string", "null"]}, [{"type": ["string", "null"]}]])
def test_a_json_schema_as_the_result_of_a_tool_is_its_text(schema):
    _, row = converted({"messages": [USER, {"role": "tool", "content": schema}, GOOD]})
    assert texts(row)[1] == ("tool", json.dumps(schema))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "Message 3 holds an image: only text"),
        ({"type": "image"}, "holds an image"),
        ({"image": "x.jpg"}, "holds an image"),
        ({"type": "input_audio", "input_audio": {}}, "holds audio"),
        ({"type": "video", "video": "x"}, "holds a video"),
        ({"type": "hologram", "value": "x"}, 'a part of type "hologram", which is not text'),
        ({"type": "tool_call", "value": "{"}, "a tool call that is not valid JSON"),
        (7, "a part that is not an object"),
    ],
)
def test_parts_that_are_not_text_are_named(part, words):
    with pytest.raises(Dropped, match=words):
        read_content([{"type": "text", "text": "a"}, part], 2)


@pytest.mark.parametrize("name", ["images", "audios", "videos"])
def test_a_row_with_images_beside_its_text_is_dropped(name):
    row = {"messages": [USER, GOOD], name: ["1.jpg"]}

    assert converted(row)[1].kind == "type"
    assert isinstance(converted(row | {name: []})[1], Conversation)
    assert isinstance(converted(row | {name: None})[1], Conversation)


def test_an_image_address_without_a_place_in_the_text_is_metadata():
    row = {"question": "q", "answer": "a", "image": "https://x/y.png"}

    assert isinstance(converted(row)[1], Conversation)
    assert converted(row | {"question": "<image> q"})[1].kind == "type"


@pytest.mark.parametrize("weight", [{"loss_weight": 0.0}, {"weight": 0}, {"train": False}])
def test_weights_of_zero_mute_an_answer(weight):
    _, made = converted({"messages": [USER, GOOD | weight, USER, BAD | {"loss_weight": 1.0}]})

    assert made.muted == (0,)


def test_the_input_of_an_alpaca_pair_is_part_of_the_question():
    row = {"instruction": "q", "input": "x", "chosen": "good", "rejected": "bad"}

    assert texts(converted(row)[1])[0] == ("user", "q\n\nx")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, GOOD]},
        {"conversations": [HUMAN, {"from": "gpt", "value": "good"}]},
        {"prompt": "q", "completion": "good"},
        {"prompt": [USER], "completion": [GOOD]},
    ],
)
def test_judged_answers_give_the_good_ones(row):
    name = "kto_tag" if "conversations" in row else "label"
    format, made = converted(row | {name: True})
    _, bad = converted(row | {name: False})

    assert format == "judged" and texts(made) == [("user", "q"), ("assistant", "good")]
    assert isinstance(bad, Problem) and bad.kind == "judged_bad"


def test_a_label_of_words_is_no_verdict():
    assert converted({"messages": [USER, GOOD], "label": "sports"})[0] == "messages"
    assert converted({"text": "t", "label": True})[0] == "labelled"


def test_a_verdict_that_is_neither_yes_nor_no_is_named():
    mapping = recognise([Row(1, {"messages": [USER, GOOD], "label": True})]).mapping

    made = converter(mapping)(Row(2, {"messages": [USER, GOOD], "label": "maybe"}))

    assert made.text == '"label" is neither true nor false.'


def test_judged_answers_are_refused_unless_the_good_ones_are_chosen(tmp_path, byte_backend):
    path = tmp_path / "kto.jsonl"
    rows = [{"messages": [USER, GOOD], "label": i % 3 > 0} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    backend = byte_backend(["<e>"], eos="<e>")

    with pytest.raises(
        DataError, match=r"kto\.jsonl holds answers judged as good or bad.*judged=good"
    ):
        prepare(DataSource(path=str(path)), backend, context_length=99, seed=0)
    source = DataSource(path=str(path), judged="good", validation_fraction=0)
    made = prepare(source, backend, context_length=99, seed=0)

    assert len(made.train) == 6 and made.report.problem_counts == {"judged_bad": 3}
    assert "3 answers are judged as bad and are not used." in made.report.warnings


def test_the_real_tool_calls_in_parts_are_read_whole(real):
    origin = from_files("reason", [real / "data" / "reason_tool_use_demo_50.jsonl"])
    convert = converter(guess_origin(origin, DataSource()).mapping)
    made = [convert(row) for row in origin.rows()]
    answers = [m for row in made for m in row.messages if m["role"] == "assistant"]

    # Counted in the file: 112 answers with a thought each, 59 texts, 68 calls; 2 rows name no tool.
    assert len(made) == 50 and sum(bool(row.tools) for row in made) == 48
    counts = Counter(key for m in answers for key in m if m[key])
    assert counts["reasoning_content"] == len(answers) == 112 and counts["content"] == 59
    assert sum(len(m.get("tool_calls", [])) for m in answers) == 68


def test_the_real_file_of_images_says_what_it_cannot_train(real):
    report = check_file(real / "data" / "mllm_demo.json")

    assert not report.ok
    assert 'comes with images (column "images"): only text is trained' in report.error.text


def said(*messages, **row):
    format, made = converted({"messages": [USER, *messages], **row})
    assert isinstance(made, Conversation), (format, made)
    return made


def functions(*messages):
    return [call["function"] for call in said(*messages).messages[1]["tool_calls"]]


WEATHER = {"name": "weather", "arguments": {"city": "Oslo"}}
TEXT = WEATHER | {"arguments": '{"city":"Oslo"}'}


@pytest.mark.parametrize(
    "calling",
    [
        {"tool_calls": [{"name": "weather", "args": {"city": "Oslo"}, "type": "tool_call"}]},
        {"tool_calls": [{"function": {"name": "weather", "parameters": {"city": "Oslo"}}}]},
        {"tool_calls": [{"name": "weather", "arguments": None, "input": {"city": "Oslo"}}]},
        {"tool_calls": [{"function": WEATHER}], "function_call": WEATHER},
        {"tool_calls": [{"function": WEATHER}], "function_call": TEXT},
        {"content": [{"type": "tool_use", "name": "weather", "input": {"city": "Oslo"}}],
         "tool_calls": [{"id": "c", "function": WEATHER}]},
    ],
)  # fmt: skip
def test_calls_are_read_under_every_name_in_use_and_once(calling):
    assert functions({"role": "assistant", **calling}) == [WEATHER]


def test_arguments_as_json_text_and_as_an_object_are_one_call():
    part = {"type": "tool_use", "name": "weather", "input": {"city": "Oslo"}}
    for other in ({"function_call": WEATHER}, {"content": [part]}):
        turn = {"role": "assistant", "tool_calls": [{"function": TEXT}], **other}
        assert functions(turn) == [TEXT]


def test_calls_under_two_names_and_equal_ones_side_by_side_are_kept():
    other = {"name": "tide", "arguments": {}}

    assert functions(
        {"role": "assistant", "tool_calls": [{"function": WEATHER}] * 2, "function_call": other}
    ) == [WEATHER, WEATHER, other]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"temperature": 3}], '[{"temperature": 3}]'),
        (["snow", "sun"], '["snow", "sun"]'),
        ({"temperature": 3}, '{"temperature": 3}'),
        ([{"type": "text", "text": "snow"}], "snow"),
        (7, "7"),
    ],
)
def test_the_result_of_a_tool_is_text_or_json(content, text):
    call = {"id": 3, "function": WEATHER}
    made = said(
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": content, "tool_call_id": 3}, GOOD,
    )  # fmt: skip

    assert made.messages[1]["tool_calls"][0]["id"] == made.messages[2]["tool_call_id"] == "3"
    assert made.messages[2]["content"] == text


@pytest.mark.parametrize(
    ("message", "row", "names"),
    [
        ({"content": "a", "text": "b"}, {}, ["text"]),
        ({"content": "a", "text": "a", "name": "Ann"}, {}, ["name"]),
        ({"content": "a", "reasoning": "t", "thinking": "t"}, {}, []),
        ({"content": "a", "reasoning": "t", "thinking": "u"}, {}, ["thinking"]),
        ({"tool_calls": [{"function": {**WEATHER, "when": "now"}}]}, {}, ["when"]),
        ({"content": "a"}, {"system": "Be kind."}, ["system"]),
    ],
)
def test_what_a_message_says_beside_what_is_read_is_named(message, row, names):
    turns = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", **message}]

    made = converted({"messages": turns, **row})[1]

    assert list(made.unread) == names
    assert not any("unread" in call for m in made.messages for call in m.get("tool_calls", ()))


def test_questions_that_ask_to_be_trained_are_named():
    question = {**USER, "weight": 1, "reasoning_content": "why"}

    made = converted({"messages": [question, {**USER, "weight": 0}, GOOD]})[1]

    assert made.unread == ("weight", "reasoning_content")


@pytest.mark.parametrize("thought", ["t", ["t"], [{"type": "text", "text": "t"}]])
def test_a_thought_is_text_or_parts(thought):
    made = said({"role": "assistant", "content": "a", "reasoning": thought})

    assert made.messages[1]["reasoning_content"] == "t"


def test_a_thought_that_stands_in_the_content_too_is_trained_once():
    made = said({"role": "assistant", "content": "<think>\nt\n</think>\n\na", "reasoning": "t"})

    assert made.messages[1] == {"role": "assistant", "content": "a", "reasoning_content": "t"}


def test_tools_may_be_texts_of_json():
    tool = {"type": "function", "function": {"name": "weather"}}

    assert said(GOOD, tools=[json.dumps(tool)]).tools == [tool]


def test_rows_that_differ_in_a_thought_or_in_tools_are_no_duplicates():
    tool = {"type": "function", "function": {"name": "weather"}}
    rows = [said(GOOD), said({**GOOD, "reasoning": "t"}), said(GOOD, tools=[tool])]

    assert len({content_hash(row) for row in rows}) == 3
