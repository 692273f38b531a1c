"""The statistics of a comparison: spread over seeds, paired differences, fronts. Plain Python."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (of a sample, n - 1; None for n = 1) and number of independent values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, half the width of its interval (None for n = 1), and number of pairs."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        """The lower end of the interval."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """The upper end of the interval."""
        return None if self.half is None else self.mean + self.half


def spread(values: Sequence[float]) -> Spread | None:
    """Return the spread of independent values; None of no values."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))


def paired(values: Mapping[str, float], baseline: Mapping[str, float]) -> Difference | None:
    """Compare two groups by the seeds that both have: seed → value.

    A seed decides the initial weights, the order of images and their augmentation; what a pair shares of that
    cancels out. The interval is Student's, mean ± t(n - 1) · s / √n (Student, "The probable error of a mean",
    Biometrika 1908), which takes the differences for normally distributed.
    """
    differences = [values[seed] - baseline[seed] for seed in values if seed in baseline]
    if (found := spread(differences)) is None:
        return None
    half = None
    if found.std is not None:
        half = t_quantile(found.n - 1) * found.std / math.sqrt(found.n)
    return Difference(found.mean, half, found.n)


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return the t that a Student variable stays within, to both sides, with this probability."""
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
    term = total = math.cos(angle) if odd else 1.0
    if freedom == 1:
        total = 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def pareto(points: Sequence[tuple[float, float]], *, cheap_is_low: bool) -> list[int]:
    """Return which of the points (cost, accuracy) no other one beats, by rising cost.

    Args:
        cheap_is_low: False where the first number is a speed.
    """
    sign = 1 if cheap_is_low else -1
    best, front = -math.inf, []
    for index in sorted(range(len(points)), key=lambda i: (sign * points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front
