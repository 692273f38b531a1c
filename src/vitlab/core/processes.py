"""The processes of a run: the jobs of a sweep, and the ranks of one job.

Every process is started as ``python -m vitlab RUN_FOLDER``. Nothing replays a command line, so several
devices inside a sweep cannot start the sweep again.
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

from vitlab.core import slurm
from vitlab.core.claim import end_if_lost
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import PARENT


def start(folder: RunFolder, *, shown: bool = True, **env: str) -> subprocess.Popen[bytes]:
    """Start a process on ``folder`` in a session of its own.

    A Ctrl-C at the terminal then reaches the starting process alone, which passes it on exactly once.

    Args:
        shown: whether what it prints is to be seen; errors always are.
        **env: environment variables to add.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "vitlab", str(folder.path)],
        env={k: v for k, v in os.environ.items() if k not in slurm.TASK} | {PARENT: str(os.getpid())} | env,
        stdout=None if shown else subprocess.DEVNULL,
        start_new_session=True,
    )


def end_with_parent(folder: RunFolder | None = None) -> None:
    """End this process when the one that started it is gone (kill -9), rather than train on unseen.

    Args:
        folder: of the job that this process is, if it is one: where another worker has taken it over, the
            process ends at once, without a checkpoint.
    """
    expected = os.environ.get(PARENT)
    if expected is None:
        return

    def watch() -> None:
        looks = 0
        while os.getppid() == int(expected):
            if folder and looks % 4 == 0:
                end_if_lost(folder.path)
            looks += 1
            time.sleep(0.5)
        if "LOCAL_RANK" in os.environ:
            os._exit(1)  # a rank without its peers can save nothing
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def rank_in_environment() -> int | None:
    """Return this process's rank where something else (torchrun, SLURM, vitlab) started the ranks."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ and (name != "SLURM_PROCID" or slurm.count_tasks() > 1):
            return int(os.environ[name])
    return None


def describe_exit(code: int) -> str:
    """Return how a process ended, from its exit status (negative: the signal that it died of)."""
    if code < 0:
        memory = ", as the kernel does where memory runs out" if -code == signal.SIGKILL else ""
        return f"was killed by signal {-code} ({signal.Signals(-code).name}){memory}"
    return f"ended with status {code}"


@contextlib.contextmanager
def start_ranks(folder: RunFolder, count: int, threads: int, on_loss: Callable[[], object]) -> Iterator[None]:
    """Start ranks 1 … count-1 on ``folder``; this process is rank 0.

    Lightning takes its ranks from LOCAL_RANK, MASTER_ADDR and MASTER_PORT when they are set, and then
    launches nothing itself.

    Args:
        count: ranks in all. Nothing is started for one, nor where something else started the ranks.
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

    def find_lost() -> str:
        """Say which rank has ended early, and how; empty while all are there."""
        for rank, peer in enumerate(peers, 1):
            if (code := peer.poll()) not in (None, 0):
                return (
                    f"rank {rank} of {count} {describe_exit(code)}, so the run ends. What it printed stands "
                    f"above, what came before in {folder.log}. To go on: {folder.resume_command}"
                )
        return ""

    def watch() -> None:
        while not ended.wait(0.5):
            if not find_lost():
                continue
            time.sleep(2)  # let this rank's own, better message come first
            if not ended.is_set():
                print(f"error: {find_lost()}", file=sys.stderr)
                on_loss()
                for peer in peers:
                    peer.kill()
                os._exit(1)

    before = dict(os.environ)
    os.environ.update(shared, LOCAL_RANK="0")
    threading.Thread(target=watch, daemon=True).start()
    try:
        try:
            yield
        except RuntimeError as error:  # torch's, of a connection whose other end is gone
            deadline = time.monotonic() + 2
            while not find_lost() and time.monotonic() < deadline:
                time.sleep(0.1)
            if lost := find_lost():
                raise UserError(lost) from error
            raise
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
