"""One call of the verb on a sweep: what its jobs ask of it, and what of this machine each gets. Torch-free.

A launcher puts jobs into other processes, also on other machines; all that they share is the sweep's folder.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

from vitlab.core.cpu_count import SHARE, cores
from vitlab.core.files import is_locked, try_lock
from vitlab.core.processes import start
from vitlab.core.run_folder import RunFolder, Summary
from vitlab.core.signals import STOP_SIGNALS

ORPHAN = 30  # seconds that the job of a killed sweep has to end by itself
GPU = "-gpu-"  # in the name of the file that says by a lock who has which GPU


@dataclass(frozen=True)
class Session:
    """One call of the verb on a sweep. Its jobs ask here whether they are to end.

    folder: of the sweep. host, pid: of the process that was called. cores: for each job, where several run
    at a time. gpus: to divide among those. shown: whether what jobs print is to be seen.
    """

    folder: Path
    host: str
    pid: int
    cores: int | None
    gpus: Sequence[str]
    shown: bool

    @classmethod
    def begin(cls, folder: Path, *, at_a_time: int, divide_gpus: bool = True) -> "Session":
        """Return the session of this process.

        Args:
            at_a_time: jobs that this machine runs at a time. What several print is not shown: it would mix.
        """
        several = at_a_time > 1
        share = max(1, cores() // at_a_time) if several else None
        gpus = _gpus() if several and divide_gpus else []
        return cls(folder, socket.gethostname(), os.getpid(), share, gpus, shown=not several)

    @property
    def _file(self) -> Path:
        return self.folder / f".session-{self.host}-{self.pid}"

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Be there for the jobs. They see by a lock when this process is gone, however it went."""
        for other in self.folder.glob(f".session-{self.host}-*"):
            if not is_locked(other.with_name(other.name.partition(GPU)[0])):  # of one that was killed
                other.unlink(missing_ok=True)
        with open(self._file, "a") as file:
            try_lock(file)
            try:
                yield
            finally:
                self._file.unlink(missing_ok=True)
                for slot in self.folder.glob(f"{self._file.name}{GPU}*"):
                    slot.unlink()

    def stop(self, signum: int) -> None:
        """Ask every job of this session to keep a checkpoint and end, and let no further one start."""
        self._file.write_text(str(int(signum)))  # a file reaches the jobs wherever a launcher has put them

    def stopped(self) -> int | None:
        """Return the signal that jobs are to end by, or None to go on."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(self._file.read_text())
        return int(SIGTERM) if self.gone() else None

    def gone(self) -> bool:
        """Say whether nobody waits for the jobs any more; on another machine that cannot be known."""
        return self.host == socket.gethostname() and not is_locked(self._file)

    @contextlib.contextmanager
    def share(self, devices: Any) -> Iterator[dict[str, str]]:
        """Give a job its share of this machine, as environment variables.

        A GPU with fewest jobs on it, for a job that takes one; which has several must see them all.

        Args:
            devices: ``trainer.devices``.
        """
        share = {}
        if self.cores is not None:
            # Joblib's workers have the second one already, and so may the person at the keyboard.
            threads = os.environ.get("OMP_NUM_THREADS", str(self.cores))
            share = {SHARE: str(self.cores), "OMP_NUM_THREADS": threads}
        with contextlib.ExitStack() as held:
            if len(self.gpus) > 1 and devices in (1, "auto"):
                for slot in range(10_000):  # as many as jobs at a time: the first that nobody holds
                    path = self.folder / f"{self._file.name}{GPU}{slot}"
                    if try_lock(held.enter_context(open(path, "a"))):
                        share["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
                        break
            yield share


def _gpus() -> list[str]:
    """Return the GPUs that jobs may be divided among; torch, which knows, takes seconds to import."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in chosen.split(",") if name]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU")]


def run_one(folder: RunFolder, session: Session) -> None:
    """Run, or go on with, one job in a process of its own, unless somebody else does or has done.

    However the job ends is on record in its folder; nothing is raised.
    """
    if session.stopped():
        return
    with open(folder.claim, "a") as claim:
        if not try_lock(claim):
            return
        deadline = time.monotonic() + ORPHAN
        while folder.is_locked() and time.monotonic() < deadline:
            time.sleep(0.2)
        if folder.is_locked() or Summary(folder).data.get("status") == "finished":
            return
        with session.share(folder.read_config()["trainer"]["devices"]) as share:
            code = _wait(start(folder, shown=session.shown, **share), session)
        if code - 128 in STOP_SIGNALS:  # Ctrl-C or SIGTERM end the sweep and not one job
            session.stop(code - 128)
        elif code and not session.stopped():
            summary = Summary(folder)
            if summary.data.get("status") != "failed":  # it died without a word
                summary.update(status="failed", error=f"the process ended with status {code}")


def _wait(process: "subprocess.Popen[bytes]", session: Session) -> int:
    """Return the exit status of a job; pass on the wish to end, once: a second signal would tear it off."""
    passed = False
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.2)
            if not passed and (signum := session.stopped()):
                passed = True
                process.send_signal(signum)
    except SystemExit:  # submitit ends its process so, when SLURM's time is nearly up
        if not passed:
            process.terminate()
        process.wait(ORPHAN)
        raise
