"""A process that works on a sweep: it starts jobs, gives each its share of the machine, and stops them.

A launcher may call it in other processes, also on other machines; all that they share is the sweep's folder.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vitlab.config import read_record
from vitlab.core.console import say
from vitlab.core.cpu_count import SHARE, count_cores
from vitlab.core.files import is_locked, try_lock
from vitlab.core.processes import describe_exit, start
from vitlab.core.run_folder import RunFolder, State, Summary
from vitlab.core.signals import STOP_SIGNALS, is_impatient, on_signal

PATIENCE = 60  # seconds that the job of a sweep that was killed has to end by itself
POLL = 0.2  # seconds between two looks at a job
GPU = "-gpu-"  # in the name of the file that says by a lock who has which GPU


class Worker:
    """One call of the verb on a sweep. Copies of it work for this call in the processes of a launcher.

    Args:
        folder: of the sweep.
        at_a_time: jobs that this machine runs at a time. What several print is not shown: it would mix.
        divide_gpus: whether each job gets a GPU of its own; submitit has its own way with GPUs.
    """

    def __init__(self, folder: Path, *, at_a_time: int, divide_gpus: bool = True) -> None:
        several = at_a_time > 1
        self.folder = folder
        self._host = socket.gethostname()
        self._file = folder / f".session-{self._host}-{os.getpid()}"
        self._cores = max(1, count_cores() // at_a_time) if several else None
        self._gpus = _find_gpus() if several and divide_gpus else []
        self._slots = f"{self._file.name}{GPU}"
        self._shown = not several
        self._asked = 0.0  # when the first signal to stop came
        self.ends_sweep = True  # whether a signal to stop that reaches a job is meant for all of them

    def in_allocation(self, at_a_time: int) -> "Worker":
        """Return a worker that does the same where a scheduler has put it, with the cores and GPUs there.

        What the scheduler tells its jobs (their time is up, they are cancelled) concerns them alone.
        """
        there = Worker(self.folder, at_a_time=at_a_time)
        there._file, there._host, there._shown = self._file, self._host, False
        there._slots = f"{self._file.name}{GPU}{os.environ.get('SLURM_JOB_ID')}-"
        there.ends_sweep = False
        return there

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Be there for the jobs. They see by a lock when this process is gone, however it went.

        The first Ctrl-C or SIGTERM asks the jobs to stop; a second one ends everything.
        """
        for other in self.folder.glob(f".session-{self._host}-*"):
            if not is_locked(other.with_name(other.name.partition(GPU)[0])):  # of one that was killed
                other.unlink(missing_ok=True)
        with open(self._file, "a") as file:
            try_lock(file)
            try:
                with on_signal(self._on_signal):
                    yield
            finally:
                for path in (self._file, *self.folder.glob(f"{self._file.name}{GPU}*")):
                    path.unlink(missing_ok=True)

    def _on_signal(self, signum: int) -> None:
        if self.stop_signal():
            if is_impatient(signum, self._asked):
                raise KeyboardInterrupt
            return
        self._asked = time.monotonic()
        self.request_stop(signum)
        say("the sweep stops: its jobs keep a checkpoint and end; press again to stop at once")

    def request_stop(self, signum: int) -> None:
        """Ask every job to keep a checkpoint and end, and let no further one start."""
        self._file.write_text(str(int(signum)))  # a file reaches the jobs wherever a launcher has put them

    def stop_signal(self) -> int | None:
        """Return the signal that jobs are to end by, or None where they are to run."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(self._file.read_text())
        return int(signal.SIGTERM) if self.is_gone() else None

    def is_gone(self) -> bool:
        """Say whether nobody waits for the jobs any more; on another machine that cannot be known."""
        return self._host == socket.gethostname() and not is_locked(self._file)

    @contextlib.contextmanager
    def share(self, devices: Any) -> Iterator[dict[str, str]]:
        """Give a job its share of this machine, as environment variables.

        A job that takes one GPU (``trainer.devices``) gets the one with the fewest jobs; one that takes
        several must see them all.
        """
        share = {}
        if self._cores is not None:
            # Joblib's processes have the second one already, and so may the person at the keyboard.
            threads = os.environ.get("OMP_NUM_THREADS", str(self._cores))
            share = {SHARE: str(self._cores), "OMP_NUM_THREADS": threads}
        with contextlib.ExitStack() as held:
            if len(self._gpus) > 1 and devices in (1, "auto"):
                for slot in range(10_000):  # as many as jobs at a time: the first that nobody holds
                    path = self.folder / f"{self._slots}{slot}"
                    if try_lock(held.enter_context(open(path, "a"))):
                        share["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
                        break
            yield share

    def start(self, folder: RunFolder) -> "RunningJob | None":
        """Start a process on a job's folder; None where the sweep is to stop or another process has the job.

        Until it has ended the job counts as running: its claim is locked.
        """
        if self.stop_signal():
            return None
        with contextlib.ExitStack() as held:
            claim = held.enter_context(open(folder.claim, "a+"))
            deadline = time.monotonic() + PATIENCE
            while not try_lock(claim):
                if not self._is_left_behind(claim) or time.monotonic() > deadline or self.stop_signal():
                    return None
                time.sleep(POLL)
            claim.truncate(0)
            claim.write(self._file.name)
            claim.flush()
            while folder.is_locked():
                if time.monotonic() > deadline or self.stop_signal():
                    return None
                time.sleep(POLL)
            env = held.enter_context(self.share(read_record(folder)["trainer"]["devices"]))
            return RunningJob(self, folder, start(folder, shown=self._shown, **env), held.pop_all())

    def _is_left_behind(self, claim: IO[str]) -> bool:
        """Say whether who holds a claim works for a call that was killed, and so will let go of it."""
        claim.seek(0)
        session = claim.read()
        return session.startswith(f".session-{self._host}-") and not is_locked(self.folder / session)

    def run_jobs(self, *folders: RunFolder) -> None:
        """Run jobs to their end, all at a time, unless another process does or has done so.

        However they end is on record in their folders; nothing is raised.
        """
        jobs: list[RunningJob] = []
        try:
            for folder in folders:
                finished = Summary(folder, writable=False).data.get("status") == State.FINISHED
                if not finished and (job := self.start(folder)):
                    jobs.append(job)
            while jobs:
                jobs = [job for job in jobs if job.poll(POLL / len(jobs)) is None]
        except BaseException:  # submitit raises so in the midst of it, when SLURM's time is nearly up
            for job in jobs:
                job.terminate()
            for job in jobs:
                job.process.wait(PATIENCE)
            raise


@dataclass
class RunningJob:
    """A job that trains, in a process of its own."""

    worker: Worker
    folder: RunFolder
    process: subprocess.Popen[bytes]
    held: contextlib.ExitStack  # its claim and its share of the machine, until it has ended
    told: bool = False  # to end: a second signal would tear it off

    def terminate(self) -> None:
        """Let this job alone keep a checkpoint and end."""
        if not self.told:
            self.told = True
            self.process.terminate()

    def poll(self, patience: float = 0) -> int | None:
        """Return the exit status (negative: the signal it died of) once the job has ended.

        Meanwhile, pass the wish to stop on to it. A signal to stop that reached the job ends the sweep.
        """
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            if not self.told and (signum := self.worker.stop_signal()):
                self.told = True
                self.process.send_signal(signum)
            return None
        with self.held:
            if signum := get_stop_signal(code):
                if not self.told and self.worker.ends_sweep:
                    self.worker.request_stop(signum)
            elif code and not self.worker.stop_signal():
                summary = Summary(self.folder)
                if summary.data.get("status") != State.FAILED:  # it died without a word
                    summary.update(status="failed", error=f"the process {describe_exit(code)}")
        return code


def get_stop_signal(code: int) -> int:
    """Return the signal to stop that a process with this exit status ended by, else 0."""
    signum = code - 128 if code > 128 else -code
    return signum if signum in STOP_SIGNALS else 0


def _find_gpus() -> list[str]:
    """Return the GPUs that jobs may be divided among; torch, which knows, takes seconds to import."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in chosen.split(",") if name]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU")]
