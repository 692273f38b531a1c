"""A sweep: a folder with ``sweep.json`` and a run folder for each combination of values.

A search is a sweep whose jobs, there called trials, are drawn one by one.
"""

import contextlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from vitlab.core.errors import UserError
from vitlab.core.files import add_folder, try_lock, write_json
from vitlab.core.run_folder import RunFolder, State
from vitlab.core.suggest import suggest
from vitlab.core.summary import SummaryData
from vitlab.core.untrusted import misfits, read_json

RECORD = "sweep.json"
LONGEST = 80  # characters of a job's folder name
OBJECTIVE = "val/accuracy"


def folder_name(label: str, identity: Iterable[str] = (), taken: Iterable[str] = ()) -> str:
    """Return a name for a job's folder, such as ``patch_size-2_depth-4``.

    Neither ``=`` nor a comma: Hydra takes those in a value only in two pairs of quotes, and a run's folder
    is a value (``task.teacher=``, ``resume=``). ``identity`` completes a name that is taken or too long.
    """
    safe = "".join(c if c.isalnum() or c in "._+-" else "-" for c in label.replace(" ", "_")).lstrip(".-")
    if 0 < len(safe) <= LONGEST and safe not in {*taken}:
        return safe
    mark = sha256("\n".join(sorted(identity)).encode()).hexdigest()[:8]
    return f"{safe[: LONGEST - 9]}_{mark}".lstrip("_")


class JobRecord(TypedDict):
    """A job in ``sweep.json``."""

    label: str
    folder: str | None
    reason: str | None
    overrides: list[str]


class SearchRecord(TypedDict):
    """What was typed for a search, and what its processes agree on."""

    fixed: list[str]  # overrides
    space: dict[str, str]  # key → values
    trials: NotRequired[int]  # in all
    study: NotRequired[str]  # its name in sweep.storage; absent where one process alone works on the search


class Record(TypedDict):
    """``sweep.json``."""

    command: list[str]
    swept: list[str]
    launcher: list[str]
    jobs: list[JobRecord]
    search: NotRequired[SearchRecord]


@dataclass(frozen=True)
class Job:
    """One combination of values, known by its overrides in whatever order."""

    overrides: tuple[str, ...]  # as a person would type them
    label: str  # what sets it apart, such as ``patch_size=2 seed=1``
    folder: str | None  # its name below the sweep's; None for one that cannot be trained
    reason: str | None = None  # why it cannot be trained, or how a trial ended
    outcome: str | None = None  # what became of a trial; None where the state of its folder says it
    # Further entries of a trial in sweep.json.
    details: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @property
    def identity(self) -> frozenset[str]:
        """The overrides without their order."""
        return frozenset(self.overrides)


@dataclass
class Sweep:
    """The record of a sweep, ``sweep.json``.

    The states in the file are as old as the file. `state` is never out of date: it follows from the job's
    folder alone, so any number of processes, on all machines that share the disk, can work on one sweep.
    """

    path: Path  # the folder
    command: list[str]  # as typed after the verb
    swept: list[str]  # the keys that differ between the jobs
    launcher: list[str]  # the overrides that choose Hydra's launcher
    jobs: list[Job] = field(default_factory=list)  # those that cannot be trained among them
    search: SearchRecord | None = None

    @classmethod
    def load(cls, path: str | Path) -> "Sweep":
        """Read the sweep in a folder.

        Raises:
            UserError: there is none, or its record is damaged.
        """
        given = Path(path)
        folder = given.parent if given.name == RECORD else given
        try:
            data = read_json(folder / RECORD)
            if wrong := next(misfits(data, Record), None):
                raise ValueError(f"{wrong} is missing or not as expected")
            for name in filter(None, (job["folder"] for job in data["jobs"])):
                if Path(name).name != name or name == ".." or (folder / name).is_symlink():
                    raise ValueError(f"the job {name!r} is outside the sweep's folder")
            jobs = [Job(tuple(j["overrides"]), j["label"], j["folder"], j["reason"]) for j in data["jobs"]]
            typed = (data["command"], data["swept"], data["launcher"])
            return cls(folder.absolute(), *typed, jobs, data.get("search"))
        except (FileNotFoundError, NotADirectoryError):
            there = [str(record.parent) for record in Path("outputs").glob(f"**/{RECORD}")]
            raise UserError(
                f"sweep.resume={path}: expected the folder of a sweep, found no {RECORD} in it"
                f"{suggest(str(given), there)}."
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{folder / RECORD} cannot be read: {error}.") from None

    def __str__(self) -> str:
        return str(RunFolder(self.path))

    @property
    def runnable(self) -> list[Job]:
        """The jobs that can be trained."""
        return [job for job in self.jobs if job.folder is not None]

    @property
    def resume_command(self) -> str:
        """The command that resumes the sweep."""
        return shlex.join(["python", "train.py", f"sweep.resume={self}"])

    def run_folder(self, job: Job) -> RunFolder:
        """Return the run folder of a job."""
        assert job.folder is not None
        return RunFolder(self.path / job.folder)

    def summary(self, job: Job) -> SummaryData:
        """Return what a job's summary.json says."""
        return self.run_folder(job).read_summary()

    def state(self, job: Job) -> str:
        """Return the state of the job's run, ``skipped``, or what became of a trial."""
        if job.outcome is not None:
            return job.outcome
        return State.SKIPPED if job.folder is None else self.run_folder(job).state()

    def count_states(self) -> Counter[str]:
        """Return how many jobs are in which state."""
        return Counter(map(self.state, self.jobs))

    def unfinished(self) -> list[Job]:
        """Return the jobs that are to be run or resumed."""
        return [job for job in self.runnable if job.outcome is None and self.state(job) != State.FINISHED]

    def adopt_jobs(self) -> None:
        """Take over jobs that another process has added to the record since."""
        if self.search is None:
            with contextlib.suppress(UserError):
                known = {job.identity for job in self.jobs}
                self.jobs += [job for job in Sweep.load(self.path).jobs if job.identity not in known]

    def save(self, *, new: bool = False) -> None:
        """Write the record with the state of every job; other processes may do the same at any time.

        Args:
            new: of several that write it at once one succeeds; raises FileExistsError if it exists.
        """
        add_folder(self.path)
        with open(self.path / ".sweep.lock", "a") as lock:
            with contextlib.suppress(OSError):  # no locks on this disk
                try_lock(lock, patience=60)
            states = {job: self.state(job) for job in self.jobs}  # first, as it takes longest
            self.adopt_jobs()
            data = {
                "command": self.command,
                "swept": self.swept,
                "launcher": self.launcher,
                **({} if self.search is None else {"search": self.search}),
                "jobs": [
                    {
                        "label": job.label,
                        "state": states.get(job) or self.state(job),
                        "folder": job.folder,
                        "reason": job.reason,
                        "overrides": job.overrides,
                        **job.details,
                    }
                    for job in self.jobs
                ],
            }
            write_json(self.path / RECORD, data, new=new)


def find_sweep(folder: Path, overrides: Iterable[str], matches: Callable[[Sweep], bool]) -> Sweep | None:
    """Return the sweep that a command line asks for, as ``matches`` says, or None.

    Args:
        folder: that a new sweep would get. Where ``overrides`` do not name it, the newest one beside it
            counts (names are times).
    """
    given = any(o.startswith("hydra.sweep.dir=") for o in overrides)
    there = [folder] if given else sorted((r.parent for r in folder.parent.glob(f"*/{RECORD}")), reverse=True)
    for path in there:
        with contextlib.suppress(UserError):
            if matches(sweep := Sweep.load(path)):
                return sweep
    return None
