"""Conversations of Compare and the votes on their answers."""

import pytest

from jobs.compare_tables import Conversations, Votes, answered_lanes
from studio.adapter_stack import StackItem, read_lane, write_lane
from studio.errors import ChatError
from studio.evaluation.html_and_csv_exports import title

LANES = [{"model": "starter", "stack": []}]


@pytest.fixture
def kept(store):
    talks = Conversations(store.database)
    talks.save("a", lanes=LANES, settings={"linked": True})
    for number, prompt in enumerate(("Tell me of 100% wool", "And of snow_flakes")):
        talks.save_turn("a", number, prompt=prompt, answers=[{"text": f"answer {number}"}])
    return talks


def test_a_conversation_comes_back_as_it_was(kept):
    found = kept.get("a")

    assert found["lanes"] == LANES and found["settings"] == {"linked": True}
    assert [turn["prompt"] for turn in found["turns"]] == [
        "Tell me of 100% wool", "And of snow_flakes"
    ]  # fmt: skip
    assert found["turns"][1]["answers"] == [{"text": "answer 1"}]
    assert found["title"] == "Tell me of 100% wool"


@pytest.mark.parametrize(
    ("search", "hits"),
    [("wool", 1), ("ANSWER 1", 1), ("0%", 1), ("9%", 0), ("w_f", 1), ("wxf", 0), ("starter", 1)],
)
def test_a_search_reads_prompts_answers_and_lanes_literally(kept, search, hits):
    assert len(kept.list(search=search)) == hits


def test_a_page_that_is_behind_writes_over_no_turn(kept):
    before = kept.get("a")["turns"]
    with pytest.raises(ChatError, match="in another tab"):
        kept.save("a", lanes=[], settings={}, turns=1)
    with pytest.raises(ChatError, match="in another tab"):
        kept.save_turn("a", 1, prompt="Other", answers=[{"text": "x"}])
    assert kept.get("a")["turns"] == before and kept.get("a")["lanes"] == LANES
    kept.save("a", lanes=LANES, settings={}, turns=2)
    kept.save_turn("a", 0, prompt=before[0]["prompt"], answers=[{"text": "x"}])
    assert kept.get("a")["turns"] == [before[0] | {"answers": [{"text": "x"}]}, before[1]]


def test_a_branch_has_the_first_turns_and_leaves_the_old_one_alone(kept):
    branched = kept.branch("a", "b", turns=1)

    assert [turn["prompt"] for turn in branched["turns"]] == ["Tell me of 100% wool"]
    assert branched["parent"] == "a"
    assert len(kept.get("a")["turns"]) == 2
    with pytest.raises(ChatError, match="already"):
        kept.branch("a", "b", turns=1)


def test_votes_and_corrections_are_not_copied(kept):
    voted = {"text": "b", "verdict": "won", "place": 1, "original": "c", "parts": [["text", "b"]]}
    asked = kept.get("a")["turns"][0]["prompt"]
    kept.save_turn("a", 0, prompt=asked, answers=[voted, {"text": "d", "place": 0}])
    (turn,) = kept.branch("a", "b", turns=1)["turns"]
    assert turn["answers"] == [{"text": "b", "parts": [["text", "b"]]}, {"text": "d", "place": 0}]


def test_what_is_deleted_is_gone_and_is_said(kept):
    kept.save("a", lanes=LANES, settings={}, known=True)
    kept.delete("a")
    with pytest.raises(ChatError, match="was deleted: start a new one"):
        kept.save("a", lanes=LANES, settings={}, known=True)

    assert kept.list() == []
    with pytest.raises(ChatError, match='no conversation "a"'):
        kept.get("a")
    with pytest.raises(ChatError, match="no conversation"):
        kept.delete("a")
    with pytest.raises(ChatError, match="was deleted"):
        kept.save_turn("a", 0, prompt="x", answers=[])


PAIR = ["starter", "starter~pirate:1"]


@pytest.fixture
def votes(store):
    return Votes(store.database)


def test_a_vote_is_on_the_board(votes):
    votes.cast("Hi", PAIR, winner=1, blind=True, answers=["a", "b"])

    board = votes.board()
    assert board["votes"] == 1
    assert board["standings"][0]["lane"] == PAIR[1]
    assert board["lanes"] == PAIR and board["wins"] == [[0, 0], [1, 0]]
    assert votes.list()[0]["answers"] == ["a", "b"]
    votes.cast("Hi", PAIR, winner=0)
    assert votes.board()["votes"] == 2
    assert votes.board(blind_only=True)["votes"] == 1, "open votes can be left out"


def test_a_vote_on_one_answer_is_refused(votes):
    with pytest.raises(ChatError, match="at least two"):
        votes.cast("Hi", PAIR[:1], winner=0)
    assert votes.list() == []


def test_lanes_of_one_adapter_are_told_apart_by_their_settings():
    shared = {"system": "", "sampling": {"temperature": 0, "seed": 3}}
    own = {"system": "", "sampling": {"temperature": 0.7, "seed": 9, "top_k": None}}
    terse = {"system": "Be terse. " * 9, "sampling": {"seed": 4}}
    lanes = [{}, {"own": own}, {"own": terse}, {"own": shared | {"sampling": {"seed": 5}}}]
    answers = [{"lane": "starter~pirate:1"}] * 4
    plain, warm, prompted, seeded = answered_lanes(
        {"settings": {"shared": shared}, "lanes": lanes}, answers
    )
    assert plain == seeded == "starter~pirate:1"  # another seed is not another lane
    assert warm == "starter~pirate:1 · temperature 0.7"
    assert prompted.startswith("starter~pirate:1 · system Be terse. Be terse.")
    assert "… " in prompted and read_lane(prompted) == read_lane(plain)
    assert title(warm) == "starter + pirate · temperature 0.7"
    assert answered_lanes({"settings": {}, "lanes": lanes[:1]}, answers[:2]) == [plain] * 2


def test_a_tilde_in_a_models_path_is_no_stack(tmp_path):
    item = StackItem(name="pirate", weight=-0.5)
    model = str(tmp_path / "my~models")
    (tmp_path / "my~models").mkdir()
    assert read_lane(write_lane(model, [item])) == {"model": model, "stack": [item.model_dump()]}
    assert read_lane(model) == {"model": model, "stack": []}
    assert read_lane("starter~pirate")["stack"][0]["name"] == "pirate"
