"""The guess, its reason, and what a person can correct."""

import pytest

from studio.data.column_mapping import Mapping
from studio.data.conversation_records import Conversation, Problem, Row
from studio.data.mapping_preview import columns, corrected, preview
from studio.data.recognise_format import recognise
from studio.data.row_converters import converter
from studio.errors import DataError
from studio.spec import DataSource


def guessed(row, **kwargs):
    return recognise([Row(1, row)], **kwargs)


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARE = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("row", "kind", "parts"),
    [
        ({"messages": CHAT}, "messages", {"messages": "messages"}),
        ({"id": 1, "dialog": CHAT}, "messages", {"messages": "dialog"}),
        ({"conversations": SHARE, "tools": "[]"}, "sharegpt",
         {"messages": "conversations", "tools": "tools"}),
        ({"conversations": SHARE, "system": "s"}, "sharegpt",
         {"messages": "conversations", "system": "system"}),
        ({"instruction": "i", "input": "", "output": "o"}, "alpaca",
         {"instruction": "instruction", "output": "output", "input": "input"}),
        ({"instruction": "i", "context": "", "response": "o", "category": "c"}, "alpaca",
         {"instruction": "instruction", "output": "response", "input": "context"}),
        ({"prompt": "p", "completion": "c"}, "prompt_completion",
         {"prompt": "prompt", "completion": "completion"}),
        ({"Prompt": "p", "Response": "c"}, "prompt_completion",
         {"prompt": "Prompt", "completion": "Response"}),
        ({"input": "p", "output": "c"}, "prompt_completion",
         {"prompt": "input", "completion": "output"}),
        ({"question": "q", "answer": "a"}, "question_answer",
         {"question": "question", "answer": "answer"}),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "preference",
         {"chosen": "chosen", "rejected": "rejected", "prompt": "prompt"}),
        ({"query": "p", "chosen": "c", "rejected": "r"}, "preference",
         {"chosen": "chosen", "rejected": "rejected", "prompt": "query"}),
        ({"chosen": "c", "rejected": "r"}, "preference",  # not one text and its answer
         {"chosen": "chosen", "rejected": "rejected"}),
        ({"chosen": CHAT, "rejected": CHAT}, "preference",
         {"chosen": "chosen", "rejected": "rejected"}),
        ({"text": "t", "label": 3}, "labelled", {"text": "text", "label": "label"}),
        ({"text": "t", "category": "c"}, "labelled", {"text": "text", "label": "category"}),
        ({"sentence": "t", "sentiment": "pos"}, "labelled",
         {"text": "sentence", "label": "sentiment"}),
        ({"text": "t"}, "text", {"text": "text"}),
        ({"id": 4, "story": "once upon"}, "text", {"text": "story"}),
        ({"text": "t", "meta": {"source": "web"}}, "text", {"text": "text"}),
        ({"custom_id": "1", "method": "POST", "body": {"messages": CHAT}}, "messages",
         {"messages": "body.messages"}),
        ({"systemInstruction": {"parts": [{"text": "s"}]},
          "contents": [{"role": "user", "parts": [{"text": "q"}]}]}, "messages",
         {"messages": "contents", "system": "systemInstruction"}),
    ],
)  # fmt: skip
def test_rows_are_recognised_by_their_columns(row, kind, parts):
    guess = guessed(row)

    assert (guess.mapping.format, guess.mapping.columns, guess.sure) == (kind, parts, True)
    assert guess.reason


def test_two_unknown_text_columns_are_a_guess_that_says_so():
    guess = guessed({"frage": "wie?", "antwort": "so"})

    assert not guess.sure and "which is a guess" in guess.reason
    assert guess.mapping.columns == {"prompt": "frage", "completion": "antwort"}


@pytest.mark.parametrize("inner", [[{"context": "c", "qas": []}], {"a": {"message": None}}])
def test_a_title_beside_objects_is_not_taken_for_the_text(inner):
    with pytest.raises(DataError, match='"title", "inner" tell no question'):
        guessed({"title": "t", "inner": inner})


def test_messages_in_parts_are_read_with_their_system_prompt():
    row = {
        "systemInstruction": {"role": "system", "parts": [{"text": "Be kind."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "q"}]},
            {"role": "model", "parts": [{"text": "a"}, {"text": "b"}]},
        ],
    }

    made = converter(guessed(row).mapping)(Row(1, row))

    assert [m["content"] for m in made.messages] == ["Be kind.", "q", "ab"]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_an_answer_marked_in_the_file_carries_no_loss(mark):
    turns = [CHAT[0], CHAT[1] | mark, CHAT[0], CHAT[1] | {"weight": 1, "train": True}]

    made = converter(Mapping(columns={"messages": "messages"}))(Row(1, {"messages": turns}))

    assert made.muted == (0,)
    assert made.messages == [*CHAT, *CHAT]


def test_a_chosen_format_that_does_not_fit_names_the_columns():
    with pytest.raises(DataError, match='"alpaca" was chosen.*"text"'):
        guessed({"text": "t"}, wanted="alpaca")


def made(row, **mapping):
    return converter(Mapping(**mapping))(Row(1, row))


def test_alpaca_joins_the_input_and_history_comes_first():
    got = made(
        {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["a", "b"]]},
        format="alpaca",
        columns={"instruction": "instruction", "input": "input", "output": "output",
                 "history": "history"},
    )  # fmt: skip

    assert [m["content"] for m in got.messages] == ["a", "b", "Add.\n\n1 2", "3"]


