"""The statistics of a comparison: spreads over seeds, paired tests, what they can tell, and fronts.

The protocol is that of "When +1% Is Not Enough" (arXiv 2511.19794): paired seeds, a BCa bootstrap interval
and an exact sign-flip test. scipy takes a second to import, so it is imported where it is used.
"""

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitlab.core.multiple_tests import holm

LEVEL = 0.05  # how often a claim may be wrong by chance
FEWEST = 5  # pairs that can tell anything: of four, all of one sign, the test's p is 1/16
TOO_FEW, OPEN = "too few seeds", "not told apart"  # the verdicts that more seeds may change
WORDS = ("better", "worse", "equal", OPEN, TOO_FEW)  # all of them, as they are listed
POWER = 0.8  # with which a difference counts as one that a study can tell
RESAMPLES = 9_999
FLIPS = 2**14  # sign flips: all of up to 14 pairs, and as many drawn at random of more
MOST_SEEDS = 100  # that are ever asked for
STUDIES = 1_000  # simulated to find a power
PLANNED_FLIPS = 2**12  # in a simulated study


@dataclass(frozen=True)
class Spread:
    """Mean of independent values, their standard deviation (n - 1; None of one value), and their number."""

    mean: float
    std: float | None
    n: int


def spread(values: Sequence[float]) -> Spread | None:
    """Return the spread of independent values; None of no values."""
    if not values:
        return None
    return Spread(statistics.fmean(values), _deviation(values), len(values))


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Difference(Spread):
    """What one group has over another, seed by seed, in accuracy (0..1)."""

    values: tuple[float, ...]

    @property
    def is_constant(self) -> bool:
        """Whether every pair differs by the same, but for rounding."""
        return self.n > 1 and max(self.values) - min(self.values) < 1e-12

    @functools.cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean; None of one pair.

        By the bootstrap, bias-corrected and accelerated (BCa: Efron 1987, "Better bootstrap confidence
        intervals"). Of fewer than five pairs, whose resamples are too few, Student's.
        """
        if self.n == 1:
            return None
        if self.is_constant:
            return self.mean, self.mean
        from scipy.stats import bootstrap, ttest_1samp

        if self.n < FEWEST:
            found = ttest_1samp(self.values, 0).confidence_interval(1 - LEVEL)
        else:
            found = bootstrap(
                (self.values,),
                np.mean,
                confidence_level=1 - LEVEL,
                n_resamples=RESAMPLES,
                method="BCa",
                rng=0,
            ).confidence_interval
        return float(found.low), float(found.high)

    def p_value(self, alternative: str) -> float:
        """Return the p-value of the exact sign-flip test against a mean of zero.

        If a seed's difference were luck it could as well have had the other sign: the p-value is the share of
        all 2^n choices of signs that give a mean as large. Source: Fisher 1935, The Design of Experiments,
        section 21.

        Args:
            alternative: ``greater`` (than zero) or ``less``.
        """
        if self.n == 1:
            return 0.5 if (self.mean > 0) == (alternative == "greater") and self.mean else 1.0
        from scipy.stats import permutation_test

        return float(
            permutation_test(
                (self.values,),
                np.mean,
                permutation_type="samples",
                alternative=alternative,
                n_resamples=FLIPS,
                vectorized=True,
                rng=0,
            ).pvalue
        )

    def p_equal(self, margin: float) -> float:
        """Return the p-value against a mean outside ±margin, of two one-sided t-tests (Schuirmann 1987)."""
        if self.n == 1:
            return 1.0
        if self.is_constant:
            return float(abs(self.mean) >= margin)
        from scipy.stats import ttest_1samp

        above = ttest_1samp(self.values, -margin, alternative="greater").pvalue
        below = ttest_1samp(self.values, margin, alternative="less").pvalue
        return float(max(above, below))


def paired(values: Mapping[str, float], baseline: Mapping[str, float]) -> Difference | None:
    """Return the differences between two groups, seed → value, over the seeds that both have; None of none.

    A seed decides the initial weights, the order of images and their augmentation; what a pair shares of that
    cancels out.
    """
    found = tuple(value - baseline[seed] for seed, value in values.items() if seed in baseline)
    return Difference(statistics.fmean(found), _deviation(found), len(found), found) if found else None


@dataclass(frozen=True)
class Contrast:
    """The mean of one set of runs less that of another, which are not paired.

    Attributes:
        error: the standard error; None where neither side has a spread.
        freedom: its degrees of freedom.
    """

    mean: float
    error: float | None = None
    freedom: float = 1

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, by Student's t; None where no spread is known."""
        if self.error is None:
            return None
        from scipy.stats import t

        half = float(t.ppf(1 - LEVEL / 2, self.freedom)) * self.error
        return self.mean - half, self.mean + half

    def p_equal(self, margin: float) -> float:
        """Return the p-value against a difference outside ±margin, of two one-sided t-tests."""
        if self.error is None:
            return 1.0
        if self.error == 0:
            return float(abs(self.mean) >= margin)
        from scipy.stats import t

        return float(t.sf((margin - abs(self.mean)) / self.error, self.freedom))


def contrast(one: Spread, other: Spread) -> Contrast:
    """Return the difference of two means, with Welch's standard error and degrees of freedom.

    A single value has no spread: that of the other side stands for it, as in Student's test.
    Source: Welch 1947, "The generalization of Student's problem when several different population variances
    are involved".
    """
    mean = one.mean - other.mean
    match [(side.std, side.n) for side in (one, other) if side.std is not None]:
        case [(a, n), (b, m)]:
            parts = [a**2 / n, b**2 / m]
            below = parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1)
            return Contrast(mean, math.sqrt(sum(parts)), sum(parts) ** 2 / below if below else 1)
        case [(std, n)]:
            return Contrast(mean, std * math.sqrt(1 / one.n + 1 / other.n), n - 1)
        case _:
            return Contrast(mean)


