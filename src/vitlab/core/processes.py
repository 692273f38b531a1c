"""Starting and stopping the processes of a run: sweep jobs, ranks, and the signals that end them.

Every process is started as ``python -m vitlab RUN_FOLDER``. Nothing replays a command line, so several
devices inside a sweep cannot start the sweep again. Torch-free.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder

# Set for processes that vitlab starts: the process that they must not outlive.
PARENT = "VITLAB_PARENT"
STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The run was asked to stop and has kept what it had; ``exit_code`` is 128 + the signal's number.

    Like KeyboardInterrupt no `Exception`: Hydra counts those as a failed job and goes on with the sweep.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a flag that the training loop reads between optimizer steps.

    An exception raised in the middle of a step would tear optimizer and weights apart. A second
    signal ends the process at once; what the last checkpoint holds is then what is kept.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self.received: int | None = None
        self._say = say

    def install(self) -> None:
        """Take over both signals (again: Lightning puts its own SIGTERM handler in place)."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._handle)
            signal.signal(signal.SIGTERM, self._handle)
            if PARENT in os.environ:  # SLURM warns every process of a job; the parent passes it on, once
                signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if sys.stdout.isatty():
                sys.stdout.write("\x1b[?25h\n")  # a progress bar has hidden the cursor
                sys.stdout.flush()
            os._exit(128 + signum)
        self.received = signum
        self._say("stopping at the next optimizer step; once more stops at once, without a checkpoint")


@contextlib.contextmanager
def on_signal(handle: Callable[[int], object]) -> Iterator[None]:
    """Call ``handle`` with the number of every Ctrl-C and SIGTERM that comes meanwhile."""
    if threading.current_thread() is not threading.main_thread():  # which alone gets them
        yield
        return
    before = {s: signal.signal(s, lambda signum, frame: handle(signum)) for s in STOPS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def command(folder: RunFolder) -> list[str]:
    return [sys.executable, "-m", "vitlab", str(folder.path)]


def start(folder: RunFolder, *, shown: bool = True, **env: str) -> subprocess.Popen[bytes]:
    """Start a process on ``folder`` in a session of its own.

    A Ctrl-C at the terminal then reaches the starting process alone, which passes it on exactly once.

    Args:
        shown: whether what it prints is to be seen; errors always are.
    """
    environment = os.environ | {PARENT: str(os.getpid())} | env
    out = None if shown else subprocess.DEVNULL
    return subprocess.Popen(command(folder), env=environment, stdout=out, start_new_session=True)


def run_job(folder: RunFolder) -> None:
    """Run one job of a sweep in its own process.

    One process a job: compiled networks do not pile up in one interpreter, and a job that crashes or
    runs out of memory takes nothing with it.

    Raises:
        UserError: the job failed; it has said why itself.
        Interrupted: Ctrl-C or SIGTERM, which end the sweep and not one job.
    """
    job = start(folder)
    with on_signal(job.send_signal):
        code = job.wait()
    if code - 128 in STOPS:
        raise Interrupted(code - 128)
    if code:
        raise UserError(f"{folder} ended with status {code}, see {folder.log}")


def watch_parent() -> None:
    """End this process when the one that started it is gone (kill -9), rather than train on unseen."""
    expected = os.environ.get(PARENT)
    if expected is None:
        return

    def watch() -> None:
        while os.getppid() == int(expected):
            time.sleep(0.5)
        if "LOCAL_RANK" in os.environ:
            os._exit(1)  # a rank without its peers can save nothing
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def rank_in_environment() -> int | None:
    """Return this process's rank where something else (torchrun, SLURM, vitlab) started the ranks."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ and (name != "SLURM_PROCID" or int(os.environ.get("SLURM_NTASKS", "1")) > 1):
            return int(os.environ[name])
    return None


@contextlib.contextmanager
def ranks(folder: RunFolder, count: int, threads: int, on_loss: Callable[[], Any]) -> Iterator[None]:
    """Start ranks 1 … count-1 on ``folder``; this process is rank 0.

    Lightning takes its ranks from LOCAL_RANK, MASTER_ADDR and MASTER_PORT when they are set, and then
    launches nothing itself.

    Args:
        threads: CPU threads for each rank.
        on_loss: called when a rank dies early, before this process ends with status 1: a collective
            that waits for a dead peer may never return.
    """
    if count == 1 or rank_in_environment() is not None:
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    peers = [
        start(folder, shown=True, **shared, LOCAL_RANK=str(rank), OMP_NUM_THREADS=str(threads))
        for rank in range(1, count)
    ]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            if lost := [rank for rank, peer in enumerate(peers, 1) if peer.poll() not in (None, 0)]:
                time.sleep(2)  # let this rank's own, better message come first
                if not ended.is_set():
                    print(f"error: rank {lost[0]} ended early; see {folder.log}", file=sys.stderr)
                    on_loss()
                    for peer in peers:
                        peer.kill()
                    os._exit(1)

    before = dict(os.environ)
    os.environ.update(shared, LOCAL_RANK="0")
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
        for peer in peers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                peer.wait(30)
    finally:
        ended.set()
        for peer in peers:
            if peer.poll() is None:
                peer.kill()
        os.environ.clear()
        os.environ.update(before)
