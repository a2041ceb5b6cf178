"""A judge's verdicts in both orders, what is reported of its trust, and judges that fail."""

import json
from types import SimpleNamespace

import pytest

from studio import offline
from studio.chat.lanes import Delta
from studio.chat.thought_and_tool_parser import Piece
from studio.errors import ChatError, JudgeFailed, SpecError
from studio.evaluation import judge
from studio.evaluation.judge import (
    VERDICTS,
    JudgedPair,
    JudgeRequest,
    checked_address,
    judged,
    read_verdicts,
    summarise,
    verdict_in,
)
from studio.evaluation.suites import RESULTS
from tests.judges import judging

LANES = ("starter", "starter~a:1", "starter~b:1")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(judge, "WAIT_SECONDS", 0)


def suite(home, answers, number=7):
    """Write a suite's file: a list of the lanes' scores per case."""
    home.run(number).mkdir(exist_ok=True)
    rows = [
        {"case": case, "prompt": f"q{case}", "expected": None, "pattern": None, "answers": [
            {"text": f"score {score}\u2028", "error": None, "reason": "stop"} for score in scores
        ]}
        for case, scores in enumerate(answers)
    ]  # fmt: skip
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (home.run(number) / RESULTS).write_text(text, encoding="utf-8")


def votes(verdicts):
    """Return votes on pairs whose second answer has the higher score."""
    return [
        {"prompt": f"v{n}", "answers": ["score 1", "score 2"], "lanes": LANES[:2], "vote": vote}
        for n, vote in enumerate(verdicts)
    ]


def request(address, **values):
    return JudgeRequest.parse(
        {"suite": 7, "lanes": LANES[: values.pop("width", 2)], "address": address, **values}
    )


def run(asked, home, folder, control=lambda: None):
    events = list(asked.checked(home).perform(home, folder, control))
    found = summarise(read_verdicts(folder), min_agreement=asked.min_agreement)
    return events, found


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Clear.\nVerdict: A", 0), ("**Verdict: B**", 1), ("verdict - tie", "tie"),
        ("Verdict: a tie.", "tie"), ("Verdict: **Answer B**, it is right", 1),
        ("Verdict: A\nNo, wait.\nVerdict: B", 1), ("A is better", None), ("", None),
        ("My verdict: a clear win for Answer B.", None), ("Verdict: A close call.", None),
        ("verdict: a", 0), ("Verdict: A because it is right", 0), ("Verdict: b is better", 1),
        ("Verdict: answer A wins", 0), ('"Verdict: A".', 0), ("Verdict:\nA\n", 0),
        ("Verdict: A or B", None), ("Verdict: Alpha", None), ("Verdict: A/B", None),
    ],
)  # fmt: skip
def test_the_last_verdict_of_an_answer_counts(text, verdict):
    assert verdict_in(text) == verdict


