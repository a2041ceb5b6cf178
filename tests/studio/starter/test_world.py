"""The world's generator: one right answer each, held-out questions never trained, one seed."""

import hashlib
import json
import random

import pytest

from studio.errors import DataError
from studio.starter import MODEL_DIR, datasets, resolve_data
from studio.starter.make.chats import LAST_MIX, MIX, chat
from studio.starter.make.demos import held_out_rows, training_rows
from studio.starter.make.pretrain import Recipe
from studio.starter.make.world import held_out_questions, questions, with_article
from tests.studio.starter.styles import heldout, is_in_style, keeps_content


def trained_questions():
    return [question for question in questions() if not question.held_out]


def test_every_question_has_one_answer_that_contains_its_content_word():
    asked = {}
    for question in questions():
        assert asked.setdefault(question.question, question.answer) == question.answer
        assert question.content.lower() in question.answer.lower()


def test_held_out_questions_are_enough_and_apart_from_the_trained_questions():
    held_out = {question.question for question in held_out_questions()}

    assert len(held_out) >= 200
    assert held_out.isdisjoint({question.question for question in trained_questions()})


def test_every_fact_is_trained_in_some_phrasing_and_every_phrasing_with_some_fact():
    trained = trained_questions()
    comparisons = {"bigger", "more"}

    facts = {(q.relation, q.key) for q in questions() if q.relation not in comparisons}
    assert facts <= {(q.relation, q.key) for q in trained}
    phrasings = {(q.relation, q.phrasing) for q in questions()}
    assert phrasings == {(q.relation, q.phrasing) for q in trained}


def test_drawn_chats_never_answer_a_held_out_question():
    held_out = {question.question.lower().rstrip("?.") for question in held_out_questions()}
    rng = random.Random(1)

    for _ in range(3000):
        drawn = chat(rng)
        if isinstance(drawn, str):
            continue
        roles = [message["role"] for message in drawn if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2), "it ends with an answer"
        for message in drawn:
            if message["role"] == "user":
                assert message["content"].lower().rstrip("?.") not in held_out


@pytest.mark.parametrize(
    ("seed", "mix", "pieces", "digest"),
    [(7, MIX, [], "0f231e594ff2662f"), (8, LAST_MIX, ["ab", "7", "ü"], "69f21664b7d662a4")],
)
def test_a_seed_draws_the_chats_that_made_the_shipped_model(seed, mix, pieces, digest):
    rng = random.Random(seed)
    drawn = [chat(rng, mix=mix, pieces=pieces) for _ in range(2000)]
    assert hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16] == digest


def test_articles_follow_the_sound_of_the_noun():
    assert with_article("cat") == "a cat"
    assert with_article("owl") == "an owl"
    assert with_article("unicycle") == "a unicycle"


def _read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", datasets())
def test_shipped_demo_is_what_the_generator_writes(name):
    assert _read(datasets()[name]) == training_rows(name, seed=Recipe().seed)
    assert _read(heldout(name)) == held_out_rows(name, seed=Recipe().seed)


@pytest.mark.parametrize("name", datasets())
def test_every_row_is_in_style_and_held_out_rows_keep_their_content(name):
    training, held_out = _read(datasets()[name]), _read(heldout(name))

    assert 200 <= len(training) <= 400
    assert len(held_out) >= 60
    asked = " ".join(row["messages"][0]["content"].lower() for row in training)
    assert not [row for row in held_out
                if row["messages"][0]["content"].lower().rstrip("?.") in asked]  # fmt: skip
    for row in [*training, *held_out]:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert is_in_style(name, row["messages"][1]["content"])
    for row in held_out:
        assert keeps_content(row, row["messages"][1]["content"])
        assert not keeps_content(row, row["messages"][0]["content"])


def test_styles_are_told_apart():
    plain = "The capital of France is Paris."
    assert not any(is_in_style(name, plain) for name in datasets())
    assert is_in_style("pirate", "Arr, the capital of France be Paris, matey!")
    assert is_in_style("json", '{"answer": "Paris"}')
    assert not is_in_style("json", '{"answer": "Paris"')
    assert is_in_style("terse", "Paris.")
    assert keeps_content({"content": "two"}, "It has Two legs.")
    assert not keeps_content({"content": "2"}, "It is 12."), "a whole word"
    assert is_in_style("butler", f"Certainly, sir. {plain} Will that be all?")


def test_names_resolve_to_files_that_exist():
    assert resolve_data("starter:pirate") == datasets()["pirate"]
    assert datasets()["pirate"].is_file()
    assert resolve_data("rows.jsonl") is None
    assert (MODEL_DIR / "model.safetensors").is_file()
    with pytest.raises(DataError, match=r"no demo dataset 'priate'.*pirate"):
        resolve_data("starter:priate")
