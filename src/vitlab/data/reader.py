"""Indices in, images out: gathered from a tensor on the device, or read by worker processes."""

import functools
from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor

from vitlab.core.errors import UserError
from vitlab.data.decode import Images
from vitlab.data.workers import Workers


class MemoryReader:
    """Reads from one tensor on the device: a batch is one gather, and nothing waits for a worker.

    Args:
        images: uint8 (M, C, H, W).
        labels: int64 (M,).
        rows: int64 (N,) on the CPU, the images to read among the M. A hold-out shares the tensor this way.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor) -> None:
        self.images = images
        self.labels = labels.to(images.device)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, plan: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images uint8 (B, C, H, W) and labels int64 (B,) for each row of ``plan``.

        The plan is int64 (batches, B) on the CPU: indices from 0 to N - 1.
        """
        for rows in self.rows[plan].to(self.images.device):  # (B,)
            yield self.images.index_select(0, rows), self.labels.index_select(0, rows)


class StreamReader(Workers):
    """Reads images a batch at a time, ahead of their use; a worker reads whole batches and draws nothing.

    Args:
        images, labels, rows: as for `MemoryReader`, all on the CPU; the images may be on the disk.
        num_workers, pin_memory: see `Workers`.

    Raises:
        UserError: while reading, for a file that cannot be decoded, or when a worker is killed.
    """

    def __init__(
        self, images: Images, labels: Tensor, rows: Tensor, num_workers: int, pin_memory: bool = False
    ) -> None:
        super().__init__(functools.partial(_read_batch, images, labels.numpy()), num_workers, pin_memory)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, plan: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what a `MemoryReader` would; here the rows of ``plan`` may differ in length."""
        for batch in super().__call__([self.rows[indices].numpy() for indices in plan]):
            if isinstance(batch, UserError):
                raise batch
            images, labels = batch
            yield images, labels


Reader = MemoryReader | StreamReader


def _read_batch(
    images: Images, labels: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | UserError:
    try:
        return images[rows], labels[rows]
    except UserError as error:
        return error  # raised here, it would arrive as the text of a worker's traceback
