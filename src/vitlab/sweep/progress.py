"""What a sweep says while it runs: a line for each job that ends, and how to resume it."""

import contextlib
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from vitlab.core.claim import read_lease
from vitlab.core.console import duration, say
from vitlab.core.run_folder import RunFolder, State
from vitlab.core.signals import Interrupted
from vitlab.core.slurm import count_tasks, requeue
from vitlab.core.summary import SummaryData
from vitlab.sweep.record import OBJECTIVE, Job, Sweep

COUNTED = ("pruned", "diverged", "invalid", "skipped")  # in a line of progress, where there are any
LISTED = 10  # jobs
OTHERS = 30  # seconds that the other tasks of a SLURM job have to end their jobs


class Progress:
    """Says one line for each job that ends, in whatever process it runs.

    Args:
        sweep: its record.
        total: jobs that are to be trained; of a search, with the trials that are not drawn yet.
        left: those of them that have not ended; None where their folders say it.
        session: of the worker whose jobs are to be told of; None: all jobs. The others are only counted,
            as those who run them tell of them.

    Attributes:
        failed: the jobs that failed since, in whatever process.
    """

    def __init__(self, sweep: Sweep, total: int, left: int | None = None, session: str | None = None) -> None:
        self.failed: list[Job] = []
        self._sweep = sweep
        self._total = total
        self._session = session
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._results: dict[Job, float] = {}  # of the finished jobs
        self._open: dict[Job, int] = {}  # the others, with the age of their summaries
        self._states: dict[Job, str] = {}
        for job in sweep.runnable:
            if sweep.state(job) == State.FINISHED:
                self._note_result(job, sweep.summary(job))
            else:
                self._open[job] = _get_age(sweep.run_folder(job))
        self.left = self._at_first = len(self._open) if left is None else left
        self._known = {*sweep.jobs}

    def list_open(self) -> list[Job]:
        """Return the jobs of a grid that have not ended since, as far as was seen."""
        with self._lock:
            return [*self._open]

    def is_open(self, job: Job) -> bool:
        """Say whether a job of a grid has not ended since, in whatever process, by a look at its folder."""
        with self._lock:
            return job in self._open and not self._has_ended(job, self._sweep.state(job))

    def poll(self) -> None:
        """Look at every job of a grid that has not ended, and say which have by now."""
        with self._lock:
            self._adopt_jobs()
            states = {job: self._sweep.state(job) for job in self._open}
            for job, state in states.items():
                if self._has_ended(job, state):
                    del self._open[job]
                    self.left -= 1
                    self.report(job, running=sum(states[other] == State.RUNNING for other in self._open))
            if states != self._states:
                self._sweep.save()
            self._states = states

    def _adopt_jobs(self) -> None:
        """Go for jobs, too, that another process has added to the sweep, once they have a folder."""
        self._sweep.adopt_jobs()
        for job in self._sweep.runnable:
            if job not in self._known and self._sweep.run_folder(job).config.exists():
                self._known.add(job)
                self._open[job] = 0
                self.left += 1
                self._at_first += 1
                self._total += 1

    def _has_ended(self, job: Job, state: str) -> bool:
        # Of a job that failed before, the folder says so until it runs again.
        ended = state in (State.FINISHED, State.FAILED)
        return ended and _get_age(self._sweep.run_folder(job)) != self._open[job]

    def follow(self, total: int, left: int, failed: list[Job]) -> None:
        """Take over how far a search is, in all its processes."""
        self._total, self.left, self.failed = total, left, failed
        for job in self._sweep.jobs:
            if job.outcome == State.FINISHED and job not in self._results:
                self._note_result(job, self._sweep.summary(job))

    @contextlib.contextmanager
    def poll_regularly(self) -> Iterator[None]:
        """Look every second, and a last time at the end."""
        ended = threading.Event()

        def watch() -> None:
            pause = 1.0
            while not ended.wait(pause):
                begun = time.monotonic()
                self.poll()
                pause = max(1.0, 20 * (time.monotonic() - begun))  # a look at thousands of jobs takes a while

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.poll()

    def report(self, job: Job, *, running: int) -> None:
        """Say how a job ended, and what is still to do while so many others are running."""
        lease = read_lease(self._sweep.run_folder(job).path) if self._session and job.folder else None
        own = self._session is None or (lease is not None and lease["session"] == self._session)
        state, summary = self._sweep.state(job), self._sweep.summary(job)
        took = duration(summary.get("train", {}).get("wall_seconds") or 0)
        if state == State.FINISHED:
            self._note_result(job, summary)
            result = f"{OBJECTIVE} {self._results[job]:.4f}" if job in self._results else state
            result += f"  {took}"
        else:
            # The job itself has said the rest, or train.log has it.
            said = (job.reason or summary.get("error", "")).partition("\n")[0].partition(". ")[0]
            result = f"{state} after {took}: {said}"
            if state == State.FAILED:
                self.failed = [*(other for other in self.failed if other != job), job]
                result += f" ({self._sweep.run_folder(job)}/train.log)"
        known = Counter(j.outcome or "skipped" for j in self._sweep.jobs if j.outcome or j.folder is None)
        counts = [f"{state} {known[state]}" for state in COUNTED if known[state]]
        counts.append(f"failed {len(self.failed)}")
        counts.append(f"left {self.left}" + (f" ({running} running)" if running else ""))
        if self.left and self.left < self._at_first:
            seconds = (time.monotonic() - self._started) / (self._at_first - self.left) * self.left
            counts.append(f"about {duration(seconds)}")
        done = f"[{self._total - self.left}/{self._total}]"
        if own:
            say(f"{done} {job.label}  {result}   {', '.join(counts)}{self._best()}")

    def _note_result(self, job: Job, summary: SummaryData) -> None:
        value = summary.get("metrics", {}).get(OBJECTIVE)
        if isinstance(value, float | int):
            self._results[job] = value

    def _best(self) -> str:
        """Return the combination with the highest mean over its seeds, in words."""
        seeds: dict[str, list[float]] = defaultdict(list)
        for job, value in self._results.items():
            without_seed = (part for part in job.label.split() if not part.startswith("seed="))
            seeds[" ".join(without_seed)].append(value)
        means = {label: statistics.fmean(values) for label, values in seeds.items()}
        if not means:
            return ""
        label = max(means, key=means.__getitem__)
        return f"; best {label or 'so far'}: {means[label]:.4f}"


