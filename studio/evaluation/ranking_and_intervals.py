"""Rankings of lanes from votes (Bradley-Terry, on Elo's scale), and 95 % confidence intervals.

`P(a beats b) = 1 / (1 + 10^((score_b - score_a) / 400))`. A vote among several lanes is one game of
the winner against each other lane; a tie is half a win each way. Every pair that met gets half a
win more each way (the Haldane-Anscombe correction), so a record without a loss has a finite score.
With two lanes, `w` wins to `l`, the strengths differ by `ln((w + ½) / (l + ½))` with the variance
`1 / (w + ½) + 1 / (l + ½)`: the tests work these out by hand. Scores of lanes that never met, not
even through others, cannot be compared: such lanes are in different groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import stdev
from typing import Any

SCALE = 400 / math.log(10)
CENTRE = 1000.0
EXTRA = 0.5
ROUNDS = 100
NORMAL_95 = 1.959963984540054
STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)  # of 1 to 8 degrees


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """One vote: the lanes and the winner's place among them; None for a tie."""

    lanes: tuple[str, ...]
    winner: int | None = None
    bad: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """One lane's score, 95 % interval and votes; `rate` is the share of its games that it won."""

    lane: str
    score: float
    low: float
    high: float
    rate: float
    wins: int
    losses: int
    ties: int
    bad: int
    group: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values with rounded scores."""
        rounded = {name: round(getattr(self, name), 1) for name in ("score", "low", "high")}
        return asdict(self) | rounded


def met(matches: Sequence[Match]) -> list[Match]:
    """Return the votes among different lanes: a lane cannot win against itself."""
    return [match for match in matches if len({*match.lanes}) > 1]


def wins_of(matches: Sequence[Match]) -> tuple[list[str], list[list[float]]]:
    """Return the lanes and the wins of the row's lane over the column's; a tie is half a win."""
    lanes = list(dict.fromkeys(lane for match in met(matches) for lane in match.lanes))
    place = {lane: i for i, lane in enumerate(lanes)}
    table = [[0.0] * len(lanes) for _ in lanes]
    for match in met(matches):
        for a, b in _games(match):
            won, lost = place[match.lanes[a]], place[match.lanes[b]]
            if won != lost:
                table[won][lost] += 1.0 if match.winner is not None else 0.5
    return lanes, table


def leaderboard(matches: Sequence[Match]) -> list[Standing]:
    """Return every lane with votes, by group, the best first."""
    matches = met(matches)
    lanes, table = wins_of(matches)
    standings = []
    for number, group in enumerate(_groups(table)):
        strengths, deviations = fit([[table[a][b] for b in group] for a in group])
        for row, a in enumerate(group):
            score, spread = strengths[row] * SCALE, deviations[row] * SCALE * NORMAL_95
            won, lost = sum(table[a]), sum(row[a] for row in table)
            standings.append(Standing(
                lane=lanes[a], score=CENTRE + score, low=CENTRE + score - spread,
                high=CENTRE + score + spread, rate=won / (won + lost), group=number,
                **_record(lanes[a], matches),
            ))  # fmt: skip
    return sorted(standings, key=lambda one: (one.group, -one.score, one.lane))


def fit(wins: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Return the maximum-likelihood strengths (their sum is 0) and standard deviations.

    Newton's method on a concave likelihood; the deviations come from the inverse of the observed
    information within the strengths that sum to zero.
    """
    import numpy as np

    won = np.asarray(wins, dtype=float)
    won = won + EXTRA * ((won + won.T) > 0)
    games = won + won.T
    count = len(won)
    theta = np.zeros(count)
    if count < 2:
        return [0.0] * count, [0.0] * count
    for _ in range(ROUNDS):
        chance = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))
        slope = (won - games * chance).sum(1)
        weight = games * chance * (1 - chance)
        information = np.diag(weight.sum(1)) - weight
        covariance = np.linalg.pinv(information)
        step = covariance @ slope
        theta = theta + step / max(1.0, float(np.abs(step).max()))
        if float(np.abs(step).max()) < 1e-10:
            break
    theta = theta - theta.mean()
    return theta.tolist(), np.sqrt(np.diag(covariance).clip(0)).tolist()


def win_rate(matches: Sequence[Match], lane: str, other: str) -> dict[str, Any]:
    """Return the share of votes that a lane won against another one, with its 95 % interval.

    A tie is half a win, and a vote that a third lane won does not count.
    """
    met = [m for m in matches if lane in m.lanes and other in m.lanes]
    winners = [None if m.winner is None else m.lanes[m.winner] for m in met]
    won, lost, ties = (winners.count(who) for who in (lane, other, None))
    count = won + lost + ties
    if not count:
        return {"votes": 0, "rate": None, "low": 0.0, "high": 1.0}
    rate = (won + ties / 2) / count
    low, high = wilson(rate, count)
    return {"votes": count, "rate": rate, "low": low, "high": high}


def _games(match: Match) -> list[tuple[int, int]]:
    places = range(len(match.lanes))
    if match.winner is not None:
        return [(match.winner, other) for other in places if other != match.winner]
    return [(a, b) for a in places for b in places if a != b]


def _groups(table: Sequence[Sequence[float]]) -> list[list[int]]:
    """Return the groups of lanes that met, directly or through others, the largest first."""
    left, groups = set(range(len(table))), []
    while left:
        found, open_ = set(), [min(left)]
        while open_:
            a = open_.pop()
            if a not in found:
                found.add(a)
                open_ += [b for b in left - found if table[a][b] + table[b][a] > 0]
        groups.append(sorted(found))
        left -= found
    return sorted(groups, key=lambda group: (-len(group), group))


def _record(lane: str, matches: Sequence[Match]) -> dict[str, int]:
    own = [match for match in matches if lane in match.lanes]
    ties = [match for match in own if match.winner is None]
    wins = sum(match.winner is not None and match.lanes[match.winner] == lane for match in own)
    losses, bad = len(own) - len(ties) - wins, sum(match.bad for match in ties)
    return {"wins": wins, "losses": losses, "ties": len(ties), "bad": bad}


# -- confidence intervals --------------------------------------------------------------------------


def student_t(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5.
    """
    if degrees <= len(STUDENT_95):
        return STUDENT_95[degrees - 1]
    z = NORMAL_95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def half_width(values: Sequence[float]) -> float | None:
    """Return half of the 95 % interval of a mean by Student's t; None for fewer than two values."""
    size = len(values)
    return student_t(size - 1) * stdev(values) / math.sqrt(size) if size > 1 else None


def wilson(rate: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval (1927) of a share that was seen in `count` trials."""
    square = NORMAL_95**2
    middle = rate + square / (2 * count)
    spread = NORMAL_95 * math.sqrt(rate * (1 - rate) / count + square / (4 * count**2))
    return (middle - spread) / (1 + square / count), (middle + spread) / (1 + square / count)
