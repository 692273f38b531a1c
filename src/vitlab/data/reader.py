"""Indices in, images out: gathered from a tensor on the device, or read by worker processes."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitlab.core.errors import UserError
from vitlab.core.signals import STOP_SIGNALS
from vitlab.data.decode import Images


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

        Args:
            plan: int64 (batches, B) on the CPU, indices from 0 to N - 1.
        """
        for rows in self.rows[plan].to(self.images.device):  # (B,)
            yield self.images.index_select(0, rows), self.labels.index_select(0, rows)


class StreamReader:
    """Reads images a batch at a time, ahead of their use.

    The plan alone decides which batch comes when; a worker reads whole batches and draws nothing, so
    the batches are those of `MemoryReader`.

    Args:
        images: (M, C, H, W), an array or images on the disk.
        labels: int64 (M,) on the CPU.
        rows: int64 (N,), the images to read among the M.
        num_workers: processes that read; 0 reads in this one, when a batch is asked for.
        pin_memory: put batches into memory that a GPU can copy from by itself.

    Raises:
        UserError: while reading, for a file that cannot be decoded, or when a worker is killed.
    """

    def __init__(
        self, images: Images, labels: Tensor, rows: Tensor, *, num_workers: int, pin_memory: bool
    ) -> None:
        self.rows = rows
        self._plan: list[np.ndarray] = []  # replaced before each pass
        self._loader = DataLoader(
            _BatchDataset(images, labels.numpy()),
            batch_size=None,  # an item is a batch already
            sampler=self._plan,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_signals_of_others,
            generator=torch.Generator(),  # draws a seed for each pass, not from the global generator
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, plan: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what a `MemoryReader` would; here the rows of ``plan`` may differ in length."""
        self._plan[:] = [self.rows[indices].numpy() for indices in plan]
        try:
            for batch in self._batches():
                if isinstance(batch, UserError):
                    raise batch
                images, labels = batch
                yield images, labels
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a process that reads images was killed: {str(error).splitlines()[0]} Often memory or "
                "shared memory (/dev/shm) is too small: lower data.num_workers (0 reads in the "
                "training process) or data.batch_size."
            ) from error

    def close(self) -> None:
        """End the workers; the next pass starts new ones."""
        iterator: Any = self._loader._iterator
        self._loader._iterator = None
        if iterator is not None:
            # Private, but the iterator does the same when it is deleted. A traceback may keep it alive, and
            # by the time the garbage collector finds it the queues are gone: 5 seconds for each worker.
            iterator._shutdown_workers()

    def _batches(self) -> Iterator[Any]:
        # Workers start with the signals blocked, so that none runs the handlers of its parent.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            return iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _BatchDataset(Dataset[Any]):
    """Maps the rows of a batch to the batch."""

    def __init__(self, images: Images, labels: np.ndarray) -> None:
        self.images = images
        self.labels = labels

    def __getitem__(self, rows: np.ndarray) -> tuple[Tensor, Tensor] | UserError:
        try:
            return torch.from_numpy(self.images[rows]), torch.from_numpy(self.labels[rows])
        except UserError as error:
            return error  # raised here, it would arrive as the text of a worker's traceback


Reader = MemoryReader | StreamReader


def _ignore_signals_of_others(worker: int) -> None:
    """Keep a worker alive as long as its parent wants it, which may have a step to finish and save.

    Ctrl-C at a terminal goes to every process, and so may the SIGTERM of a scheduler. A worker that
    obeyed would tear the parent out of its optimizer step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler was inherited
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_exit_on_sigterm_of, args=(os.getppid(),), daemon=True).start()
    else:  # on a Mac SIGTERM ends a worker, whoever sends it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _exit_on_sigterm_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