def _get_age(folder: RunFolder) -> int:
    return folder.summary.stat().st_mtime_ns if folder.summary.exists() else 0


def list_jobs(sweep: Sweep, jobs: Sequence[Job]) -> str:
    """Return the jobs and their states, a line each."""
    lines = []
    for job in jobs[:LISTED]:
        state, lease = sweep.state(job), read_lease(sweep.run_folder(job).path) if job.folder else None
        running = state == State.RUNNING
        where = f", by process {lease['pid']} on {lease['machine']}" if lease and running else ""
        lines.append(f"  {job.label or job.folder}: {state}{where}")
    return "\n".join([*lines, *([f"  and {len(jobs) - LISTED} more"] if len(jobs) > LISTED else [])])


def raise_if_stopped(sweep: Sweep, signum: int | None, left: str) -> None:
    """Say how to resume a sweep that was stopped by a signal with so much left, such as ``2 of 3 jobs``.

    Raises:
        Interrupted: it was stopped.
    """
    if signum is not None:
        lines = [f"stopped with {left} left", list_jobs(sweep, sweep.unfinished())]
        say("\n".join([*filter(None, lines), f"resume with: {sweep.resume_command}"]))
        # Queueing again ends the other tasks of a SLURM job at once: they keep their checkpoints first.
        deadline = time.monotonic() + OTHERS * (count_tasks() > 1)
        while time.monotonic() < deadline and sweep.count_states()[State.RUNNING]:
            time.sleep(0.2)
        runs = sorted(sweep.path.glob("*/config.yaml"))
        if runs and (said := requeue(RunFolder(runs[0].parent).read_config(), signum)):
            say(said)
        raise Interrupted(signum)
