"""Which images make a batch: the order of training, and the shares of the ranks."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vitlab.core.batch import Batch
from vitlab.core.seeding import derive_seed
from vitlab.data.reader import Reader

Position = tuple[int, int]  # epoch, and the next batch in it


class TrainLoader:
    """Shuffled batches of one rank, in an order that is a function of (seed, epoch) alone.

    Global batch i of an epoch is ``order[i * B : (i + 1) * B]``; each rank takes its contiguous
    share of it, so the images of a step do not depend on the number of devices. The last, smaller
    batch is dropped.

    Args:
        reader: the images.
        batch_size: global, over all ranks; a multiple of ``world_size``.
        seed: of the order.
        rank: which of the ``world_size`` shares to yield.
        world_size: number of ranks.
        position: returns (epoch, first batch). Called when the first batch is drawn, and not by
            ``iter()``: Lightning calls ``iter()`` before it has restored its counters. None: the
            loader continues where it is, epoch after epoch.
        reshuffle: False repeats the order of epoch 0 (``trainer.overfit_batches``).
    """

    def __init__(
        self,
        reader: Reader,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        position: Callable[[], Position] | None,
        reshuffle: bool,
    ) -> None:
        self.reader = reader
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.share = _share(batch_size, world_size)
        self.position = position
        self.reshuffle = reshuffle
        self._next: Position = (0, 0)
        self._loaded: Position | None = None

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch, wherever the position is."""
        return len(self.reader) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._start()
        order = self.order(epoch if self.reshuffle else 0)
        whole = order[: len(self) * self.batch_size]
        plan = whole.view(len(self), self.world_size, self.share)[first:, self.rank]  # (batches, share)
        for index, (images, targets) in enumerate(self.reader(plan), first):
            # Counted when it is yielded: what workers have read ahead is read again after a resume.
            self._next = (epoch, index + 1) if index + 1 < len(self) else (epoch + 1, 0)
            yield Batch(images=images, targets=targets, epoch=epoch, index=index, valid=self.share)

    def order(self, epoch: int) -> Tensor:
        """Return the (N,) permutation of an epoch, drawn on the CPU: the same for every device."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        return torch.randperm(len(self.reader), generator=generator)

    def state_dict(self) -> dict[str, Any]:
        """Return the position: the epoch, and the next batch in it."""
        return {"epoch": self._next[0], "batch": self._next[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the position in ``state_dict``."""
        if state_dict:
            self._next = self._loaded = state_dict["epoch"], state_dict["batch"]

    def _start(self) -> Position:
        """Return where to begin: the trainer's counters decide, and what was loaded must agree.

        Raises:
            RuntimeError: it does not agree, and some images would be seen twice, or never.
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
        reader: the images.
        order: int64 (N,), a permutation. Folders list class after class; a random order makes the
            first batches (``trainer.limit_val_batches``) a sample of all classes.
        batch_size, rank, world_size: as for `TrainLoader`.
    """

    def __init__(self, reader: Reader, order: Tensor, *, batch_size: int, rank: int, world_size: int) -> None:
        self.reader = reader
        self.order = order
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.share = _share(batch_size, world_size)

    def __len__(self) -> int:
        """Return the number of batches, the same on every rank."""
        return -(-len(self.reader) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        indices = torch.arange(len(self) * self.batch_size)
        indices = indices.view(len(self), self.world_size, self.share)[:, self.rank]  # (batches, share)
        real = indices < len(self.reader)
        batches = self.reader(self.order[torch.where(real, indices, 0)])
        for index, ((images, targets), valid) in enumerate(zip(batches, real.sum(1).tolist(), strict=True)):
            yield Batch(images=images, targets=targets, epoch=0, index=index, valid=valid)


def _share(batch_size: int, world_size: int) -> int:
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch_size {batch_size} is not a positive multiple of {world_size} processes")
    return batch_size // world_size
