"""A sweep: a folder of run folders, one a combination of values, that can be gone on with. Torch-free.

DIR/sweep.json                        the command and its jobs, for people and other programs (see `Sweep`)
DIR/patch_size-2_depth-4_seed-1/      a job: a run folder, claimed when the sweep begins

A job is known by its overrides, in whatever order. What state it is in follows from its folder alone
(`RunFolder.state`), so any number of processes, on all machines that share the disk, can work on one sweep.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from vitlab.core.errors import UserError
from vitlab.core.files import try_lock, write_atomic
from vitlab.core.run_folder import RunFolder
from vitlab.core.suggest import suggest

RECORD = "sweep.json"
LONGEST = 80  # characters of a job's folder name
OBJECTIVE = "val/accuracy"
STATES = ("waiting", "running", "finished", "failed", "interrupted", "skipped")


# Names


def own_overrides(overrides: Iterable[str]) -> list[str]:
    """Return the overrides that say what is trained: without Hydra's and those of the sweep itself."""
    return [o for o in overrides if not o.startswith(("hydra.", "hydra/", "sweep.", "sweep="))]


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
                f"{suggest(str(given), there)}."
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
            try_lock(lock, patience=60)
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
