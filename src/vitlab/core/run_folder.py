"""The run folder: the one place where a run keeps everything.

config.yaml     the resolved configuration, the whole input of `vitlab.training.run.run`
summary.json    status, metrics, cost, provenance (see `vitlab.core.summary`)
metrics.csv     one row an epoch
steps.csv       one row a step that something was logged at, with logger=csv, mlflow or wandb
diagnostics.csv one row a measure, layer and head, with callbacks=diagnostics
checkpoints/    best.ckpt, last.ckpt and previous.ckpt, the one before it, each with a .sha256 beside it
figures/        history.png, confusion_matrix.png, predictions.png
nonfinite.json  of a run that diverged: the step, the learning rate, and the images of its batch
trackers.json   under which ids MLflow and W&B know the run
train.log, events.out.tfevents.*, wandb/
"""

import contextlib
import os
import shlex
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from vitlab.core.claim import is_held, read_lease
from vitlab.core.errors import UserError
from vitlab.core.files import NO_LOCKS, add_folder, is_locked, try_lock, write_atomic
from vitlab.core.provenance import find_commit, find_versions
from vitlab.core.suggest import suggest
from vitlab.core.summary import Summary, SummaryData
from vitlab.core.untrusted import read_yaml, to_yaml

EVENTS = "events.out.tfevents."  # then the second of its making, which is how TensorBoard sorts a run's files
PREVIOUS = "previous.ckpt"  # what last.ckpt was before: a file of its own, so that no bad block takes both


class State(StrEnum):
    """What became of a run, or of a job or trial that has no run folder yet; the good ones first."""

    FINISHED = "finished"
    RUNNING = "running"
    WAITING = "waiting"  # it has a folder, and nobody has begun with it
    INTERRUPTED = "interrupted"  # stopped or killed: it can be resumed
    FAILED = "failed"
    PRUNED = "pruned"  # by a search, before its last epoch
    SKIPPED = "skipped"  # a combination that cannot be trained: it has no folder

    @property
    def resumable(self) -> bool:
        """Whether ``resume=`` goes on with a run in this state."""
        return self in (State.WAITING, State.INTERRUPTED, State.FAILED)


def taken(folder: "RunFolder") -> UserError:
    """Return the error of a folder that holds a run already."""
    return UserError(
        f"{folder} holds a run already. Continue it by `{folder.resume_command}`, or choose another "
        "folder (hydra.run.dir=…)."
    )


