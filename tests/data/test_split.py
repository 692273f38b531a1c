"""Hold-outs: exact counts, the shares of the classes, one seed one split."""

import numpy as np
import pytest

from vitlab.core.errors import UserError
from vitlab.data.split import split_size, stratified_split


def split(labels, count, seed=0):
    return stratified_split(np.asarray(labels), count, seed, "data.val_size")


@pytest.mark.parametrize("count", [0, 1, 7, 10, 33, 97])
def test_the_count_is_exact_and_the_parts_are_disjoint(count):
    labels = np.random.default_rng(0).integers(0, 3, 100)
    rest, part = split(labels, count)
    assert len(part) == count
    assert sorted([*rest, *part]) == list(range(100))


def test_every_class_keeps_its_share():
    labels = [0] * 60 + [1] * 30 + [2] * 10
    _, part = split(labels, 10)
    assert np.bincount(np.array(labels)[part]).tolist() == [6, 3, 1]
    # 25 of 100: 15, 7.5 and 2.5; the remainder goes to one of the two halves
    _, part = split(labels, 25)
    assert np.bincount(np.array(labels)[part]).tolist() == [15, 8, 2]


def test_no_class_loses_its_last_image_to_the_part():
    rest, part = split([0] * 50 + [1], 49)
    assert len(part) == 49
    assert 50 in rest
    with pytest.raises(UserError, match="At most 49"):
        split([0] * 50 + [1], 50)


def test_the_seed_decides_and_classes_are_drawn_at_random():
    labels = np.repeat(np.arange(4), 50)
    first, again, other = (split(labels, 40, seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first % 50 < 10, np.ones(40, bool)), "not the first of each class"


def test_the_split_of_a_seed_never_changes():
    # Runs of different years are compared on this hold-out: a change here breaks them all.
    assert split(np.arange(20) % 4, 6, seed=0)[1].tolist() == [0, 1, 2, 8, 11, 13]


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (5, 5), (0.25, 25), (0.999, None), (0.0, 0)])
def test_counts_and_fractions(size, expected):
    if expected is None:
        with pytest.raises(UserError, match="takes 100 of 100"):
            split_size(size, 100, "data.val_size")
    else:
        assert split_size(size, 100, "data.val_size") == expected


@pytest.mark.parametrize("size", [100, 101, 0.999, 0.001])
def test_impossible_sizes_name_the_option(size):
    with pytest.raises(UserError, match=r"data\.val_size"):
        split_size(size, 100, "data.val_size")
