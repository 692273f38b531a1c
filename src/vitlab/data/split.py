"""Stratified, seeded splits of a labelled set. Torch-free."""

import numpy as np

from vitlab.core.errors import UserError


def split_count(size: int | float, total: int, key: str) -> int:
    """Return how many of ``total`` images ``size`` asks for: a count, or a fraction below 1.

    ``key`` names the option in messages. 0 asks for none.

    Raises:
        UserError: if ``size`` is neither, or asks for as many images as there are, or rounds to
            none.
    """
    if isinstance(size, bool) or not isinstance(size, int | float):
        raise UserError(f"{key} must be a count (500), a fraction (0.1) or 0 for none, but is {size!r}.")
    if size == 0:
        return 0
    if isinstance(size, int):
        if size < 0:
            raise UserError(f"{key} must not be negative, but is {size}.")
        if size >= total:
            raise UserError(
                f"{key}={size} asks for {size} images of {total}, which leaves none to train on. "
                f"Give a count below {total} or a fraction such as 0.1."
            )
        return size
    if not 0 < size < 1:
        raise UserError(
            f"{key}={size} must lie between 0 and 1 as a fraction; a count is written without a point."
        )
    count = round(size * total)
    if count in (0, total):
        raise UserError(f"{key}={size} of {total} images is {count}. Give a count of images instead.")
    return count


def stratified_split(labels: np.ndarray, count: int, seed: int, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Split indices into (rest, part): ``part`` has ``count`` and keeps the class shares.

    Largest-remainder allocation; every class keeps at least one image in the rest. Both are
    ascending and a function of (labels, count, seed) alone.

    Args:
        labels: (N,) class numbers.
        count: size of the part, 0 <= count < N.
        seed: any non-negative integer.
        key: the option to name in messages.

    Raises:
        UserError: if the part would take every image of some class.
    """
    classes, members, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    total = len(labels)
    if count > total - len(classes):
        raise UserError(
            f"{key} asks for {count} of {total} images in {len(classes)} classes, which leaves "
            "some class without an image to train on. "
            f"{max(total - len(classes), 0)} is the most that it can be."
        )
    # In integers: a float quota of 499.99999 would hand the remainder to the wrong class.
    take, remainders = np.divmod(sizes * count, total)
    while (missing := count - int(take.sum())) > 0:
        open_classes = np.flatnonzero(take < sizes - 1)
        order = open_classes[np.argsort(-remainders[open_classes], kind="stable")]
        take[order[:missing]] += 1
    order = np.lexsort((_keys(total, seed), members))
    first = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    place = np.arange(total) - np.repeat(first, sizes)  # place of each within its class, in random order
    chosen = np.zeros(total, dtype=bool)
    chosen[order] = place < np.repeat(take, sizes)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def random_order(count: int, seed: int) -> np.ndarray:
    """Return 0 … count - 1, int64 (count,), in an order that is a function of (count, seed) alone."""
    return np.argsort(_keys(count, seed), kind="stable")


def _keys(count: int, seed: int) -> np.ndarray:
    # The raw bits of PCG64, a stream that numpy promises not to change between versions.
    return np.random.PCG64(seed).random_raw(count)
