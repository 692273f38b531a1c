"""Batches of tensors that already lie on the device: one gather each, no worker processes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitlab.seeding import derive


class Batch(NamedTuple):
    """One batch and its place in the run.

    From a loader: ``images`` uint8 (B, C, H, W) and ``targets`` int64 (B,). After the data module's
    ``on_after_batch_transfer``: float32 (B, C, H', W') normalised, and float32 (B, K) one-hot or
    soft.
    """

    images: Tensor
    targets: Tensor
    epoch: int
    index: int  # type: ignore[assignment]  # of the micro-batch in its epoch
    valid: int  # rows that are real; evaluation pads the rest, so that shapes are static


class TrainLoader:
    """Shuffled batches of one rank: the order is a function of (seed, epoch) and of nothing else.

    Global batch i of an epoch is ``order[i * B : (i + 1) * B]``; each rank takes its contiguous
    share of it, so the images of a step do not depend on the number of devices. The last, smaller
    batch is dropped.

    Args:
        images: (N, C, H, W), on the device that trains.
        labels: (N,) int64, on the same device.
        batch_size: global, over all ranks; a multiple of ``world_size``.
        seed: of the order.
        rank, world_size: which share to yield.
        position: returns (epoch, first batch). Asked when the first batch is drawn, and not by
            ``iter()``: Lightning calls ``iter()`` before it has restored its counters.
        reshuffle: False repeats the order of epoch 0 (``trainer.overfit_batches``).
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        position: Callable[[], tuple[int, int]],
        reshuffle: bool = True,
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.share = _share(batch_size, world_size)
        self.position = position
        self.reshuffle = reshuffle

    def __len__(self) -> int:
        """Return the batches of a whole epoch, wherever the position is."""
        return len(self.images) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self.position()
        order = self.order(epoch if self.reshuffle else 0).to(self.images.device)
        for index in range(first, len(self)):
            start = index * self.batch_size + self.rank * self.share
            rows = order[start : start + self.share]
            yield Batch(
                images=self.images.index_select(0, rows),
                targets=self.labels.index_select(0, rows),
                epoch=epoch,
                index=index,
                valid=self.share,
            )

    def order(self, epoch: int) -> Tensor:
        """Return the (N,) permutation of an epoch, drawn on the CPU: the same for every device."""
        generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
        return torch.randperm(len(self.images), generator=generator)

    # Lightning takes a loader with these two for resumable and warns about any other. There is no
    # state to keep: the position comes from the trainer's own counters, which are in the
    # checkpoint.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class EvalLoader:
    """All images in order, each exactly once over all ranks.

    Every rank yields the same number of batches of the same size. Missing rows repeat image 0, and
    ``valid`` says how many rows are real; it is 0 where a rank has none left.

    Args:
        images: (N, C, H, W).
        labels: (N,) int64.
        batch_size: global, over all ranks; a multiple of ``world_size``.
        rank, world_size: which share to yield.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, batch_size: int, rank: int, world_size: int
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.rank = rank
        self.share = _share(batch_size, world_size)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        total = len(self.images)
        offsets = torch.arange(self.share, device=self.images.device)
        for index in range(len(self)):
            start = index * self.batch_size + self.rank * self.share
            valid = min(max(total - start, 0), self.share)
            if valid == self.share:  # a slice, without a copy
                images = self.images[start : start + self.share]
                targets = self.labels[start : start + self.share]
            else:
                rows = torch.where(offsets < valid, start + offsets, 0)
                images = self.images.index_select(0, rows)
                targets = self.labels.index_select(0, rows)
            yield Batch(images=images, targets=targets, epoch=0, index=index, valid=valid)


def _share(batch_size: int, world_size: int) -> int:
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch_size {batch_size} is not a positive multiple of {world_size} processes")
    return batch_size // world_size
