"""A batch: what loaders yield, augmentation changes and tasks train on."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch and its position in the run: as a loader yields it → after ``on_after_batch_transfer``."""

    images: Tensor  # uint8 (B, C, H, W) → float32 (B, C, H', W'), normalised
    targets: Tensor  # int64 (B,) → float32 (B, K), one-hot or soft
    epoch: int  # from 0
    index: int  # type: ignore[assignment]  # of the micro-batch in its epoch
    valid: int  # rows that are real; evaluation pads the rest, so that shapes are static
