"""Judgements join suites and votes; verdicts become rows only when asked, and only as evidence."""

import json

import pytest

from jobs import results_table, suite_results
from jobs.compare_tables import Conversations, Votes
from jobs.dataset_from_votes import TurnFilter, rows_of
from studio.errors import QueueError
from studio.evaluation.judge import JudgeRequest
from studio.evaluation.suites import RESULTS
from tests.judges import judging

LANES = [{"model": "starter"}, {"model": "starter", "stack": [{"name": "p"}]}]
NAMES = ("starter", "starter~p:1")


@pytest.fixture
def suite(store):
    """A suite of two lanes whose second answer has the higher score."""
    cases = [{"prompt": f"q{n}"} for n in range(3)]
    job = store.submit({"name": "quiz", "lanes": LANES, "cases": cases}, kind="suite").id
    store.home.run(job).mkdir()
    rows = [
        {"case": n, "prompt": f"q{n}", "expected": None, "pattern": None, "answers": [
            {"text": f"score {n + place}", "error": None, "reason": "stop", "exact_match": None,
             "rouge_l": None} for place in (0, 1)
        ]}
        for n in range(3)
    ]  # fmt: skip
    (store.home.run(job) / RESULTS).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return job


def vote(store, winner, texts=("score 1", "score 2"), lanes=NAMES, **more):
    Votes(store.database).cast("hi", lanes, winner=winner, answers=texts, **more)


def judge(store, suite, address, **settings):
    """Judge a suite in this process and return the number of the job."""
    request = suite_results.judge_request(store, suite, votes=20, address=address, **settings)
    job = store.submit(request.model_dump(mode="json"), kind="judge").id
    list(JudgeRequest.parse(store.get(job).spec).perform(store.home, store.home.run(job)))
    return job


def test_votes_become_pairs_to_judge(store, suite):
    vote(store, 1)
    vote(store, None, bad=True)
    vote(store, 2, texts=("a", "b", "c"), lanes=(*NAMES, "other"))
    vote(store, None, texts=("a", "b", "c"), lanes=(*NAMES, "other"))  # a tie of three
    talks = Conversations(store.database)
    for name in ("told", "alone"):
        talks.save(name, lanes=[], settings={})
        for turn in (0, 1):
            answers = [{"text": "a", "alone": name == "alone"}] * 2
            talks.save_turn(name, turn, prompt="hi", answers=answers)
        vote(store, 0, texts=("x", name), conversation=name, turn=1)  # a later turn
    vote(store, 0, conversation="gone", turn=1)
    vote(store, 0, texts=())  # its answers were not kept
    asked = suite_results.judge_request(store, suite, votes=20)
    assert [(one.answers, one.vote) for one in asked.votes] == [
        (("score 1", "score 2"), 1), (("score 1", "score 2"), "tie"),
        (("a", "c"), 1), (("b", "c"), 1), (("x", "alone"), 0),
    ]  # fmt: skip
    assert [one.vote_id for one in asked.votes] == [1, 2, 3, 3, 6]
    two = suite_results.judge_request(store, suite, votes=2).votes
    assert [one.vote_id for one in two] == [3, 3, 6]  # whole votes
    assert (asked.lanes, asked.name) == (NAMES, "judge of quiz")
    assert len(suite_results.judge_request(store, suite, votes=1).votes) == 1
    assert suite_results.judge_request(store, suite, votes=0).votes == ()


def test_verdicts_of_a_judge_that_agrees_are_evidence_and_rows(store, suite):
    for _ in range(10):
        vote(store, 1)
    before = Votes(store.database).list()
    with judging("good") as (address, _):
        job = judge(store, suite, address)
    found = suite_results.judgement(store, job)
    assert found["evidence"] and found["agreement"]["count"] == 10
    assert found["wins"] == [[0, 0], [3, 0]]
    assert suite_results.judgements(store)[0]["pairs"] == 3
    rows, _ = rows_of(store.database, "pairs", TurnFilter(), suite_results.judged_turns(store, job))
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows] == [
        (f"score {n + 1}", f"score {n}") for n in range(3)
    ]
    assert Votes(store.database).list() == before  # verdicts stay apart from votes
    column = "judge of quiz judged"
    table = results_table.table(store)
    assert {row["name"]: row.get(column) for row in table["rows"]} == {"starter": 0.0, "p": 1.0}


def test_verdicts_of_a_judge_that_disagrees_are_refused(store, suite):
    for _ in range(10):
        vote(store, 0)
    with judging("good") as (address, _):
        job = judge(store, suite, address)
    with pytest.raises(QueueError, match=r"cannot be used. Not evidence: it agrees .* 0 of 10"):
        suite_results.judged_turns(store, job)
    assert results_table.table(store)["rows"] == [] or not any(
        key.endswith("judged") for row in results_table.table(store)["rows"] for key in row
    )
    with pytest.raises(QueueError, match="not a judgement"):
        suite_results.judgement(store, suite)
