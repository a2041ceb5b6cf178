"""Votes become pairs, answers and verdicts; what the lanes answered differently before does not."""

import pytest

from jobs.compare_tables import Conversations, Votes
from jobs.dataset_from_votes import TurnFilter, rows_of
from studio.errors import ChatError

A, B = "starter", "starter~p:1"
SHARED = {"shared": {"system": "Be kind."}}


@pytest.fixture
def database(store):
    """Two turns of two lanes: the first won by B, the second by A, whose answer was edited."""
    talks = Conversations(store.database)
    lanes = [{"model": "starter", "stack": []}, {"model": "starter", "stack": [{"name": "p"}]}]
    talks.save("a", lanes=lanes, settings=SHARED)
    said = [("q1", "a1", "b1"), ("q2", "a2", "b2")]
    for number, (prompt, *texts) in enumerate(said):
        answers = [{"text": t, "lane": lane} for t, lane in zip(texts, (A, B), strict=True)]
        if number:
            answers[0] |= {"text": "better", "original": "a2"}
        talks.save_turn("a", number, prompt=prompt, answers=answers)
        Votes(store.database).cast(prompt, (A, B), winner=1 - number, conversation="a", turn=number,
                                   answers=texts)  # fmt: skip
    return store.database


def said(messages):
    return [message["content"] for message in messages]


def test_the_winner_is_chosen_and_an_edited_answer_is_better_than_it_was(database):
    rows, left_out = rows_of(database, "pairs", TurnFilter())

    got = [(said(r["prompt"]), said(r["chosen"]), said(r["rejected"])) for r in rows]
    assert got == [
        (["Be kind.", "q1"], ["b1"], ["a1"]),
        (["Be kind.", "q1", "a1", "q2"], ["better"], ["a2"]),
    ]
    assert left_out == {"history": 1}  # A won the second turn, which B saw after another answer


def test_a_prompt_that_was_answered_alone_has_no_history(database):
    answers = [{"text": t, "lane": lane, "alone": True} for t, lane in (("a2", A), ("b2", B))]
    Conversations(database).save_turn("a", 1, prompt="q2", answers=answers)
    rows, left_out = rows_of(database, "pairs", TurnFilter())
    assert said(rows[1]["prompt"]) == ["Be kind.", "q2"] and not left_out
    talks = rows_of(database, "answers", TurnFilter(unvoted=True))[0]
    assert [said(row["messages"]) for row in talks] == [
        ["Be kind.", "q2", "a2"], ["Be kind.", "q2", "b2"]
    ]  # fmt: skip


def test_a_lane_that_is_removed_takes_its_place_in_the_vote_with_it(database):
    lanes = [A, B, "starter~c:1"]
    Votes(database).cast("q1", lanes, winner=1, conversation="a", turn=0, answers=["a", "b", "c"])
    kept = [{"text": "b", "lane": B, "verdict": "won"}, {"text": "c", "lane": lanes[2]}]
    Conversations(database).save_turn("a", 0, prompt="q1", answers=kept)
    row = rows_of(database, "pairs", TurnFilter())[0][0]
    assert (said(row["chosen"]), said(row["rejected"])) == (["b"], ["c"])
    assert (row["lane"], row["rejected_lane"]) == (B, lanes[2])

    Conversations(database).save_turn("a", 0, prompt="q1", answers=kept[1:])
    rows, _ = rows_of(database, "answers", TurnFilter())
    assert [said(row["messages"])[-1] for row in rows] == ["better"]  # the winner is gone


def test_a_row_has_the_system_prompt_its_answer_was_asked_with_and_no_thought_in_its_text(database):
    parts = [["thought", "hm"], ["mark", "</think>"], ["text", "\n\nb1"]]
    answers = [{"text": "a1", "lane": A}, {"text": "hm</think>b1", "lane": B, "parts": parts}]
    answers = [answer | {"system": "Be old.", "sampling": {}} for answer in answers]
    Conversations(database).save_turn("a", 0, prompt="q1", answers=answers)
    row = rows_of(database, "pairs", TurnFilter())[0][0]
    assert said(row["prompt"]) == ["Be old.", "q1"]
    assert row["chosen"] == [{"role": "assistant", "content": "b1", "reasoning_content": "hm"}]


def test_ties_teach_nothing_and_bad_answers_are_verdicts(database):
    Votes(database).cast("q1", (A, B), winner=None, conversation="a", turn=0, answers=["a1", "b1"])
    rows, left_out = rows_of(database, "judged", TurnFilter())
    assert [(said(r["messages"])[-1], r["label"]) for r in rows] == [
        ("a2", False), ("better", True), ("b2", False)
    ]  # fmt: skip
    assert left_out == {"tie": 1}

    Votes(database).cast("q1", (A, B), winner=None, bad=True, conversation="a", turn=0)
    assert [r["label"] for r in rows_of(database, "judged", TurnFilter())[0][:2]] == [False, False]


def test_answers_are_the_winners_after_a_muted_past_or_whole_conversations(database):
    won = rows_of(database, "answers", TurnFilter())[0]
    assert [said(row["messages"])[-1] for row in won] == ["b1", "better"]
    assert [m.get("weight") for m in won[1]["messages"]] == [None, None, 0, None, None]

    whole = rows_of(database, "answers", TurnFilter(unvoted=True, lane=B))[0]
    assert [said(row["messages"]) for row in whole] == [["Be kind.", "q1", "b1", "q2", "b2"]]


def test_a_vote_outlives_its_conversation_and_filters_leave_rows_out(database):
    Conversations(database).delete("a")

    rows, _ = rows_of(database, "pairs", TurnFilter(search="q1"))
    assert [(said(r["prompt"]), said(r["chosen"])) for r in rows] == [(["q1"], ["b1"])]
    moment = "2001-01-01T16:00:00.000Z"  # as the page sends a day of its own time zone
    for wanted in (
        {"until": "2001-01-01"},
        {"until": moment},
        {"since": "2999-01-01"},
        {"blind": True},
    ):
        with pytest.raises(ChatError, match="None of the 0 turns gives a row"):
            rows_of(database, "pairs", TurnFilter(**wanted))


def test_rows_are_of_the_lane_that_was_voted_on(database):
    warm = f"{B} · temperature 0.7"
    Votes(database).cast("q1", (B, warm), winner=1, conversation="a", turn=0, answers=["a1", "b1"])
    (row,) = rows_of(database, "pairs", TurnFilter(lane=warm))[0]
    assert (row["lane"], row["rejected_lane"], said(row["chosen"])) == (warm, B, ["b1"])
