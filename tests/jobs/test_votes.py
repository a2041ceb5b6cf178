"""Votes are kept one a turn and ranked; recipes are kept by name."""

import pytest

from jobs.conversations import Votes
from jobs.recipes import Recipes
from studio.errors import ChatError, SpecError

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


def test_a_turn_has_one_vote_and_it_can_be_taken_back(votes):
    votes.cast("Hi", PAIR, winner=0, conversation="c", turn=2)
    votes.cast("Hi", PAIR, winner=None, bad=True, conversation="c", turn=2)

    assert [(row["winner"], row["bad"]) for row in votes.list()] == [(None, 1)]
    assert votes.take_back("c", 2)
    assert votes.list() == [] and not votes.take_back("c", 2)


def test_open_votes_can_be_left_out(votes):
    votes.cast("Hi", PAIR, winner=0)

    assert votes.board(blind_only=True)["votes"] == 0


@pytest.mark.parametrize(
    ("lanes", "values", "sentence"),
    [
        (PAIR[:1], {"winner": 0}, "at least two"),
        (PAIR, {"winner": 2}, "no answer 3"),
        (PAIR, {"winner": 0, "bad": True}, "Either one"),
    ],
)
def test_a_vote_that_cannot_be_is_refused(votes, lanes, values, sentence):
    with pytest.raises(ChatError, match=sentence):
        votes.cast("Hi", lanes, **values)
    assert votes.list() == []


def test_a_recipe_is_kept_changed_and_forgotten(store):
    recipes = Recipes(store.database)
    recipes.save("half", "starter", [{"name": "pirate", "weight": 0.5}])
    recipes.save("half", "starter", [{"name": "pirate", "weight": 0.25}])

    assert recipes.get("half")["stack"] == [{"name": "pirate", "weight": 0.25}]
    recipes.delete("half")
    with pytest.raises(ChatError, match='no recipe "half"'):
        recipes.get("half")


@pytest.mark.parametrize(
    ("name", "stack", "error"),
    [
        (" ", [{"name": "a", "weight": 1}], ChatError),
        ("x" * 121, [{"name": "a", "weight": 1}], ChatError),
        ("x", [], ChatError),
        ("x", [{"name": "a", "weight": 99}], SpecError),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(store, name, stack, error):
    with pytest.raises(error):
        Recipes(store.database).save(name, "starter", stack)
