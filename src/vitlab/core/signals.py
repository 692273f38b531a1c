"""Signals by which a run, a sweep and a benchmark stop with what they have.

Ctrl-C and SIGTERM; SIGHUP, where a terminal is closed or a connection to it drops; SIGUSR1, which SLURM can
be told to send before the time is up (`vitlab.core.slurm` may then ask for more of it). SIGQUIT (Ctrl-\\) is
left as it is: it ends the process at once.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# Set for the processes that vitlab starts: the process that they must not outlive.
PARENT = "VITLAB_PARENT"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# A second one of these ends the process at once. The others may come twice by themselves: a terminal that is
# closed sends SIGHUP, and so does its shell.
IMPATIENT = (signal.SIGINT, signal.SIGTERM)
ECHO = 2  # seconds in which a second one may be the first one again


class Interrupted(BaseException):
    """The run was asked to stop and has kept what it had.

    Like KeyboardInterrupt no `Exception`: Hydra would count it as a failed job and continue the sweep.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.exit_code = 128 + signum


def _catch(handle: Callable[[int, FrameType | None], object]) -> dict[signal.Signals, Any]:
    """Let ``handle`` have the signals, and return who had them; ``nohup``'s way with SIGHUP stays."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    mine = [signum for signum in STOP_SIGNALS if not (signum == signal.SIGHUP and ignored)]
    return {signum: signal.signal(signum, handle) for signum in mine}


def is_impatient(signum: int, first: float) -> bool:
    """Say whether a further signal means that the process is to end at once.

    SLURM tells all processes of a job, each of them twice when its time is up, and who was told passes it on
    to what it has started.

    Args:
        signum: the further signal.
        first: when the first one came, by `time.monotonic`.
    """
    repeated = PARENT in os.environ or (signum == signal.SIGTERM and "SLURM_JOB_ID" in os.environ)
    return signum in IMPATIENT and not (repeated and time.monotonic() < first + ECHO)


class StopSignal:
    """Turns the signals into a flag that the training loop reads between optimizer steps.

    An exception raised in the middle of a step would tear optimizer and weights apart. A second Ctrl-C or
    SIGTERM ends the process at once; what the last checkpoint holds is then what is kept.

    Args:
        say: prints a sentence when the first signal comes.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self.received: int | None = None  # the signal's number
        self._when = 0.0
        self._say = say

    def install(self) -> None:
        """Take the signals over (again: Lightning puts its own SIGTERM handler in place)."""
        if threading.current_thread() is threading.main_thread():
            _catch(self._handle)
            if PARENT in os.environ:  # SLURM warns every process of a job; the parent passes it on, once
                signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if not is_impatient(signum, self._when):
                return
            if sys.stdout.isatty():
                sys.stdout.write("\x1b[?25h\n")  # a progress bar has hidden the cursor
                sys.stdout.flush()
            os._exit(128 + signum)
        self.received, self._when = signum, time.monotonic()
        self._say("stopping at the next optimizer step; press again to stop at once, without a checkpoint")


@contextlib.contextmanager
def on_signal(handle: Callable[[int], object]) -> Iterator[None]:
    """Call ``handle`` with the number of every such signal that comes meanwhile."""
    if threading.current_thread() is not threading.main_thread():  # which alone gets them
        yield
        return
    before = _catch(lambda signum, frame: handle(signum))
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
