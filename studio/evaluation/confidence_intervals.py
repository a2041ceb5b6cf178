"""95 % confidence intervals of means and shares."""

import math
from collections.abc import Sequence
from statistics import stdev

NORMAL_95 = 1.959963984540054
STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)  # of 1 to 8 degrees


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
