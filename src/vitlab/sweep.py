"""A sweep: a folder of run folders, one a combination of values, that can be gone on with. Torch-free.

DIR/sweep.json                        the command and its jobs, for people and other programs (see `Sweep`)
DIR/patch_size-2_depth-4_seed-1/      a job: a run folder, claimed when the sweep begins

A job is known by its overrides, in whatever order. What state it is in follows from its folder alone
(`RunFolder.state`), so any number of processes, on all machines that share the disk, can work on one sweep.
"""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from signal import SIGTERM
from typing import Any

from rich.table import Table

from vitlab.cores import SHARE
from vitlab.errors import UserError, nearest
from vitlab.folder import RunFolder, Summary, is_held, take, write_atomic
from vitlab.processes import start

RECORD = "sweep.json"
LONGEST = 80  # characters of a job's folder name
ORPHAN = 30  # seconds that the job of a killed sweep has to end by itself
OBJECTIVE = "val/accuracy"
ROWS = 20  # of the table at the end
STATES = ("waiting", "running", "finished", "failed", "interrupted", "skipped")


# Names


def own_overrides(overrides: Iterable[str]) -> list[str]:
    """Return the overrides that say what is trained: without Hydra's and those of the sweep itself."""
    return [o for o in overrides if not o.startswith(("hydra.", "hydra/", "sweep.", "sweep="))]