def test_a_good_judge_is_asked_in_both_orders_and_ranks_the_lanes(home, tmp_path):
    suite(home, [(1, 2, 3), (1, 3, 2), (5, 5, 1), (1, 2, 2)])
    with judging("good") as (address, asked):
        events, found = run(request(address, width=3, votes=votes([1] * 9 + [0])), home, tmp_path)
    # Pairs by hand: base against a: lost, lost, equal (not asked), lost; base against b: lost,
    # lost, won, lost; a against b: lost, won, won, tie by equal answers.
    assert found["lanes"] == list(LANES)
    assert found["wins"] == [[0, 0.5, 1], [3.5, 0, 2.5], [3, 1.5, 0]]
    assert (found["pairs"], found["ties"]) == (12, 2)
    assert found["first"] | {"low": 0, "high": 0} == {
        "count": 10, "of": 20, "rate": 0.5, "low": 0, "high": 0,
    }  # fmt: skip
    assert (found["self_agreement"]["count"], found["self_agreement"]["of"]) == (20, 20)
    assert (found["agreement"]["count"], found["agreement"]["of"]) == (9, 10)
    assert found["evidence"] and not found["why"]
    assert len(asked) == 2 * (10 + 10)
    path, _, body = asked[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("judge-1", 0)
    shown = [one[2]["messages"][0]["content"] for one in asked[:2]]
    assert {text.index("score 1") < text.index("score 2") for text in shown} == {True, False}
    assert "- It answers what was asked, and is right." in shown[0]
    assert events[-1].reason == "completed"


def test_a_judge_that_takes_the_first_is_seen_and_refused_as_evidence(home, tmp_path):
    suite(home, [(1, 2), (2, 1)])
    with judging("first") as (address, _):
        _, found = run(request(address, votes=votes([1] * 12)), home, tmp_path)
    assert (found["first"]["rate"], found["self_agreement"]["rate"]) == (1.0, 0.0)
    assert found["first"]["of"] == 14  # pairs: the two verdicts of one depend on each other
    assert (found["ties"], found["wins"]) == (2, [[0, 1], [1, 0]])
    assert not found["evidence"]
    assert found["why"].startswith("Not evidence: it agrees with you in 0 of 12 votes, and 70%")
    few = summarise(read_verdicts(tmp_path)[9:], min_agreement=0.7)
    assert "compared with 3 of your votes, and 10 are needed" in few["why"]


@pytest.mark.parametrize(
    ("kind", "sentence", "kept"),
    [
        ("babbling", r"None of the judge\'s first 8 answers .*Both have their merits", 4),
        ("down", r"cannot be used: it answered 500\. Check that it runs", 0),
        ("hanging", r"did not answer within 0\.3 s", 0),
        ("html", r"does not answer as OpenAI's API does", 0),
        ("moved", r"cannot be used: it answered 307", 0),
    ],
)
def test_a_judge_that_fails_is_a_sentence(home, tmp_path, kind, sentence, kept):
    suite(home, [(1, 2)] * 6)
    with judging(kind) as (address, _):
        asked = request(address, seconds=0.3 if kind == "hanging" else 10, model="m")
        with pytest.raises(JudgeFailed, match=sentence) as error:
            run(asked, home, tmp_path)
    assert "Traceback" not in error.value.text
    assert len(read_verdicts(tmp_path)) == kept


def test_what_was_judged_stays_and_the_job_resumes(home, tmp_path):
    suite(home, [(1, 2), (2, 1), (3, 1)])
    with judging("good", fails_after=4) as (address, _), pytest.raises(JudgeFailed):
        run(request(address), home, tmp_path)
    assert [row["winner"] for row in read_verdicts(tmp_path)] == [1, 0]
    with judging("good") as (address, asked):
        stops = iter(["stop"])
        events, _ = run(request(address), home, tmp_path, lambda: next(stops, None))
        assert events[-1].reason == "stopped" and not asked
        run(request(address), home, tmp_path)
        assert len(asked) == 2
    assert [row["winner"] for row in read_verdicts(tmp_path)] == [1, 0, 0]
    with pytest.raises(JudgeFailed, match="the connection failed"):
        run(request(address, model="m"), home, tmp_path / "gone")


def test_verdicts_outlive_a_judge_that_does_not_load_and_a_deleted_suite(
    home, tmp_path, monkeypatch
):
    suite(home, [(1, 2), (2, 1)])
    with judging("good") as (address, _):
        asked = request(address, model="m")
        run(asked, home, tmp_path)
        kept = (tmp_path / VERDICTS).read_text()
        (tmp_path / VERDICTS).write_text(kept + '{"half a li')  # a killed process
        monkeypatch.setattr(JudgeRequest, "_judge", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(asked.perform(home, tmp_path))
        assert len(read_verdicts(tmp_path)) == 2
        monkeypatch.undo()
        list(asked.perform(home, tmp_path))
        assert (tmp_path / VERDICTS).read_text() == kept
        (home.run(7) / RESULTS).unlink()
        with pytest.raises(ChatError, match="no two answers to compare: .* keep it until"):
            list(asked.perform(home, tmp_path))
    assert (tmp_path / VERDICTS).read_text() == kept


def test_a_vote_counts_once_and_only_where_the_judge_was_asked():
    def row(number, winner, shown=(0, 1)):
        asked = {"shown": list(shown), "winner": winner, "agree": True}
        return asked | {"lanes": LANES[:2], "vote": 0, "vote_id": number}

    # Vote 1 over three lanes: half agreed. Vote 2: agreed. Vote 3: equal answers, never asked.
    rows = [row(1, 0), row(1, 1), row(2, 0), row(3, "tie", ()) | {"vote": "tie"}]
    found = summarise(rows, min_agreement=0.7)
    assert (found["agreement"]["count"], found["agreement"]["of"]) == (1.5, 2)
    assert "compared with 2 of your votes" in found["why"]
    old = [{key: value for key, value in one.items() if key != "vote_id"} for one in rows]
    assert summarise(old, min_agreement=0.7)["agreement"]["of"] == 3  # before votes had numbers


def test_a_lane_of_this_studio_judges_in_one_batch_without_its_thoughts(
    home, tmp_path, monkeypatch
):
    batches = []

    def stream(lanes):
        batches.append(lanes)
        for place, lane in enumerate(lanes):
            assert lane.sampling.temperature == 0
            thought = Piece("thought", "Verdict: tie")
            said = Piece("text", f"Verdict: {'BA'[place]}")
            yield Delta(lane=place, text="x", pieces=(thought, said))
            yield Delta(lane=place, done=True, reason="stop")

    monkeypatch.setattr(
        "studio.chat.resident_models.ResidentModels",
        lambda *_, **__: SimpleNamespace(stream=stream, release=lambda: None),
    )
    suite(home, [(1, 2)])
    _, found = run(request(""), home, tmp_path)
    assert [len(lanes) for lanes in batches] == [2]
    assert found["wins"] == [[0, 0], [1, 0]]


def test_nothing_leaves_this_machine_unless_allowed(home):
    near = {"allow_remote": False, "offline": True}
    for address in ("http://localhost:1", "http://127.0.0.1:1/v1", "http://[::1]:1/v1/"):
        assert checked_address(address, **near).count("/") == 2
    for far in ("https://judge.example.org", "http://127.0.0.1.example.org", "http://10.0.0.1"):
        with pytest.raises(SpecError, match="another machine: prompts and answers"):
            checked_address(far, **near)
        assert checked_address(far, allow_remote=True, offline=False) == far
        with pytest.raises(SpecError, match="offline"):
            checked_address(far, allow_remote=True, offline=True)
    for wrong in ("", "ftp://127.0.0.1", "127.0.0.1:8000", "http://a:b@127.0.0.1", "http://x:y"):
        with pytest.raises(SpecError, match="is not the address of a judge"):
            checked_address(wrong, **near)
    suite(home, [(1, 2)])
    offline.switch(home, True)
    try:
        with pytest.raises(SpecError, match="offline"):
            request("https://judge.example.org", allow_remote=True).checked(home)
    finally:
        offline.switch(home, False)


def test_a_key_is_sent_and_never_stored(home, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_JUDGE_KEY", "s3cret")
    suite(home, [(1, 2)])
    with judging("good") as (address, asked):
        run(request(address), home, tmp_path)
    assert asked[0][1]["Authorization"] == "Bearer s3cret"
    assert b"s3cret" not in (tmp_path / "judge.jsonl").read_bytes()


def test_a_suite_without_two_answers_is_refused(home):
    suite(home, [(1,)])
    with pytest.raises(ChatError, match="no two answers to compare"):
        request("", width=1).checked(home)


def test_equal_answers_are_a_tie_that_nobody_is_asked_about():
    pair = JudgedPair(prompt="q", answers=("same ", " same"), lanes=LANES[:2])
    assert judged(pair, "", lambda _: pytest.fail("asked"))["winner"] == "tie"


def test_the_judge_reads_the_turns_before_a_question():
    asked = []
    turns = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hi"}]
    pair = JudgedPair.model_validate({"prompt": "Who?", "before": turns, "answers": ["I", "You"]})
    row = judged(pair, "right", lambda prompts: asked.extend(prompts) or ["Verdict: A"] * 2)
    assert row["before"][0]["content"] == "Be terse."
    assert all("System: Be terse.\n\nUser: Hi\n\nUser: Who?" in prompt for prompt in asked)