def test_labels_become_answers_to_a_question_about_them():
    got = made({"text": "great", "mood": 1}, format="labelled",
               columns={"text": "text", "label": "mood"})  # fmt: skip

    assert [m["content"] for m in got.messages] == ["What is the mood?\ngreat", "1"]


def test_sharegpt_calls_become_tool_calls_and_tools_are_read():
    got = made(
        {"c": [{"from": "human", "value": "q"},
               {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
               {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"}],
         "t": '[{"name": "f"}]'},
        format="sharegpt", columns={"messages": "c", "tools": "t"},
    )  # fmt: skip

    assert [m["role"] for m in got.messages] == ["user", "assistant", "tool", "assistant"]
    assert got.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert got.tools == [{"name": "f"}]


def test_templates_constants_paths_and_roles_shape_a_row():
    row = {"meta": {"title": "T", "list": [{"x": "deep"}]}, "body.text": "B", "done": "{A}"}
    got = made(
        row,
        format="prompt_completion",
        templates={"prompt": "{meta.title}: {body.text} {{{meta.list.0.x}}}"},
        columns={"completion": "done"},
        constants={"system": "S"},
    )

    assert [m["content"] for m in got.messages] == ["S", "T: B {deep}", "{A}"]
    talk = [{"role": "klant", "content": "q"}, {"role": "hulp", "content": "a"}]
    got = made({"m": talk}, format="messages", columns={"messages": "m"},
               roles={"klant": "user", "hulp": "assistant"})  # fmt: skip
    assert [m["role"] for m in got.messages] == ["user", "assistant"]


def test_a_template_from_a_file_is_only_filled_never_run():
    got = made(
        {"a": "x", "b": "y"},
        format="prompt_completion",
        templates={"prompt": "{a.__class__} {0} {a!r}"},
        columns={"completion": "b"},
    )

    assert isinstance(got, Problem) and got.kind == "missing"


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"format": "alpaca", "columns": {"instruction": "a"}}, 'needs the part "output"'),
        ({"format": "text", "columns": {"text": "a", "label": "b"}}, 'no part "label"'),
        ({"format": "messages", "columns": {"messages": "m"}, "roles": {"x": "boss"}},
         '"boss" is not a role'),
    ],
)  # fmt: skip
def test_a_mapping_that_cannot_be_names_the_part(mapping, words):
    with pytest.raises(DataError, match=words):
        Mapping(**mapping).checked()


def test_the_mapping_panel_corrects_a_guess_and_shows_rows_at_once(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Nr,Was man fragt,Was man sagt,Thema\n1,wie?,so,x\n2,wer?,ich,y\n")
    source = DataSource(path=str(path))

    with pytest.raises(DataError, match="Was man fragt"):
        corrected(source, "", {"columns": {}, "templates": {}, "constants": {}, "roles": {}})
    mapping = corrected(
        source,
        "question_answer",
        {
            "columns": {"answer": "Was man sagt"},
            "templates": {"question": "{Thema}: {Was man fragt}"},
            "constants": {"system": "Kurz."},
            "roles": {},
        },
    )
    shown = preview(DataSource(path=str(path)), mapping, count=1)

    assert [m["content"] for m in shown[0]["messages"]] == ["Kurz.", "x: wie?", "so"]
    assert list(columns(DataSource(path=str(path)))) == [
        "Nr",
        "Was man fragt",
        "Was man sagt",
        "Thema",
    ]


@pytest.mark.parametrize(
    ("format", "columns", "templates", "said"),
    [
        ("", {"foo": "A"}, {}, '"foo" is not a part. The parts: answer, answers, chosen'),
        ("", {"prompt": "A"}, {}, r"--format. Known: .*question_answer \(question, answer, "),
        ("", {"messages": "A"}, {}, "fit messages and sharegpt: choose one with --format"),
        ("", {"prompt": "A", "completion": "zzz"}, {}, 'No row has a column "zzz".*"A", "B", "C"'),
        ("text", {}, {"text": "{A} {zzz}"}, 'No row has a column "zzz"'),
    ],
)
def test_a_part_or_column_that_is_not_there_is_named(tmp_path, format, columns, templates, said):
    (tmp_path / "a.csv").write_text("A,B,C\none,two,three\nvier,fünf,sechs\n")
    changes = {"columns": columns, "templates": templates, "constants": {}, "roles": {}}
    with pytest.raises(DataError, match=said):
        corrected(DataSource(path=str(tmp_path / "a.csv")), format, changes)


@pytest.mark.parametrize(
    ("history", "said"),
    [*((wrong, True) for wrong in (True, 3, "once", {"a": "b"}, [["q"]], ["qa"])),
     *((nothing, False) for nothing in (None, "", float("nan"), []))],
)  # fmt: skip
def test_a_history_that_is_none_is_told_and_an_empty_one_is_none(history, said):
    mapping = Mapping(format="alpaca", columns={"instruction": "i", "output": "o", "history": "h"})
    made = converter(mapping)(Row(7, {"i": "Add.", "o": "3", "h": history}))
    if said:
        assert isinstance(made, Problem) and made.line == 7 and "history" in made.text
    else:
        assert isinstance(made, Conversation) and len(made.messages) == 2
