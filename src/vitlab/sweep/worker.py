"""A process that works on a sweep: it starts jobs, gives each its share of the machine, and stops them.

A launcher may call it in other processes, also on other machines; all that they share is the sweep's folder.
"""

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlab.config import read_record
from vitlab.core.claim import NUMBER, STALE, Claim, Watch, name_machine, read_lease
from vitlab.core.console import say
from vitlab.core.cpu_count import SHARE, count_cores
from vitlab.core.files import is_locked, try_lock
from vitlab.core.processes import describe_exit, start
from vitlab.core.run_folder import RunFolder, State
from vitlab.core.signals import STOP_SIGNALS, is_impatient, on_signal
from vitlab.core.summary import Summary

# Seconds that the job of a sweep that was killed has to end by itself, or to be known for dead.
PATIENCE = STALE + 30
POLL = 0.2  # seconds between two looks at a job
LOOK = 1  # second between two looks at what another process has
GPU = "-gpu-"  # in the name of a folder, which whoever has that GPU has claimed


class Worker:
    """One call of the verb on a sweep. Copies of it work for this call in the processes of a launcher.

    Args:
        folder: of the sweep.
        at_a_time: jobs that this machine runs at a time. What several print is not shown: it would mix.
        divide_gpus: whether each job gets a GPU of its own; submitit has its own way with GPUs.
    """

    def __init__(self, folder: Path, *, at_a_time: int, divide_gpus: bool = True) -> None:
        self.folder = folder
        self._machine = name_machine()
        self._file = folder / f".session-{self._machine}-{os.getpid()}-{secrets.token_hex(2)}"
        self._locked = False
        self._watch = Watch()
        self._divide(at_a_time, gpus=divide_gpus)
        self._slots = f"{self._file.name}{GPU}"
        self._shown = at_a_time == 1
        self._asked = 0.0  # when the first signal to stop came
        self.ends_sweep = True  # whether a signal to stop that reaches a job is meant for all of them

    def enter_allocation(self, at_a_time: int) -> None:
        """Work where a scheduler has put this copy, with the cores and GPUs there.

        What the scheduler tells its jobs (their time is up, they are cancelled) concerns them alone.
        """
        self._divide(at_a_time, gpus=True)
        self._shown = False
        self._slots = f"{self._file.name}{GPU}{os.environ.get('SLURM_JOB_ID')}-"
        self.ends_sweep = False

    def _divide(self, at_a_time: int, *, gpus: bool) -> None:
        several = at_a_time > 1
        self._cores = max(1, count_cores() // at_a_time) if several else None
        self._gpus = _find_gpus() if several and gpus else []

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Be there for the jobs. They see by a lock when this process is gone, however it went.

        The first Ctrl-C or SIGTERM asks the jobs to stop; a second one ends everything.
        """
        for other in self.folder.glob(f".session-{self._machine}-*"):
            session = other.with_name(other.name.partition(GPU)[0])
            if not is_locked(session) and not _is_process(session.name):  # of one that was killed
                _remove(other)
        with open(self._file, "a") as file:
            with contextlib.suppress(OSError):  # no locks on this disk
                self._locked = try_lock(file)
            try:
                with on_signal(self._on_signal):
                    yield
            finally:
                for path in (self._file, *self.folder.glob(f"{self._file.name}{GPU}*")):
                    _remove(path)

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
        if self._machine != name_machine():
            return False
        if self._locked:
            return not is_locked(self._file)
        return not (self._file.exists() and _is_process(self._file.name))

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
                    (place := self.folder / f"{self._slots}{slot}").mkdir(exist_ok=True)
                    if claim := self.take(place):
                        held.callback(claim.release)
                        share["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
                        break
            yield share

    @property
    def session(self) -> str:
        """The name of this call of the verb, by which its claims are known."""
        return self._file.name

    def has_tried(self, folder: RunFolder) -> bool:
        """Say whether this call was the last to run a job."""
        lease = read_lease(folder.path)
        return lease is not None and lease["session"] == self.session

    def is_free(self, folder: RunFolder) -> bool:
        """Say whether nobody has a job; see `vitlab.core.claim`."""
        return self._watch.look(folder.path).free and not folder.is_locked()

    def take(self, folder: Path) -> Claim | None:
        """Claim a folder that nobody has; None where another process has it, or may have it."""
        standing = self._watch.look(folder)
        return Claim.take(folder, standing.number, self.session) if standing.free else None

    def start(
        self, folder: RunFolder, patience: float | None = None, *, needed: Callable[[], bool] = lambda: True
    ) -> "RunningJob | None":
        """Start a process on a job's folder; None where the sweep is to stop or another process has the job.

        The job is claimed until `RunningJob.release`.

        Args:
            folder: of the job.
            patience: seconds to wait where it cannot be said yet whether who had the job is gone; by default
                enough to know.
            needed: asked once the job is claimed: another process may have run it since we looked.
        """
        deadline = time.monotonic() + (PATIENCE if patience is None else patience)
        while not self.stop_signal():
            if self.is_free(folder):
                claim = self.take(folder.path)
                return self._start(folder, claim, needed) if claim else None
            if self._watch.look(folder.path).held or time.monotonic() >= deadline:
                return None
            time.sleep(POLL)
        return None

    def _start(self, folder: RunFolder, claim: Claim, needed: Callable[[], bool]) -> "RunningJob | None":
        with contextlib.ExitStack() as held:
            held.callback(claim.release)
            if claim.lost or folder.is_locked() or not needed():
                return None
            env = held.enter_context(self.share(read_record(folder)["trainer"]["devices"]))
            env |= {NUMBER: str(claim.number)}
            process = start(folder, shown=self._shown, **env)
            return RunningJob(self, folder, process, claim, held.pop_all())

    def run_jobs(self, *folders: RunFolder, patience: float | None = None) -> None:
        """Run jobs to their end, all at a time, unless another process does or has done so.

        However they end is on record in their folders; nothing is raised.

        Args:
            *folders: of the jobs.
            patience: see `start`.
        """
        jobs: list[RunningJob] = []
        for folder in folders:  # so that they are watched together
            self._watch.look(folder.path)
        try:
            for folder in folders:
                left = functools.partial(_is_left, folder)
                if left() and (job := self.start(folder, patience, needed=left)):
                    jobs.append(job)
            while jobs:
                for job in [*jobs]:
                    if job.poll(POLL / len(jobs)) is not None:
                        job.release()
                        jobs.remove(job)
        except BaseException:  # submitit raises so in the midst of it, when SLURM's time is nearly up
            for job in jobs:
                job.terminate()
            for job in jobs:
                job.process.wait(PATIENCE)
                job.release()
            raise


@dataclass
class RunningJob:
    """A job that trains, in a process of its own."""

    worker: Worker
    folder: RunFolder
    process: subprocess.Popen[bytes]
    claim: Claim
    held: contextlib.ExitStack  # its claim and its share of the machine
    told: bool = False  # to end: a second signal would tear it off
    code: int | None = None  # its exit status, once it has ended

    def __post_init__(self) -> None:
        self._failed_at = get_failure(self.folder)

    def terminate(self) -> None:
        """Let this job alone keep a checkpoint and end."""
        if not self.told:
            self.told = True
            self.process.terminate()

    def release(self) -> None:
        """Leave the job to whoever wants it, and let go of its share of the machine."""
        self.held.close()

    def poll(self, patience: float = 0) -> int | None:
        """Return the exit status (negative: the signal it died of) once the job has ended.

        Meanwhile, pass the wish to stop on to it. A signal to stop that reached the job ends the sweep.
        """
        if self.code is not None:
            return self.code
        try:
            self.code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            if self.claim.lost:
                self.process.kill()  # it ends itself as well, unless it is stuck
            elif not self.told and (signum := self.worker.stop_signal()):
                self.told = True
                self.process.send_signal(signum)
            return None
        if self.claim.is_lost():
            say(f"{self.folder} was taken over by another process: this one seemed to be gone")
        elif signum := get_stop_signal(self.code):
            if not self.told and self.worker.ends_sweep:
                self.worker.request_stop(signum)
        elif self.code and not self.worker.stop_signal() and get_failure(self.folder) == self._failed_at:
            Summary(self.folder.summary).update(  # it died without a word
                status="failed", error=f"the process {describe_exit(self.code)}"
            )
        return self.code


def _is_left(folder: RunFolder) -> bool:
    return folder.read_summary().get("status") != State.FINISHED


def get_failure(folder: RunFolder) -> int | None:
    """Return when a job that failed said so (in ns), or None."""
    if folder.read_summary().get("status") != State.FAILED:
        return None
    return folder.summary.stat().st_mtime_ns


def _remove(path: Path) -> None:
    """Remove what a session has left: its file, or the folder of a GPU."""
    # There may still be a beat in it now.
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_process(session: str) -> bool:
    """Say whether this machine has a process of the number in a session's name."""
    number = session.split("-")[-2]
    if not number.isdecimal() or int(number) == 0:
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


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
