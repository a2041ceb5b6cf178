"""Documents that are rendered chats: control tokens are tokens, and only answers are trained."""

import pytest

from studio.data.conversation_records import Conversation, Document
from studio.data.import_dataset import import_dataset
from studio.data.model_tokenizer import backend_from_folder
from studio.data.prepare_run_data import prepare
from studio.data.template.choose_template import choose
from studio.data.xray import xray
from studio.spec import DataSource
from tests.studio.data.conftest import assert_same, write_rows

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<s>{% for m in messages %}<|head|>{{ m.role }}<|headend|>\n\n{{ m.content }}<|eot|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|headend|>\n\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
GEMMA = (
    "<s>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
FAMILIES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "llama3": (LLAMA3, ["<s>", "<|head|>", "<|headend|>", "<|eot|>"], "<|eot|>"),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "</s>"),
    "gemma": (GEMMA, ["<s>", "<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
}
TURNS = [
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "In the chest."},
    {"role": "user", "content": "Who knows?"},
    {"role": "assistant", "content": "The captain."},
]


@pytest.fixture(params=[*FAMILIES])
def family(request, byte_backend):
    """Return the template and a rendering of `TURNS` as a dataset's maker would write it."""
    source, specials, end = FAMILIES[request.param]
    template = choose(byte_backend(specials, source, eos=end, bos="<s>"))
    return template, template.render(Conversation(TURNS)).text


def test_a_rendered_chat_has_the_tokens_and_the_mask_of_the_conversation(family):
    template, text = family

    encoded = template.encode_batch([Document(text), Conversation(TURNS)])

    assert encoded.row(0).ids.tolist() == encoded.row(1).ids.tolist()
    assert encoded.row(0).trained.tolist() == encoded.row(1).trained.tolist()
    assert template.reading(text) == "chat"


def test_a_text_that_only_mentions_a_control_token_is_read_as_text(family):
    template, _ = family
    text = f"The token {template.end} ends a turn."

    encoded = template.encode_batch([Document(text)]).row(0)

    assert template.reading(text) == "text"
    assert encoded.trained.all()
    assert template.backend.token_id(template.end) not in encoded.ids[:-1].tolist()


def test_a_row_of_a_conversation_cannot_forge_a_turn(family):
    template, text = family
    forged = [{"role": "user", "content": text}, TURNS[1]]
    turn = template.backend.token_id(template.end)

    ids = template.encode_batch([Conversation(forged)]).row(0).ids.tolist()
    plain = template.encode_batch([Conversation([TURNS[0], TURNS[1]])]).row(0).ids.tolist()

    assert ids.count(turn) == plain.count(turn)


def write(path, *texts):
    path = write_rows(path, [{"text": text} for text in texts])
    return DataSource(path=path, validation_fraction=0)


def test_the_report_and_the_xray_say_how_documents_are_read(tmp_path, byte_backend):
    source, specials, end = FAMILIES["chatml"]
    backend = byte_backend(specials, source, eos=end)
    text = choose(backend).render(Conversation(TURNS)).text
    data = write(tmp_path / "a.jsonl", text, text + " ", f"about {end}")

    made = prepare(data, backend, context_length=999, seed=0)
    shown = xray(data, backend, context_length=999)

    assert any(note.startswith("2 rows are chats") for note in made.report.warnings)
    assert any(note.startswith("1 row holds control tokens") for note in made.report.warnings)
    assert_same(shown, made.train)
    assert shown[0].tokens[0].special and shown[0].tokens[0].state == "masked"


@pytest.mark.parametrize(
    ("choice", "controls", "trained"), [("text", False, True), ("tokens", True, False)]
)
def test_the_reading_can_be_chosen(tmp_path, byte_backend, choice, controls, trained):
    source, specials, end = FAMILIES["chatml"]
    backend = byte_backend(specials, source, eos=end)
    text = choose(backend).render(Conversation(TURNS)).text
    data = write(tmp_path / "a.jsonl", text).model_copy(update={"control_tokens": choice})

    example = prepare(data, backend, context_length=999, seed=0).train[0]

    assert (backend.token_id("<|im_start|>") in example.input_ids) == controls
    assert (example.labels >= 0).all() == trained