def label(overrides: Iterable[str], keys: Iterable[str]) -> str:
    """Return what sets a job apart, such as ``"patch_size=2 depth=4"``.

    Args:
        overrides: of the job.
        keys: that were swept. Of each the last part is shown; more where two would look alike.
    """
    keys = list(keys)
    ends = [_last(key) for key in keys]
    short = {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return " ".join(f"{short[key]}={value}" for key, _, value in pairs if key in short)


def _last(key: str) -> str:
    return key.replace("/", ".").rpartition(".")[2]


def folder_name(text: str, identity: Iterable[str] = (), taken: Iterable[str] = ()) -> str:
    """Return a name for the folder of a job with the label ``text``, such as ``patch_size-2_depth-4``.

    Neither ``=`` nor a comma: Hydra takes those in a value only in two pairs of quotes, and a run's folder
    is a value (``task.teacher=``, ``resume=``).

    Args:
        identity: what the job is known by, for a name that is not free or too long.
    """
    safe = "".join(c if c.isalnum() or c in "._+-" else "-" for c in text.replace(" ", "_")).lstrip(".-")
    if 0 < len(safe) <= LONGEST and safe not in {*taken}:
        return safe
    mark = sha256("\n".join(sorted(identity)).encode()).hexdigest()[:8]
    return f"{safe[: LONGEST - 9]}_{mark}".lstrip("_")


# The record


@dataclass(frozen=True)
class Job:
    """One combination.

    overrides: of the job. label: what sets it apart. folder: its name below the sweep's, None where it is
    skipped. reason: why it is skipped.
    """

    overrides: tuple[str, ...]
    label: str
    folder: str | None
    reason: str | None = None

    @property
    def identity(self) -> frozenset[str]:
        return frozenset(self.overrides)

    @property
    def without_seed(self) -> str:
        return " ".join(part for part in self.label.split() if not part.startswith("seed="))


@dataclass
class Sweep:
    """The record of a sweep, ``sweep.json``.

    It lists each job's state as it was when a process of the sweep last had something to write: one that
    is killed cannot write. `state` is never out of date.

    command: as typed after the verb. swept: the keys. launcher: the overrides that choose Hydra's launcher.
    """

    path: Path
    command: list[str]
    swept: list[str]
    launcher: list[str]
    jobs: list[Job] = field(default_factory=list)

    @classmethod
    def load(cls, path: str | Path) -> "Sweep":
        """Read the sweep in a folder.

        Raises:
            UserError: there is none, or its record is damaged.
        """
        given = Path(path)
        folder = given.parent if given.name == RECORD else given
        try:
            data = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            jobs = [Job(tuple(j["overrides"]), j["label"], j["folder"], j["reason"]) for j in data["jobs"]]
            return cls(folder.absolute(), data["command"], data["swept"], data["launcher"], jobs)
        except (FileNotFoundError, NotADirectoryError):
            there = [str(record.parent) for record in Path("outputs").glob(f"**/{RECORD}")]
            raise UserError(
                f"sweep.resume={path}: expected the folder of a sweep, found no {RECORD} in it"
                f"{nearest(str(given), there)}."
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / RECORD} cannot be read: {error!r}") from None

    def __str__(self) -> str:
        return str(RunFolder(self.path))

    @property
    def runnable(self) -> list[Job]:
        return [job for job in self.jobs if job.folder is not None]

    @property
    def skipped(self) -> int:
        return len(self.jobs) - len(self.runnable)

    def run_folder(self, job: Job) -> RunFolder:
        assert job.folder is not None
        return RunFolder(self.path / job.folder)

    def state(self, job: Job) -> str:
        """Return one of ``STATES``."""
        return "skipped" if job.folder is None else self.run_folder(job).state()

    def left(self) -> list[Job]:
        return [job for job in self.runnable if self.state(job) != "finished"]

    def same(self, identities: Iterable[frozenset[str]]) -> bool:
        return {job.identity for job in self.jobs} == {*identities}

    def add(self, job: Job, config: Mapping[str, Any]) -> None:
        """Claim a folder for a new job; `save` puts it on record.

        Args:
            config: what the run folder's config.yaml is to hold.
        """
        if job.folder is not None:
            RunFolder.create(self.path / job.folder, dict(config))
        self.jobs.append(job)

    def save(self) -> None:
        """Write the record with the state of every job; other processes may do the same at any time."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".sweep.lock", "a") as lock:
            take(lock, patience=60)
            with contextlib.suppress(UserError):
                known = {job.identity for job in self.jobs}
                # Another process may have added jobs since.
                self.jobs += [job for job in Sweep.load(self.path).jobs if job.identity not in known]
            data = {
                "command": self.command,
                "swept": self.swept,
                "launcher": self.launcher,
                "jobs": [
                    {
                        "label": job.label,
                        "state": self.state(job),
                        "folder": job.folder,
                        "reason": job.reason,
                        "overrides": job.overrides,
                    }
                    for job in self.jobs
                ],
            }
            text = json.dumps(data, indent=2, ensure_ascii=False)
            write_atomic(self.path / RECORD, (text + "\n").encode())


def newest(folders: Iterable[Path], identities: Iterable[frozenset[str]]) -> Sweep | None:
    """Return the newest sweep in ``folders`` that has just these jobs; names are times."""
    identities = {*identities}
    for folder in sorted(folders, reverse=True):
        with contextlib.suppress(UserError):
            if (sweep := Sweep.load(folder)).same(identities):
                return sweep
    return None


# Its jobs, in whatever process a launcher puts them


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
    def begin(cls, sweep: Sweep, *, cores: int | None, gpus: Sequence[str], shown: bool) -> "Session":
        return cls(sweep.path, socket.gethostname(), os.getpid(), cores, gpus, shown)

    @property
    def _file(self) -> Path:
        return self.folder / f".session-{self.host}-{self.pid}"

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Be there for the jobs. They see by a lock when this process is gone, however it went."""
        for other in self.folder.glob(f".session-{self.host}-*"):
            if not is_held(other) and "-gpu-" not in other.name:  # of one that was killed
                other.unlink(missing_ok=True)
        with open(self._file, "a") as file:
            take(file)
            try:
                yield
            finally:
                self._file.unlink(missing_ok=True)
                for slot in self.folder.glob(f"{self._file.name}-gpu-*"):
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
        return self.host == socket.gethostname() and not is_held(self._file)

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
                    path = self.folder / f"{self._file.name}-gpu-{slot}"
                    if take(held.enter_context(open(path, "a"))):
                        share["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
                        break
            yield share


def run_one(folder: RunFolder, session: Session) -> None:
    """Run, or go on with, one job in a process of its own, unless somebody else does or has done.

    However the job ends is on record in its folder; nothing is raised.
    """
    if session.stopped():
        return
    with open(folder.claim, "a") as claim:
        if not take(claim):
            return
        deadline = time.monotonic() + ORPHAN
        while folder.is_locked() and time.monotonic() < deadline:
            time.sleep(0.2)
        if folder.is_locked() or Summary(folder).data.get("status") == "finished":
            return
        with session.share(folder.read_config()["trainer"]["devices"]) as share:
            code = _wait(start(folder, shown=session.shown, **share), session)
        if code in (128 + 2, 128 + 15):  # Ctrl-C or SIGTERM end the sweep and not one job
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


# What is said


def duration(seconds: float) -> str:
    """Return ``"1:02"`` or ``"2:03:04"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Say one line for each job that ends, in whatever process it runs.

    Args:
        say: prints a line.
    """

    def __init__(self, sweep: Sweep, say: Callable[[str], None]) -> None:
        self._sweep, self._say = sweep, say
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._done: dict[Job, dict[str, Any]] = {}  # finished ones, with their summaries
        self._before: dict[Job, int] = {}  # open ones, with the age of their summaries
        self._states: dict[Job, str] = {}
        self.failed: list[Job] = []
        self._ended = 0
        for job in sweep.runnable:
            if sweep.state(job) == "finished":
                self._done[job] = Summary(sweep.run_folder(job)).data
            else:
                self._before[job] = _changed(sweep.run_folder(job))

    def look(self) -> None:
        """Look at every job that has not ended, and say which have by now."""
        with self._lock:
            states = {job: self._sweep.state(job) for job in self._before}
            for job, state in states.items():
                folder = self._sweep.run_folder(job)
                # Of a job that failed before, the folder says so until it runs again.
                if state in ("finished", "failed") and _changed(folder) != self._before[job]:
                    del self._before[job]
                    self._ended += 1
                    summary = Summary(folder).data
                    if state == "finished":
                        self._done[job] = summary
                    else:
                        self.failed.append(job)
                    running = sum(states[other] == "running" for other in self._before)
                    self._say(self._line(job, summary, running))
            if states != self._states:
                self._sweep.save()
            self._states = states

    @contextlib.contextmanager
    def follow(self) -> Iterator[None]:
        """Look every second, and a last time at the end."""
        ended = threading.Event()

        def watch() -> None:
            pause = 1.0
            while not ended.wait(pause):
                begun = time.monotonic()
                self.look()
                pause = max(1.0, 20 * (time.monotonic() - begun))  # of thousands of jobs a look takes a while

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.look()

    def _line(self, job: Job, summary: Mapping[str, Any], running: int) -> str:
        number, left = len(self._done) + len(self.failed), len(self._before)
        took = duration(summary.get("train", {}).get("wall_seconds") or 0)
        if job in self._done:
            accuracy = _accuracy(summary)
            result = f"{OBJECTIVE} {accuracy:.4f}  {took}" if accuracy is not None else f"finished  {took}"
        else:
            said = str(summary.get("error", "")).partition("\n")[0]
            result = f"failed after {took}: {said} ({self._sweep.run_folder(job).log})"
        counts = f"failed {len(self.failed)}, skipped {self._sweep.skipped}, left {left}"
        if running:
            counts += f" ({running} running)"
        if left:
            seconds = (time.monotonic() - self._started) / self._ended * left
            counts += f", about {seconds / 60:.0f} min" if seconds >= 60 else ", less than a minute"
        ranked = ranking(self._done)
        best = f"; best {ranked[0][0] or 'so far'}: {ranked[0][1][OBJECTIVE][0]:.4f}" if ranked else ""
        return f"[{number}/{number + left}] {job.label}  {result}   {counts}{best}"


def _changed(folder: RunFolder) -> int:
    try:
        return folder.summary.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _accuracy(summary: Mapping[str, Any]) -> float | None:
    value = summary.get("metrics", {}).get(OBJECTIVE)
    return value if isinstance(value, float | int) else None


Row = tuple[str, dict[str, tuple[float, float | None, int]]]


def ranking(summaries: Mapping[Job, Mapping[str, Any]]) -> list[Row]:
    """Return, best first by hold-out accuracy, each combination with mean, deviation and number of its seeds.

    Test accuracy has no part in the order: nothing is selected on test data.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for job, summary in summaries.items():
        if _accuracy(summary) is not None:
            groups.setdefault(job.without_seed, []).append(summary["metrics"])
    rows = []
    for name, metrics in groups.items():
        row = {}
        for key in (OBJECTIVE, "test/accuracy"):
            if found := [m[key] for m in metrics if m.get(key) is not None]:
                spread = statistics.stdev(found) if len(found) > 1 else None
                row[key] = statistics.fmean(found), spread, len(found)
        rows.append((name, row))
    return sorted(rows, key=lambda row: -row[1][OBJECTIVE][0])


def results(sweep: Sweep) -> Table:
    """Return the finished jobs as a table, best first, the seeds of one combination in one row."""
    done = {j: Summary(sweep.run_folder(j)).data for j in sweep.runnable if sweep.state(j) == "finished"}
    rows = ranking(done)
    table = Table(title=f"{sweep}, best {OBJECTIVE} first", title_justify="left")
    table.add_column("combination")
    for name in ("runs", OBJECTIVE, "test/accuracy"):
        table.add_column(name, justify="right")
    for name, row in rows[:ROWS]:
        cells = [_cell(*row[key]) if key in row else "-" for key in (OBJECTIVE, "test/accuracy")]
        table.add_row(name or "all alike", str(row[OBJECTIVE][2]), *cells)
    if len(rows) > ROWS:
        table.caption = f"and {len(rows) - ROWS} more"
    return table


def _cell(mean: float, spread: float | None, _: int) -> str:
    return f"{mean:.4f}" if spread is None else f"{mean:.4f} ± {spread:.4f}"


def unfinished(sweep: Sweep, jobs: Sequence[Job] | None = None, most: int = 10) -> str:
    """Return which jobs are left, in lines."""
    jobs = sweep.left() if jobs is None else jobs
    lines = [f"  {job.label or job.folder}: {sweep.state(job)}" for job in jobs[:most]]
    return "\n".join([*lines, *([f"  and {len(jobs) - most} more"] if len(jobs) > most else [])])
