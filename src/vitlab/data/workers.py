"""Processes that read ahead: torch's DataLoader, with its own way with signals and with workers that die."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vitlab.core.errors import UserError
from vitlab.core.signals import STOP_SIGNALS


class Workers:
    """Calls a function in worker processes, ahead of the use of its results, which come in order.

    Args:
        read: called with each item of a plan; of the arrays that it returns tensors are made.
        num_workers: processes; 0 calls it in this one, when a result is asked for.
        pin_memory: put tensors into memory that a GPU can copy from by itself.

    Raises:
        UserError: while reading, when a worker is killed.
    """

    def __init__(self, read: Callable[[Any], Any], num_workers: int, pin_memory: bool = False) -> None:
        self._plan: list[Any] = []  # replaced before each pass
        self._loader = DataLoader(
            _Results(read),
            batch_size=None,  # an item is a batch already
            sampler=self._plan,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_signals_of_others,
            generator=torch.Generator(),  # draws a seed for each pass, not from the global generator
        )

    def __call__(self, plan: Iterable[Any]) -> Iterator[Any]:
        """Yield the results for ``plan``; one pass at a time."""
        self._plan[:] = plan
        # Workers start with the signals blocked, so that none runs the handlers of its parent.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            results = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            yield from results
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


class _Results(Dataset[Any]):
    def __init__(self, read: Callable[[Any], Any]) -> None:
        self.read = read

    def __getitem__(self, item: Any) -> Any:
        return self.read(item)


def _ignore_signals_of_others(worker: int) -> None:
    """Keep a worker alive as long as its parent wants it, which may have a step to finish and save.

    Ctrl-C at a terminal goes to every process, and so may the SIGTERM of a scheduler. A worker that
    obeyed would tear the parent out of its optimizer step.
    """
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler was inherited
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_exit_on_sigterm_of, args=(os.getppid(),), daemon=True).start()
    else:  # on a Mac SIGTERM ends a worker, whoever sends it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _exit_on_sigterm_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