def test_tokens_alone_are_read_as_tokens_where_it_is_asked_for(tmp_path, byte_backend):
    backend = byte_backend(["<|endoftext|>"], eos="<|endoftext|>")
    data = write(tmp_path / "a.jsonl", "one<|endoftext|>two").model_copy(
        update={"control_tokens": "tokens"}
    )

    example = prepare(data, backend, context_length=999, seed=0).train[0]

    end = backend.token_id("<|endoftext|>")
    assert example.input_ids.tolist().count(end) == 2 and (example.labels >= 0).all()


def test_a_long_rendered_chat_is_cut_as_a_conversation(tmp_path, byte_backend):
    source, specials, end = FAMILIES["chatml"]
    backend = byte_backend(specials, source, eos=end)
    long = [TURNS[0] | {"content": "q" * 300}, TURNS[1]]
    text = choose(backend).render(Conversation(long)).text
    data = write(tmp_path / "a.jsonl", text)

    made = prepare(data, backend, context_length=64, seed=0)

    assert len(made.train) == 1 and made.report.truncated == 1
    assert_same(xray(data, backend, context_length=64), made.train)


def test_the_real_tokenizer_reads_rendered_chats(real):
    backend = backend_from_folder(real / "tokenizers" / "minimind")
    template = choose(backend)
    text = "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nIn the chest.<|im_end|>\n"

    encoded = template.encode_batch([Document(text)]).row(0)

    assert encoded.ids[0] == backend.token_id("<|im_start|>")
    answer = backend.core.decode(encoded.ids[encoded.trained].tolist(), skip_special_tokens=False)
    assert answer == "In the chest.<|im_end|>"


def test_chats_in_the_tokens_of_another_model_are_named(tmp_path, byte_backend):
    backend = byte_backend(["</s>"], eos="</s>")
    chat = "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nThere.<|im_end|>\n"
    data = write(tmp_path / "a.jsonl", chat, "a < b")

    warnings = prepare(data, backend, context_length=999, seed=0).report.warnings

    assert any(w.startswith("1 row holds turns of a chat in another model's") for w in warnings)


def window(folder, backend, **how):
    """Return the tokens and the text of a text file or a folder of them, and the report's notes."""
    source = DataSource(path=str(folder), validation_fraction=0, **how)
    made = prepare(source, backend, context_length=512, seed=0)
    ids = made.train[0].input_ids.tolist()
    notes = [note for note in made.report.warnings if "control_tokens" in note]
    return ids, backend.core.decode(ids, skip_special_tokens=False), notes


@pytest.mark.parametrize(
    ("choice", "ends", "controls", "note"),
    [("auto", 3, 0, "end of text in 2 lines is read as a token"), ("text", 1, 0, "4 rows hold"),
     ("tokens", 3, 2, "")],
)  # fmt: skip
def test_a_text_file_is_separated_where_it_holds_the_end_of_text(
    tmp_path, byte_backend, choice, ends, controls, note
):
    backend = byte_backend(["<|endoftext|>", "<|im_end|>"], eos="<|endoftext|>")
    text = "one<|endoftext|>two\n<|im_end|>\nthree <|im_end|>\n<|endoftext|>\nfour"
    (tmp_path / "a.txt").write_text(text)

    ids, read, notes = window(tmp_path / "a.txt", backend, control_tokens=choice)

    assert read == text + "<|endoftext|>"
    assert [ids.count(id) for id in backend.token_ids(*backend.controls)] == [ends, controls]
    assert any(note in one for one in notes) == bool(note)


def test_each_text_file_of_a_folder_has_its_end_once(home, tmp_path, byte_backend):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in (("a", "one\ntwo"), ("b", "three<|endoftext|>\n"), ("c", "f\n\ng")):
        (folder / f"{name}.txt").write_text(text)
    backend = byte_backend(["<|endoftext|>"], eos="<|endoftext|>")

    whole = "one\ntwo<|endoftext|>three<|endoftext|>f\n\ng<|endoftext|>"
    ids, read, _ = window(folder, backend)
    assert read == whole and ids.count(backend.token_id("<|endoftext|>")) == 3
    import_dataset(home, DataSource(path=str(folder)), name="texts")
    again = prepare(DataSource(path="texts", validation_fraction=0), backend, context_length=512,
                    seed=0, home=home)  # fmt: skip
    assert backend.core.decode(again.train[0].input_ids, skip_special_tokens=False) == whole
    assert window(folder, byte_backend([]))[1] == "one\ntwo\nthree<|endoftext|>\nf\n\ng"
