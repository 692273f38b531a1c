"""The statistics of a comparison: spread over seeds, paired differences, fronts. Plain Python."""

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean of independent values, their standard deviation (of a sample, n - 1), and their number.

    ``half`` is half the width of the mean's 95 % interval, Student's mean ± t(n - 1) · s / √n ("The probable
    error of a mean", Biometrika 1908), which takes the values for normally distributed. One value has neither
    a deviation nor an interval.
    """

    mean: float
    std: float | None
    half: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean."""
        return None if self.half is None else (self.mean - self.half, self.mean + self.half)


def spread(values: Sequence[float]) -> Spread | None:
    """Return the spread of independent values; None of no values."""
    if not values:
        return None
    n = len(values)
    if n == 1:
        return Spread(values[0], None, None, n)
    std = statistics.stdev(values)
    return Spread(statistics.fmean(values), std, t_quantile(n - 1) * std / math.sqrt(n), n)


def paired(values: Mapping[str, float], baseline: Mapping[str, float]) -> Spread | None:
    """Return the spread of the differences between two groups: seed → value, over the seeds that both have.

    A seed decides the initial weights, the order of images and their augmentation; what a pair shares of that
    cancels out.
    """
    return spread([values[seed] - baseline[seed] for seed in values if seed in baseline])


@functools.cache
def t_quantile(freedom: int, confidence: float = 0.95) -> float:
    """Return the two-sided quantile of Student's t: \\|t\\| is below it with probability ``confidence``."""
    low, high = 0.0, math.pi / 2
    for _ in range(100):  # halving the angle atan(t / √ν), which is bounded where t is not
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, freedom) < confidence else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(freedom)


def t_within(angle: float, freedom: int) -> float:
    """Return the probability of \\|t\\| < √ν tan(angle) for ν degrees of freedom, a whole number.

    The finite series of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which of the points (cost, accuracy) no other one beats, by rising cost."""
    best, front = -math.inf, []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front
