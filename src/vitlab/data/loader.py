"""Which images make a batch: the order of training, and the shares of the ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitlab.core.batch import Batch
from vitlab.core.seeding import derive_seed
from vitlab.data.reader import Reader

Position = tuple[int, int]  # epoch, and the next batch in it


@dataclass(frozen=True)
class Share:
    """One rank's share of every batch: contiguous, so that a batch is the same on any number of ranks."""

    batch_size: int  # over all ranks
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a positive multiple of {self.world_size} processes"
            )

    def take(self, indices: Tensor) -> Tensor:
        """Return (batches, batch_size / world_size) of indices (batches · batch_size,)."""
        return indices.view(-1, self.world_size, self.batch_size // self.world_size)[:, self.rank]


class TrainLoader:
    """Shuffled batches of one rank, in an order that is a function of (seed, epoch) alone.

    Batch i of an epoch is ``order[i * B : (i + 1) * B]``, over all ranks. The last, smaller batch is dropped.

    Args:
        seed: of the order.
        position: returns (epoch, first batch). Called when the first batch is drawn, and not by
            ``iter()``: Lightning calls ``iter()`` before it has restored its counters. None: the
            loader continues where it is, epoch after epoch.
        reshuffle: False repeats the order of epoch 0 (``trainer.overfit_batches``).
    """

    def __init__(
        self,
        reader: Reader,
        share: Share,
        *,
        seed: int,
        position: Callable[[], Position] | None,
        reshuffle: bool,
    ) -> None:
        self.reader = reader
        self.share = share
        self.seed = seed
        self.position = position
        self.reshuffle = reshuffle
        self._next: Position = (0, 0)
        self._loaded: Position | None = None

    def __len__(self) -> int:
        """Return the batches of a whole epoch, wherever the position is."""
        return len(self.reader) // self.share.batch_size

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._start()
        for index, (images, targets) in enumerate(self.reader(self.plan(epoch)[first:]), first):
            # Counted when it is yielded: what workers have read ahead is read again after a resume.
            self._next = (epoch, index + 1) if index + 1 < len(self) else (epoch + 1, 0)
            yield Batch(images=images, targets=targets, epoch=epoch, index=index, valid=len(images))

    def plan(self, epoch: int) -> Tensor:
        """Return which images this rank's batches of an epoch hold: int64 (batches, B / ranks), as read."""
        seed = derive_seed(self.seed, "order", epoch if self.reshuffle else 0)
        # On the CPU: the same for every device.
        order = torch.randperm(len(self.reader), generator=torch.Generator().manual_seed(seed))
        return self.share.take(order[: len(self) * self.share.batch_size])

    def state_dict(self) -> dict[str, Any]:
        """Return the position: the epoch, and the next batch in it."""
        return {"epoch": self._next[0], "batch": self._next[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the position in ``state_dict``."""
        if state_dict:
            self._next = self._loaded = state_dict["epoch"], state_dict["batch"]

    def _start(self) -> Position:
        """Return where to begin: the trainer's counters decide, and what was loaded must agree.

        Raises RuntimeError where some images would be seen twice, or never.
        """
        loaded, self._loaded = self._loaded, None
        if self.position is None:
            return self._next
        at = self.position()
        # An epoch may end before its last batch (trainer.max_steps, limit_train_batches).
        if loaded is not None and at not in (loaded, (loaded[0] + 1, 0)):
            raise RuntimeError(
                f"the trainer continues at epoch {at[0]}, batch {at[1]}, but its checkpoint was written when "
                f"the loader was at epoch {loaded[0]}, batch {loaded[1]}"
            )
        return at


class EvalLoader:
    """All images, each exactly once over all ranks.

    Every rank yields the same number of batches of the same size. Missing rows repeat the first image,
    and ``valid`` says how many rows are real; it is 0 where a rank has none left.

    Args:
        order: int64 (N,), a permutation. Folders list class after class; a random order makes the
            first batches (``trainer.limit_val_batches``) a sample of all classes.
    """

    def __init__(self, reader: Reader, share: Share, order: Tensor) -> None:
        self.reader = reader
        self.share = share
        self.order = order

    def __len__(self) -> int:
        """Return the batches, the same number on every rank."""
        return -(-len(self.reader) // self.share.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        indices = self.share.take(torch.arange(len(self) * self.share.batch_size))
        real = indices < len(self.reader)
        batches = self.reader(self.order[torch.where(real, indices, 0)])
        for index, ((images, targets), valid) in enumerate(zip(batches, real.sum(1).tolist(), strict=True)):
            yield Batch(images=images, targets=targets, epoch=0, index=index, valid=valid)