@dataclass(frozen=True)
class Judgement:
    """What can be said of a difference.

    p: of the sign-flip test in the direction seen. p_adjusted: after Holm's correction for all comparisons.
    """

    p: float
    p_adjusted: float
    verdict: str  # one of ``WORDS``


def judge(differences: Sequence[Difference], margin: float) -> list[Judgement]:
    """Judge all differences of a study at once.

    Each claim (better, worse, equal within the margin) is made at 5 % over the whole study: with no true
    difference anywhere at most one study in twenty has any false "better".

    Args:
        margin: within which two groups count as equal.
    """
    better = [found.p_value("greater") for found in differences]
    worse = [found.p_value("less") for found in differences]
    tests = zip(better, holm(better), worse, holm(worse), strict=True)
    equal = holm([found.p_equal(margin) for found in differences])
    judged = []
    for found, (up, up_adjusted, down, down_adjusted), same in zip(differences, tests, equal, strict=True):
        p, adjusted, word = (up, up_adjusted, "better") if up <= down else (down, down_adjusted, "worse")
        if found.n < FEWEST:
            word = TOO_FEW
        elif adjusted > LEVEL:
            word = "equal" if same <= LEVEL else OPEN
        judged.append(Judgement(p, adjusted, word))
    return judged


@functools.cache
def power(effect: float, pairs: int, comparisons: int = 1) -> float:
    """Return how often so many pairs of seeds find a true difference: simulated, with normal differences.

    Args:
        effect: the mean difference as a multiple of the differences' standard deviation.
        comparisons: of the study: the first of Holm's steps asks for 5 % over their number.
    """
    level = LEVEL / comparisons
    if pairs < FEWEST or 2.0**-pairs > level:
        return 0.0
    random = np.random.default_rng(0)
    drawn = effect + random.standard_normal((STUDIES, pairs))
    if 2**pairs <= PLANNED_FLIPS:
        signs = 1.0 - 2 * (np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1)
    else:
        signs = np.vstack([np.ones(pairs), random.choice([-1.0, 1.0], (PLANNED_FLIPS - 1, pairs))])
    flipped = drawn @ signs.T  # (studies, flips), the first as they are
    p_values = (flipped >= flipped[:, :1] - 1e-9).mean(1)
    return float((p_values <= level).mean())


def smallest_effect(pairs: int, comparisons: int = 1) -> float | None:
    """Return the smallest effect that so many pairs find in 80 % of studies; None where there is none."""
    low, high = 0.0, 16.0
    if power(high, pairs, comparisons) < POWER:
        return None
    while high - low > 0.02:
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, pairs, comparisons) < POWER else (low, middle)
    return high


def needed_pairs(effect: float, comparisons: int = 1) -> int | None:
    """Return how many pairs find an effect in 80 % of studies; None where it takes more than 100."""
    if power(effect, MOST_SEEDS, comparisons) < POWER:
        return None
    low, high = FEWEST - 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(effect, middle, comparisons) < POWER else (low, middle)
    return high


def correct_best(groups: Sequence[Mapping[str, float]]) -> float | None:
    """Return the highest mean over seeds, corrected for having been chosen among all.

    The highest of several means is in part luck. The bootstrap repeats the choice: seeds are drawn anew, and
    what the group that is then the best has over its own mean is, on average, the luck (the optimism of
    Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 17.6).

    Args:
        groups: seed → value; seeds that not all have are left out.

    Returns:
        None where they share fewer than two seeds.
    """
    seeds = functools.reduce(lambda one, other: [s for s in one if s in other], groups[1:], [*groups[0]])
    if (n := len(seeds)) < 2:
        return None
    values = np.array([[group[seed] for seed in seeds] for group in groups])  # (groups, seeds)
    means = values.mean(1)
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    # Resamples of n values vary less than samples do, by (n - 1) / n.
    shifts = (values[:, drawn].mean(2) - means[:, None]) * math.sqrt(n / (n - 1))  # (groups, resamples)
    chosen = (means[:, None] + shifts).argmax(0)
    return float(means.max() - shifts[chosen, np.arange(RESAMPLES)].mean())


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which of the points (cost, accuracy) no other one beats, by rising cost."""
    best, front = -math.inf, []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front
