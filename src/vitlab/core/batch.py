"""A batch: what loaders yield, augmentation changes and tasks train on."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch and its position in the run.

    Attributes:
        images: from a loader uint8 (B, C, H, W); after the data module's ``on_after_batch_transfer``
            float32 (B, C, H', W'), normalised.
        targets: from a loader int64 (B,); after that float32 (B, K), one-hot or soft.
        epoch: from 0.
        index: of the micro-batch in its epoch.
        valid: rows that are real; evaluation pads the rest, so that shapes are static.
    """

    images: Tensor
    targets: Tensor
    epoch: int
    index: int  # type: ignore[assignment]
    valid: int
