"""Text that comes in pieces is the text of all tokens together."""

import pytest
from transformers import AutoTokenizer

from studio.chat.answer import Detokenizer, StopTexts

TEXTS = [
    "Hello, world! It's  fine.\n\n  indented\ttab",
    "日本語のテキスト，中国中国。",
    "👩‍👩‍👧 and 🎉🎉 é ü ñ ẞ",
    " leading and trailing ",
]


@pytest.mark.parametrize("name", ["tokenizers/minimind", "models/stories260k", "models/tarot-gpt2"])
@pytest.mark.parametrize("prompt", ["", "Once upon a", "a line\n"])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_of_all_tokens(real, name, prompt, text):
    tokenizer = AutoTokenizer.from_pretrained(real / name)
    before = tokenizer.encode(prompt)[-6:] if prompt else []
    answer = tokenizer.encode(text, add_special_tokens=False)

    detokenizer = Detokenizer(tokenizer, before)
    pieces = [detokenizer.add(token) for token in answer] + [detokenizer.flush()]

    whole = tokenizer.decode(before + answer, skip_special_tokens=True)
    assert "".join(pieces) == whole[len(tokenizer.decode(before, skip_special_tokens=True)) :]
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_part_of_a_character_waits_for_the_rest(real):
    tokenizer = AutoTokenizer.from_pretrained(real / "models/stories260k")
    tokens = tokenizer.encode("日", add_special_tokens=False)[-3:]  # three bytes, E6 97 A5
    detokenizer = Detokenizer(tokenizer)

    assert [detokenizer.add(token) for token in tokens] == ["", "", "日"]


def test_a_part_of_a_character_at_the_end_stays_visible(real):
    tokenizer = AutoTokenizer.from_pretrained(real / "models/stories260k")
    first_byte = tokenizer.encode("日", add_special_tokens=False)[-3]
    detokenizer = Detokenizer(tokenizer)

    assert detokenizer.add(first_byte) == ""
    assert detokenizer.flush() == "\ufffd"


def test_bytes_that_are_no_text_do_not_wait_forever(real):
    tokenizer = AutoTokenizer.from_pretrained(real / "models/stories260k")
    first_byte = tokenizer.encode("日", add_special_tokens=False)[-3]
    detokenizer = Detokenizer(tokenizer)

    text = "".join(detokenizer.add(first_byte) for _ in range(40))

    assert len(text) >= 32


def test_a_stop_text_across_pieces_is_cut_and_never_shown():
    stops = StopTexts(["\nUser:", "###"])

    shown = [stops.add(piece) for piece in ["Hello\n", "Us", "er", ": more"]]

    assert "".join(shown) == "Hello"
    assert stops.reached


def test_text_that_only_looked_like_a_stop_is_shown():
    stops = StopTexts(["###"])

    shown = stops.add("a ##") + stops.add(" b #") + stops.flush()

    assert shown == "a ## b #"
    assert not stops.reached
