"""The world's generator: one right answer each, held-out questions never trained, one seed."""

import hashlib
import json
import random

import pytest

from studio.starter.make.chats import LAST_MIX, MIX, chat
from studio.starter.make.world import (
    held_out_questions,
    questions,
    with_article,
)


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
