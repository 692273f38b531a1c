"""The arithmetic of a comparison, against published tables and numbers worked out by hand."""

import math

import pytest

from vitlab.compare.statistics import Spread, paired, pareto, spread, t_quantile


# Two-sided 95 %: Fisher and Yates, Statistical Tables for Biological, Agricultural and Medical Research, III.
@pytest.mark.parametrize(
    ("freedom", "expected"),
    [
        *((1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (6, 2.447), (9, 2.262)),
        *((10, 2.228), (15, 2.131), (30, 2.042), (60, 2.000), (120, 1.980)),
    ],
)
def test_t_quantiles_are_those_of_the_tables(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, abs=6e-4)


def test_t_quantile_of_one_and_two_degrees_has_a_closed_form() -> None:
    assert t_quantile(1, 0.5) == pytest.approx(1.0)  # Cauchy's quartile
    assert t_quantile(2, 0.9) == pytest.approx(0.9 * math.sqrt(2 / (1 - 0.81)))


def test_the_spread_is_that_of_a_sample() -> None:
    found = spread([0.1, 0.2, 0.6])
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(0.3), 3)
    assert found.std == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert spread([0.5]) == Spread(mean=0.5, std=None, half=None, n=1)
    assert spread([]) is None


def test_only_seeds_in_both_are_paired() -> None:
    found = paired({"1": 0.52, "2": 0.60, "3": 0.9}, {"2": 0.56, "1": 0.5, "7": 0.1})
    assert found is not None
    assert found.n == 2
    assert found.mean == pytest.approx(0.03)
    # s of (0.02, 0.04) is 0.0141…; t(1) · s / √2
    assert found.half == pytest.approx(12.7062 * 0.01, rel=1e-4)
    assert found.interval == pytest.approx((0.03 - 0.127062, 0.03 + 0.127062), rel=1e-4)


def test_a_difference_that_every_seed_shares_has_a_narrow_interval_however_far_the_seeds_lie_apart() -> None:
    base = {"1": 0.1, "2": 0.5, "3": 0.9}
    found = paired({seed: value + 0.01 for seed, value in base.items()}, base)
    assert found is not None
    assert found.half == pytest.approx(0, abs=1e-9)
    assert found.mean == pytest.approx(0.01)


def test_one_pair_has_no_interval_and_no_pair_nothing() -> None:
    one = paired({"1": 0.6}, {"1": 0.5})
    assert one is not None
    assert (one.half, one.interval, one.n) == (None, None, 1)
    assert paired({"1": 0.6}, {"2": 0.5}) is None


def test_the_front_is_what_nothing_beats() -> None:
    points = [(3.0, 0.7), (1.0, 0.5), (2.0, 0.4), (2.0, 0.6), (4.0, 0.7), (1.0, 0.3)]
    assert pareto(points) == [1, 3, 0]
    assert pareto([(-cost, value) for cost, value in points]) == [4], "as speeds: the fastest is the best"
    assert pareto([(-3.0, 0.5), (-1.0, 0.9), (-2.0, 0.4)]) == [0, 1]
