"""The arithmetic of a comparison: against numbers worked out by hand, and against studies of known truth."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import norm, t, ttest_ind

from vitlab.compare.statistics import (
    LEVEL,
    Difference,
    Spread,
    contrast,
    correct_best,
    judge,
    needed_pairs,
    paired,
    pareto,
    power,
    smallest_effect,
    spread,
)


def difference(*values: float) -> Difference:
    found = paired(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))  # type: ignore[arg-type]
    assert found
    return found


def test_the_spread_is_that_of_a_sample() -> None:
    found = spread([0.1, 0.2, 0.6])
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(0.3), 3)
    assert found.std == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert spread([0.5]) == Spread(mean=0.5, std=None, n=1)
    assert spread([]) is None


def test_means_of_runs_that_are_not_paired_are_compared_as_welch_does() -> None:
    one, other = [0.61, 0.64, 0.60, 0.66], [0.55, 0.58, 0.52]
    found = contrast(spread(one), spread(other))  # type: ignore[arg-type]
    theirs = ttest_ind(one, other, equal_var=False).confidence_interval()
    assert found.interval == pytest.approx((theirs.low, theirs.high))
    beyond = ttest_ind([value - 0.1 for value in one], other, equal_var=False, alternative="less")
    assert found.p_equal(0.1) == pytest.approx(beyond.pvalue)


def test_a_single_run_is_compared_by_the_spread_of_the_other_side() -> None:
    single, several = Spread(0.6, None, 1), Spread(0.5, 0.02, 4)
    low, high = contrast(single, several).interval or (0, 0)
    assert (high - low) / 2 == pytest.approx(t.ppf(0.975, 3) * 0.02 * math.sqrt(1 + 1 / 4))
    assert (high + low) / 2 == pytest.approx(0.1)
    assert contrast(several, single).interval == pytest.approx((-high, -low))
    assert contrast(single, single).interval is None
    assert contrast(single, single).p_equal(0.1) == 1, "nothing is known of chance"
    same = contrast(Spread(0.6, 0.0, 3), Spread(0.55, 0.0, 2))
    assert (same.interval, same.p_equal(0.06), same.p_equal(0.04)) == (pytest.approx((0.05, 0.05)), 0, 1)


def test_only_seeds_in_both_are_paired() -> None:
    found = paired({"1": 0.52, "2": 0.60, "3": 0.9}, {"2": 0.56, "1": 0.5, "7": 0.1})
    assert found is not None
    assert found.n == 2
    assert found.mean == pytest.approx(0.03)
    # s of (0.02, 0.04) is 0.0141…; t(1) · s / √2
    assert found.interval == pytest.approx((0.03 - 0.127062, 0.03 + 0.127062), rel=1e-4)
    assert paired({"1": 0.6}, {"2": 0.5}) is None


def test_a_difference_that_every_seed_shares_is_known_exactly_however_far_the_seeds_lie_apart() -> None:
    base = {str(seed): seed / 10 for seed in range(6)}
    found = paired({seed: value + 0.01 for seed, value in base.items()}, base)
    assert found is not None
    assert found.interval == pytest.approx((0.01, 0.01))
    assert found.p_equal(0.02) == 0
    assert found.p_equal(0.005) == 1
    assert judge([found], 0.005)[0].verdict == "better"


def test_one_pair_has_no_interval() -> None:
    assert difference(0.1).interval is None
    assert difference(0.1).p_equal(0.2) == 1


def test_the_interval_of_a_skewed_sample_leans_as_the_sample_does() -> None:
    low, high = difference(*[0.0] * 7, 0.1, 0.2, 1.0).interval or (0, 0)
    assert low < 0.13 < high
    assert high - 0.13 > 1.5 * (0.13 - low), "Student's would be as wide on both sides"


def test_the_sign_flip_test_counts_the_choices_of_signs() -> None:
    assert difference(1, 2, 3, 4, 5).p_value("greater") == 1 / 32, "all of one sign"
    assert difference(-1, 2, 3, 4, 5).p_value("greater") == 2 / 32, "only the sample and all positive"
    assert difference(-1, -2, -3, -4, -5).p_value("less") == 1 / 32
    assert difference(1, 2, 3).p_value("greater") == 1 / 8
    assert difference(0, 0, 0, 0, 0).p_value("greater") == 1


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((1, 2, 3, 4, 5), "better"),
        ((-1, -2, -3, -4, -5), "worse"),
        ((1, 2, 3, 4), "too few seeds"),
        ((-3, 2, 3, -1, 1), "not told apart"),
        ((-0.1, 0.2, 0.1, -0.1, 0.05), "equal"),
    ],
)
def test_a_difference_gets_its_word(values: tuple[float, ...], verdict: str) -> None:
    (found,) = judge([difference(*values)], margin=0.5)
    assert found.verdict == verdict


def test_a_claim_pays_for_all_comparisons_made() -> None:
    clear, noise = difference(1, 2, 3, 4, 5), difference(-3, 2, 3, -1, 1)
    assert judge([clear], 0.1)[0].verdict == "better"
    (first, _) = judge([clear, noise], 0.1)
    assert (first.p, first.p_adjusted, first.verdict) == (1 / 32, 2 / 32, "not told apart")


@pytest.mark.parametrize("effect", [1.0, 2.0])
def test_the_power_of_five_pairs_is_that_all_five_are_of_one_sign(effect: float) -> None:
    assert power(effect, 5) == pytest.approx(norm.cdf(effect) ** 5, abs=0.04)
    assert power(effect, 4) == 0
    assert power(effect, 5, comparisons=2) == 0


def test_what_is_planned_is_found_as_often_as_planned() -> None:
    effect = smallest_effect(8)
    assert effect is not None
    assert power(effect, 8) == pytest.approx(0.8, abs=0.02)
    pairs = needed_pairs(1.0)
    assert pairs is not None
    assert power(1.0, pairs) >= 0.8 > power(1.0, pairs - 1)
    assert needed_pairs(1.0, comparisons=10) > pairs  # type: ignore[operator]
    assert smallest_effect(5, comparisons=2) is None
    assert needed_pairs(0.01) is None


def test_the_best_of_many_is_corrected_for_having_been_chosen() -> None:
    drawn = np.random.default_rng(0).normal(0.8, 0.01, (50, 10, 5))  # (studies, groups that are alike, seeds)
    studies = [[dict(enumerate(map(float, seeds))) for seeds in groups] for groups in drawn]
    luck = float(drawn.mean(2).max(1).mean()) - 0.8
    left = float(np.mean([correct_best(groups) for groups in studies])) - 0.8  # type: ignore[arg-type]
    assert 0 < left < 0.6 * luck
    clear = [{"1": 0.9, "2": 0.91}, {"1": 0.1, "2": 0.11}]
    assert correct_best(clear) == pytest.approx(0.905, abs=1e-3), "no luck in what is clear"
    assert correct_best([{"1": 0.5}, {"1": 0.6}]) is None


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 3])
def test_of_studies_of_noise_one_in_twenty_has_a_false_better(groups: int) -> None:
    # (studies, the baseline and the groups, seeds)
    drawn = np.random.default_rng(groups).standard_normal((2000, groups + 1, 6))
    false = {"better": 0, "worse": 0}
    for base, *others in drawn:
        words = {found.verdict for found in judge([difference(*(other - base)) for other in others], 0.01)}
        for word in false:
            false[word] += word in words
    assert false["better"] <= LEVEL * 2000
    # The mirror image, so exact but for the luck of 2,000 draws: three standard errors.
    assert false["worse"] <= LEVEL * 2000 + 30
    assert groups > 1 or false["better"] > 0.03 * 2000, "and it is not blind"


@pytest.mark.slow
def test_the_power_that_is_printed_is_that_of_the_verdict() -> None:
    # Two standard deviations of a run; the difference of two runs has √2 of them.
    drawn = np.random.default_rng(1).standard_normal((2000, 2, 5))
    drawn[:, 0] += 2
    found = [judge([difference(*(one - base))], 0.01)[0].verdict for one, base in drawn]
    assert found.count("better") / 2000 == pytest.approx(power(math.sqrt(2), 5), abs=0.04)


# Hold-out accuracies of ten real runs of one config, seeds 0 to 9: experiments/pooling.
ONE_CONFIG = (0.7540, 0.7530, 0.7534, 0.7626, 0.7542, 0.7580, 0.7504, 0.7546, 0.7560, 0.7618)


def test_of_ten_real_runs_of_one_config_neither_half_is_better() -> None:
    said = Counter[str]()
    for half in itertools.combinations(range(10), 5):
        other = [seed for seed in range(10) if seed not in half]
        one, two = ({str(i): ONE_CONFIG[seed] for i, seed in enumerate(part)} for part in (half, other))
        found = paired(one, two)
        assert found
        (judgement,) = judge([found], 0.005)
        said[judgement.verdict] += 1
        if half == (0, 1, 2, 3, 4):
            assert judgement.verdict == "not told apart"
    assert said["better"] == said["worse"] <= 0.05 * said.total()


def test_the_front_is_what_nothing_beats() -> None:
    points = [(3.0, 0.7), (1.0, 0.5), (2.0, 0.4), (2.0, 0.6), (4.0, 0.7), (1.0, 0.3)]
    assert pareto(points) == [1, 3, 0]
    assert pareto([(-cost, value) for cost, value in points]) == [4], "as speeds: the fastest is the best"
    assert pareto([(-3.0, 0.5), (-1.0, 0.9), (-2.0, 0.4)]) == [0, 1]
