"""Stratified, seeded splits of a labelled set."""

import numpy as np

from vitlab.core.data_protocol import DEFAULT_VAL_SIZE, num_held_out
from vitlab.core.errors import UserError


def split_size(size: int | float | None, total: int, key: str, default: float = DEFAULT_VAL_SIZE) -> int:
    """Return how many of ``total`` images to split off.

    Args:
        size: a count, a fraction below 1, 0 for none, or None for ``default``.
        key: the option, for messages.

    Raises:
        UserError: that is all of them, or a fraction that rounds to none.
    """
    size = default if size is None else size
    count = num_held_out(size, total)
    if count >= total:
        raise UserError(
            f"{key}={size} takes {count} of {total} images, which leaves none to train on. Give a count "
            f"below {total} or a fraction such as 0.1."
        )
    if count == 0 and size != 0:
        raise UserError(f"{key}={size} of {total} images is none. Give a count of images instead.")
    return count


def stratified_split(labels: np.ndarray, count: int, seed: int, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Split indices into (rest, part): ``part`` has ``count`` and keeps the class shares.

    Largest-remainder allocation; every class keeps at least one image in the rest. Both are
    ascending and a function of (labels, count, seed) alone.

    Args:
        labels: int64 (N,), class numbers.
        key: the option, for messages.

    Raises:
        UserError: the part would take every image of some class.
    """
    classes, members, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    total = len(labels)
    if count > total - len(classes):
        raise UserError(
            f"{key} asks for {count} of {total} images in {len(classes)} classes, which leaves some class "
            f"without an image to train on. At most {max(total - len(classes), 0)} can be split off."
        )
    # In integers: a float quota of 499.99999 would hand the remainder to the wrong class.
    quota, remainders = np.divmod(sizes * count, total)
    while (missing := count - int(quota.sum())) > 0:
        open_classes = np.flatnonzero(quota < sizes - 1)
        order = open_classes[np.argsort(-remainders[open_classes], kind="stable")]
        quota[order[:missing]] += 1
    order = np.lexsort((_random_keys(total, seed), members))
    chosen = np.zeros(total, dtype=bool)
    chosen[order] = rank_in_class(members[order]) < quota[members[order]]
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """Return for each of the sorted ``labels`` (N,) how many of its class come before it."""
    return np.arange(len(labels)) - np.searchsorted(labels, labels)


def random_order(count: int, seed: int) -> np.ndarray:
    """Return 0 … count - 1, int64 (count,), in an order that is a function of (count, seed) alone."""
    return np.argsort(_random_keys(count, seed), kind="stable")


def _random_keys(count: int, seed: int) -> np.ndarray:
    # The raw bits of PCG64, a stream that numpy promises not to change between versions.
    return np.random.PCG64(seed).random_raw(count)
