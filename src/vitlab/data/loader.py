"""Which images make a batch: the order of training, and the shares of the ranks."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitlab.core.seeding import derive
from vitlab.data.reader import Reader

Place = tuple[int, int]  # epoch, and the batch in it that comes next


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
        reader: the images.
        batch_size: global, over all ranks; a multiple of ``world_size``.
        seed: of the order.
        rank, world_size: which share to yield.
        position: returns (epoch, first batch). Asked when the first batch is drawn, and not by
            ``iter()``: Lightning calls ``iter()`` before it has restored its counters. None: the
            loader goes on where it stands, epoch after epoch.
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
        position: Callable[[], Place] | None = None,
        reshuffle: bool = True,
    ) -> None:
        self.reader = reader
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.share = _share(batch_size, world_size)
        self.position = position
        self.reshuffle = reshuffle
        self._at: Place = (0, 0)
        self._loaded: Place | None = None

    def __len__(self) -> int:
        """Return the batches of a whole epoch, wherever the position is."""
        return len(self.reader) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._start()
        order = self.order(epoch if self.reshuffle else 0)
        whole = order[: len(self) * self.batch_size]
        plan = whole.view(len(self), self.world_size, self.share)[first:, self.rank]  # (batches, share)
        for index, (images, targets) in enumerate(self.reader(plan), first):
            # Counted as it is handed out: what workers have read ahead is read again after a resume.
            self._at = (epoch, index + 1) if index + 1 < len(self) else (epoch + 1, 0)
            yield Batch(images=images, targets=targets, epoch=epoch, index=index, valid=self.share)

    def order(self, epoch: int) -> Tensor:
        """Return the (N,) permutation of an epoch, drawn on the CPU: the same for every device."""
        generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
        return torch.randperm(len(self.reader), generator=generator)

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands: the epoch, and the batch in it that comes next."""
        return {"epoch": self._at[0], "batch": self._at[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:  # it is empty in older checkpoints
            self._at = self._loaded = state_dict["epoch"], state_dict["batch"]

    def _start(self) -> Place:
        """Return where to begin: the trainer's counters decide, and what was loaded must agree.

        Raises:
            RuntimeError: it does not; some images would be seen twice, or never.
        """
        loaded, self._loaded = self._loaded, None
        if self.position is None:
            return self._at
        at = self.position()
        # An epoch may end before its last batch (trainer.max_steps, limit_train_batches).
        if loaded is not None and at not in (loaded, (loaded[0] + 1, 0)):
            raise RuntimeError(
                f"the trainer goes on at epoch {at[0]}, batch {at[1]}, but its checkpoint was written when "
                f"the loader stood at epoch {loaded[0]}, batch {loaded[1]}"
            )
        return at


class EvalLoader:
    """All images, each exactly once over all ranks.

    Every rank yields the same number of batches of the same size. Missing rows repeat the first, and
    ``valid`` says how many rows are real; it is 0 where a rank has none left.

    Args:
        reader: the images.
        order: int64 (N,), of all places. Folders list class after class; a random order makes the first
            batches (``trainer.limit_val_batches``) a sample of all classes.
        batch_size: global, over all ranks; a multiple of ``world_size``.
        rank, world_size: which share to yield.
    """

    def __init__(self, reader: Reader, order: Tensor, *, batch_size: int, rank: int, world_size: int) -> None:
        self.reader = reader
        self.order = order
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.share = _share(batch_size, world_size)

    def __len__(self) -> int:
        return -(-len(self.reader) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        places = torch.arange(len(self) * self.batch_size)
        places = places.view(len(self), self.world_size, self.share)[:, self.rank]  # (batches, share)
        real = places < len(self.reader)
        batches = self.reader(self.order[torch.where(real, places, 0)])
        for index, ((images, targets), valid) in enumerate(zip(batches, real.sum(1).tolist(), strict=True)):
            yield Batch(images=images, targets=targets, epoch=0, index=index, valid=valid)


def _share(batch_size: int, world_size: int) -> int:
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch_size {batch_size} is not a positive multiple of {world_size} processes")
    return batch_size // world_size