class RunFolder:
    """Paths of a run, and the rules about who may write to it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.config = self.path / "config.yaml"
        self.summary = self.path / "summary.json"
        self.metrics = self.path / "metrics.csv"
        self.steps = self.path / "steps.csv"
        self.trackers = self.path / "trackers.json"
        self.diagnostics = self.path / "diagnostics.csv"
        self.log = self.path / "train.log"
        self.figures = self.path / "figures"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.previous = self.checkpoints / PREVIOUS
        self.best = self.checkpoints / "best.ckpt"
        self._lock = self.path / ".lock"

    def __str__(self) -> str:
        """The path as a person would type it: relative where that is shorter."""
        with contextlib.suppress(ValueError):
            return str(self.path.relative_to(Path.cwd()))
        return str(self.path)

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any]) -> "RunFolder":
        """Claim ``path`` for a new run, and write the two files that it starts from.

        Args:
            config: resolved, plain values, with what was typed (see `vitlab.config.make_record`).

        Raises:
            UserError: it cannot be written to, or it holds a run already, which this one would overwrite.
        """
        folder = cls(path)
        try:
            add_folder(folder.path)
        except OSError as error:
            raise UserError(f"the run folder cannot be made: {error}") from error
        try:
            # Of two runs that claim one folder, one gets it.
            write_atomic(folder.config, to_yaml(config), new=True)
        except FileExistsError:
            raise taken(folder) from None
        seed, overrides = config.get("seed", 0), config.get("overrides", [])
        if read_lease(folder.path) is None:  # otherwise a worker on this sweep has begun with it already
            Summary(folder.summary).begin(seed, overrides, find_versions(), find_commit())
        return folder

    @classmethod
    def find(cls, path: str | Path, key: str = "resume") -> "RunFolder":
        """Return the run at ``path``: its folder, or the config.yaml, checkpoints or last.ckpt in it.

        Args:
            key: what it was given as, for the message; empty: as an argument of a verb.

        Raises:
            UserError: there is no run; names the nearest folder that is one.
        """
        given, sign = Path(path), f"{key}=" if key else ""
        # Up from these names alone: a mistyped folder must not be taken for one above it.
        up = {"config.yaml": given.parent, "checkpoints": given.parent, "last.ckpt": given.parent.parent}
        folder = up.get(given.name, given)
        if (folder / "config.yaml").is_file():
            return cls(folder)
        if given.suffix == ".ckpt" and (given.parent.parent / "config.yaml").is_file():
            raise UserError(
                f"a run resumes from its last.ckpt, not from {given.name}: resume={given.parent.parent}"
            )
        if jobs := sorted(str(job.parent) for job in given.glob("*/config.yaml")):
            is_sweep = key == "resume" and (given / "sweep.json").is_file()
            whole = f", or resume the sweep with sweep.resume={given}" * is_sweep
            raise UserError(
                f"{given} holds {len(jobs)} runs; name one of them, such as {sign}{jobs[0]}{whole}."
            )
        parent = given.parent if given.parent.is_dir() else Path("outputs")
        runs: list[str] = []
        # Two levels: a study and its runs. All below may be a whole disk, and files that vanish meanwhile.
        for pattern in ("*/config.yaml", "*/*/config.yaml"):
            with contextlib.suppress(OSError):
                runs += [str(run.parent) for run in parent.glob(pattern)]
        what = "has no config.yaml, so it is not a run folder" if given.exists() else "does not exist"
        raise UserError(f"{sign}{path} {what}{suggest(str(given), runs)}.")

    def is_locked(self) -> bool:
        """Say whether a process trains in this folder."""
        return is_locked(self._lock)

    @property
    def resume_command(self) -> str:
        """What is typed to go on with the run."""
        return shlex.join(["python", "train.py", f"resume={self}"])

    def state(self, summary: Mapping[str, Any] | None = None) -> State:
        """Return what became of the run; ``summary`` is what summary.json holds, if it has been read."""
        status = (self.read_summary() if summary is None else summary).get("status")
        if status in (State.FINISHED, State.PRUNED):
            return State(status)
        try:
            locked = self.is_locked() or is_held(self.path)
        except OSError:  # a file that only its owner can read
            locked = status == State.RUNNING
        if locked:
            return State.RUNNING
        # A run that was killed could not record that; its lock went with it.
        if status in (None, State.WAITING):
            return State.WAITING
        return State.FAILED if status == State.FAILED else State.INTERRUPTED

    def read_config(self) -> dict[str, Any]:
        """Return the resolved configuration.

        Raises:
            UserError: config.yaml is unreadable.
        """
        try:
            config = read_yaml(self.config)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.config} cannot be read: {error}.") from None
        if not isinstance(config, dict):
            raise UserError(f"{self.config} is empty or not a configuration; the run cannot be rebuilt.")
        return config

    def read_summary(self) -> SummaryData:
        """Return what summary.json holds; nothing where there is none, or none that can be read."""
        return Summary(self.summary, writable=False).data

    def discard(self) -> None:
        """Remove a run that has not trained, with what a run writes before it trains."""
        if self.checkpoints.exists():  # whatever its summary says
            return
        for path in (self.config, self.summary, self.log, self.steps, self.trackers, self._lock):
            path.unlink(missing_ok=True)
        for path in self.path.glob(f"{EVENTS}*"):
            path.unlink()
        shutil.rmtree(self.path / "wandb", ignore_errors=True)
        with contextlib.suppress(OSError):  # there is something else in it
            self.path.rmdir()

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a run that was killed; called by who holds the folder."""
        for folder in (self.path, self.checkpoints, self.figures):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder while training in it; see `vitlab.core.files.try_lock`.

        Raises:
            UserError: another process trains in this folder.
        """
        with open(self._lock, "a+") as file:
            try:
                free = try_lock(file, patience=0.5)  # who only asks whether it is held has it for a moment
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                free = True
            if not free:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise UserError(
                    f"{self} is being trained by {owner}. Wait for it, or stop it, and then resume."
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield


def find_checkpoint(path: str | Path, key: str) -> Path:
    """Return the weights that ``path`` means: a checkpoint file, or of a run folder the best, else the last.

    Args:
        key: what it was given as, for the message; empty: as an argument of a verb.

    Raises:
        UserError: there is neither.
    """
    given, sign = Path(path), f"{key}=" if key else ""
    if given.is_file() and given.name != "config.yaml":
        return given
    if given.suffix == ".ckpt":
        raise UserError(f"{sign}{path}: there is no such file.")
    folder = RunFolder.find(given, key)
    for checkpoint in (folder.best, folder.last):
        if checkpoint.exists():
            return checkpoint
    raise UserError(f"{sign}{path} has no checkpoint: that run has not finished an epoch.")


def wait_for_run(path: str | Path) -> RunFolder:
    """Return the run at ``path`` once rank 0 has made it; for the other ranks that torchrun starts.

    Raises:
        UserError: it has not within a minute.
    """
    folder = RunFolder(path)
    deadline = time.monotonic() + 60
    while not folder.config.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"rank 0 made no run folder at {folder}. Under torchrun all ranks need one folder: give "
                "hydra.run.dir=DIR."
            )
        time.sleep(0.1)
    return folder
