"""Bradley-Terry scores and intervals, against cases worked out by hand."""

import math

import pytest

from studio.evaluation.ranking_and_intervals import (
    Match,
    fit,
    half_width,
    leaderboard,
    student_t,
    win_rate,
    wins_of,
)


def votes(*results: tuple[str, str, int]) -> list[Match]:
    """(winner, loser, how often); a winner called `=` makes ties."""
    return [
        Match(lanes=("a", loser) if winner == "=" else (winner, loser),
              winner=None if winner == "=" else 0)
        for winner, loser, times in results for _ in range(times)
    ]  # fmt: skip


def test_three_wins_to_one_are_the_logarithm_of_the_corrected_odds():
    # (3 + 1/2) / (1 + 1/2) = 7/3, so the scores are 400 log10(7/3) = 147.19 apart, around 1000.
    a, b = leaderboard(votes(("a", "b", 3), ("b", "a", 1)))

    assert (a.lane, b.lane) == ("a", "b")
    assert a.score - b.score == pytest.approx(147.19, abs=0.01)
    assert (a.score + b.score) / 2 == pytest.approx(1000)
    # Each strength is half the difference: its deviation is half of sqrt(1/3.5 + 1/1.5) = 0.976,
    # on Elo's scale 1.96 * 0.488 * 173.72 = 166.2.
    assert a.high - a.score == pytest.approx(166.2, abs=0.1)
    assert (a.wins, a.losses, b.wins, b.losses) == (3, 1, 1, 3)


def test_a_win_rate_has_the_interval_of_wilson():
    # 8 of 10: z² = 3.8415, centre (0.8 + 0.19207) / 1.38415 = 0.7167, half 0.2266 (Wilson 1927).
    rate = win_rate(votes(("a", "b", 7), ("=", "b", 2), ("b", "a", 1), ("c", "a", 5)), "a", "b")

    assert (rate["votes"], rate["rate"]) == (10, pytest.approx(0.8))
    assert (rate["low"], rate["high"]) == (
        pytest.approx(0.490, abs=1e-3),
        pytest.approx(0.943, abs=1e-3),
    )
    assert win_rate([], "a", "b") == {"votes": 0, "rate": None, "low": 0.0, "high": 1.0}


def test_a_record_without_a_loss_is_finite_and_uncertain_and_more_votes_narrow_it():
    # 4 to 0: (4.5 / 0.5) = 9, 400 log10(9) = 381.70.
    a, b = leaderboard(votes(("a", "b", 4)))
    assert a.score - b.score == pytest.approx(381.70, abs=0.01)
    assert a.low < b.high
    few, many = (leaderboard(votes(("a", "b", 3 * n), ("b", "a", 2 * n)))[0] for n in (1, 100))
    assert (many.high - many.low) * 5 < few.high - few.low


def test_draws_circles_bad_answers_and_lanes_that_never_met():
    a, b = leaderboard(votes(("=", "b", 5)))
    assert a.score == b.score == pytest.approx(1000)
    assert (a.ties, b.ties) == (5, 5)
    assert wins_of(votes(("=", "b", 1)))[1] == [[0, 0.5], [0.5, 0]], "half a win each way"
    circle = leaderboard(votes(("a", "b", 2), ("b", "c", 2), ("c", "a", 2)))
    assert [one.score for one in circle] == pytest.approx([1000, 1000, 1000])
    a, b = leaderboard([Match(lanes=("a", "b"), bad=True)])
    assert (a.ties, a.bad, b.bad) == (1, 1, 1)
    apart = leaderboard(votes(("a", "b", 1), ("c", "d", 1)))
    assert [one.group for one in apart] == [0, 0, 1, 1]
    assert leaderboard([]) == []
    lanes, table = wins_of([Match(lanes=("a", "b", "c"), winner=2)])
    assert (lanes, table) == (["a", "b", "c"], [[0, 0, 0], [0, 0, 0], [1, 1, 0]])


def test_a_chain_adds_up():
    # No game of a against c: the odds of a over b and of b over c multiply, each (2.5 / 1.5).
    strengths, _ = fit([[0, 2, 0], [1, 0, 2], [0, 1, 0]])

    assert strengths[0] - strengths[1] == pytest.approx(math.log(2.5 / 1.5))
    assert strengths[0] - strengths[2] == pytest.approx(2 * math.log(2.5 / 1.5))


def test_expected_wins_equal_the_wins_that_were_counted():
    wins = [[0, 5, 1], [2, 0, 4], [3, 1, 0]]
    strengths, _ = fit(wins)

    for i in range(3):
        expected = sum(
            (wins[i][j] + wins[j][i] + 1) / (1 + math.exp(strengths[j] - strengths[i]))
            for j in range(3) if j != i
        )  # fmt: skip
        assert expected == pytest.approx(sum(wins[i]) + 2 * 0.5, abs=1e-6)


def test_a_vote_between_lanes_of_one_name_is_no_game():
    one = leaderboard([Match(lanes=("a", "a"), winner=0)] * 3 + [Match(lanes=("a", "b"), winner=1)])
    assert {(s.lane, s.wins, s.losses) for s in one} == {("a", 0, 1), ("b", 1, 0)}
    assert leaderboard([Match(lanes=("a", "a"), winner=0)]) == []
    assert wins_of([Match(lanes=("a", "a"), winner=0)]) == ([], [])


def test_the_quantile_is_that_of_published_tables():
    known = {
        1: 12.706,
        2: 4.303,
        4: 2.776,
        5: 2.571,
        8: 2.306,
        9: 2.262,
        12: 2.179,
        30: 2.042,
        120: 1.980,
    }
    assert {n: round(student_t(n), 3) for n in known} == known
    assert half_width([1.0]) is None
    assert half_width([0.0, 1.0] * 15) == pytest.approx(2.0452 * 0.5085 / 30**0.5, rel=1e-3)
