"""What the Compare page can do, from the command line: one JSON document, one sentence."""

import json

import pytest

from jobs.conversations import Conversations
from studio.stack import read_lane
from ui.cli.main import main

LANES = [{"model": "starter", "stack": []}, {"model": "starter", "stack": [{"name": "p"}]}]


@pytest.fixture
def talk(store, home, monkeypatch):
    """A kept conversation of two lanes."""
    monkeypatch.setenv("STUDIO_HOME", str(home.path))
    kept = Conversations(store.database)
    kept.save("abc", lanes=LANES, settings={})
    answers = [{"text": "moo", "lane": "starter"}, {"text": "arr", "lane": "starter~p:1"}]
    kept.save_turn("abc", 0, prompt="What says a cow?", answers=answers)
    return "abc"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, object]:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json"])
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


def test_a_vote_is_cast_ranked_and_taken_back(talk, store, capsys):
    assert said(capsys, "vote", talk, "1", "b")[0] == 0
    _, board = said(capsys, "leaderboard")
    assert [one["lane"] for one in board["standings"]] == ["starter~p:1", "starter"]
    verdicts = [
        a["verdict"] for a in Conversations(store.database).get(talk)["turns"][0]["answers"]
    ]
    assert verdicts == ["lost", "won"]

    said(capsys, "vote", talk, "1", "none")
    assert said(capsys, "leaderboard")[1]["votes"] == 0
    assert "verdict" not in Conversations(store.database).get(talk)["turns"][0]["answers"][0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("vote", "abc", "1", "C"), "Invalid verdict"),
        (("vote", "abc", "2", "A"), "no turn 2"),
        (("vote", "xyz", "1", "A"), "no conversation"),
        (("conversations", "--show", "xyz"), "no conversation"),
        (("recipes", "--delete", "xyz"), "no recipe"),
        (("recipes", "--save", "xyz", "--lane", "starter"), "at least one adapter"),
        (("promote", "1@5"), "has no checkpoint"),
        (("promote", "last"), "not a checkpoint"),
        (("suite", "--show", "9"), "9"),
        (("suite", "/no/such/file"), "cannot be read"),
        (("leaderboard", "--out", "x.pdf"), "must end in"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(talk, capsys, words, sentence):
    code, answer = said(capsys, *words)

    assert code == 2
    assert sentence in answer["error"]["text"]


def test_conversations_are_found_shown_and_deleted(talk, capsys):
    assert said(capsys, "conversations", "--search", "COW")[1][0]["id"] == talk
    assert said(capsys, "conversations", "--show", talk)[1]["turns"][0]["prompt"]
    said(capsys, "conversations", "--delete", talk)
    assert said(capsys, "conversations")[1] == []


def test_a_recipe_is_kept_as_a_lane_is_written(talk, capsys):
    _, kept = said(capsys, "recipes", "--save", "half", "--lane", "starter~p:0.5+a%20b:-1")

    assert kept[0]["stack"] == [{"name": "p", "weight": 0.5}, {"name": "a b", "weight": -1.0}]


def test_a_leaderboard_is_written_as_a_page(talk, capsys, tmp_path):
    said(capsys, "vote", talk, "1", "tie")
    said(capsys, "leaderboard", "--out", str(tmp_path / "board.html"))

    assert "Leaderboard" in (tmp_path / "board.html").read_text()


def test_a_lane_without_a_stack_is_the_base():
    assert read_lane("starter") == {"model": "starter", "stack": []}
