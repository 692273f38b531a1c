"""``--plan``: what a command line would train and what that costs, for programs; nothing is written."""

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from vitlab.config import Combination, combinations, read_record
from vitlab.config.arguments import Arguments, check_folder
from vitlab.config.data_check import check_with_data
from vitlab.config.labels import own_overrides
from vitlab.config.plan import make_plan
from vitlab.core.errors import UserError
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder, State
from vitlab.sweep import grid, is_search
from vitlab.sweep.data_check import DataDescriptions
from vitlab.sweep.record import RECORD, Job, Sweep

# FLOPs of one image's forward pass through the network of a config for so many classes, and the device.
Measure = Callable[[Mapping[str, Any], int], tuple[int, str]]
NEW = "new"  # the state of a job that has no folder yet


class JobPreview(TypedDict):
    """A job: what trains or resumes it alone, where, and at which cost; None where that is not known."""

    label: str
    state: str
    problem: str | None  # why it cannot be trained
    folder: str | None
    command: str | None  # None: there is nothing to do, or another process is at it
    optimizer_steps: int | None  # of the whole run
    steps_left: int | None  # after its last epoch
    flops: int | None  # of the training that is left, without evaluation and without a teacher's part
    seconds: float | None  # of wall time for it, everything included, reckoned from the run in `seconds_from`
    seconds_from: str | None


@dataclass(frozen=True)
class Neighbour:
    """A finished run of the same study: what it cost."""

    folder: RunFolder
    device: str | None
    forward: int  # FLOPs of one image's forward pass
    seconds_per_flop: float


class Preview:
    """The answer to ``--plan``.

    Args:
        measure: counts what one image costs, and names the device; it needs torch, which this room does not.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._describe = DataDescriptions()
        self._forward: dict[str, tuple[int, str]] = {}  # of the networks so far
        self._neighbours: list[Neighbour] = []

    def of(self, arguments: Arguments) -> dict[str, Any]:
        """Return what the command line would train.

        Raises:
            UserError: it would be refused.
        """
        if arguments.resume:
            folder = RunFolder.find(arguments.resume)
            of_sweep = (folder.path.parent / RECORD).is_file()
            self._neighbours = [*find_neighbours(folder.path.parents[of_sweep])]
            return self._answer([self._there(folder)], folder, ["python", "train.py", f"resume={folder}"])
        if not arguments.multirun:
            (job,) = combinations(arguments.overrides)
            check_folder(job.folder)
            folder = RunFolder(job.folder)
            self._neighbours = [*find_neighbours(folder.path.parent)]
            preview = self._new(job, folder)
            if preview["problem"]:
                raise UserError(preview["problem"])
            return self._answer([preview], folder, shlex.split(str(preview["command"])))
        if is_search(arguments):
            raise UserError(
                "--plan lists jobs that are known, and a search draws its trials one by one; --status DIR "
                "says how far it is. Leave out sweep=optuna to plan every combination."
            )
        return self._of_grid(arguments)

    def _of_grid(self, arguments: Arguments) -> dict[str, Any]:
        added: list[Combination] = []
        if arguments.sweep_resume:
            sweep = Sweep.load(arguments.sweep_resume)
            if own_overrides(arguments.overrides):
                known = {job.identity for job in sweep.jobs}
                composed = combinations(arguments.overrides, True)
                added = [job for job in composed if grid.identify(job) not in known]
        else:
            added = combinations(arguments.overrides, True)
            if found := grid.find_same(arguments, added):
                sweep, added = found, []
            else:
                sweep = grid.begin(arguments, added)
        self._neighbours = [*find_neighbours(sweep.path.parent)]
        jobs = [self._of_job(sweep, job) for job in sweep.jobs]
        before = len(jobs)
        grid.enter(sweep, added)
        for job, combination in zip(sweep.jobs[before:], added, strict=True):
            folder = sweep.run_folder(job) if job.folder else None
            jobs.append(self._new(combination, folder, job.label))
        if not any(job["problem"] is None for job in jobs):
            raise UserError(str(jobs[0]["problem"]))
        if before:
            command = [*shlex.split(sweep.resume_command), *(["-m", *arguments.overrides] if added else [])]
        else:
            command = ["python", "train.py", *sweep.command, f"hydra.sweep.dir={RunFolder(sweep.path)}"]
        return self._answer(jobs, RunFolder(sweep.path), list(dict.fromkeys(command)))

    def _of_job(self, sweep: Sweep, job: Job) -> JobPreview:
        """Return what is to come of a job that a sweep has already."""
        if job.folder is None:
            return _empty(job.label, State.SKIPPED, job.reason)
        folder = sweep.run_folder(job)
        if folder.config.exists():
            return self._there(folder, job.label)
        (composed,) = combinations(job.overrides)  # of a call that was killed before it could make the folder
        return self._new(composed, folder, job.label)

    def _new(self, job: Combination, folder: RunFolder | None, label: str = "") -> JobPreview:
        """Return what is to come of a combination that has no folder yet."""
        if folder is None or job.problems:
            return _empty(label, State.SKIPPED, "; ".join(job.problems))
        words = [*own_overrides(job.overrides), f"hydra.run.dir={folder}"]
        return self._cost(job.record, folder, NEW, label, shlex.join(["python", "train.py", *words]))

    def _there(self, folder: RunFolder, label: str = "") -> JobPreview:
        """Return what is to come of a run that has a folder."""
        state = folder.state()
        command = folder.resume_command if state.resumable else None
        return self._cost(read_record(folder), folder, state, label, command)

    def _cost(
        self, config: Mapping[str, Any], folder: RunFolder, state: str, label: str, command: str | None
    ) -> JobPreview:
        """Return a job with what is left of its training, and what that costs."""
        try:
            data = self._describe(config["data"])
            plan = check_with_data(config, data)
            key = repr((sorted(config["model"].items(), key=str), len(data.classes)))
            if key not in self._forward:
                self._forward[key] = self._measure(config, len(data.classes))
            forward, device = self._forward[key]
        except UserError as error:
            return _empty(label, State.SKIPPED, str(error))
        finished, rows = state == State.FINISHED, read_metrics(folder)
        left = 0 if finished else plan.total_steps - (rows[-1]["step"] if rows else 0)
        flops = plan.training_flops(forward) * left // plan.total_steps
        nearest = min(
            (run for run in self._neighbours if run.device == device),
            key=lambda other: abs(math.log(other.forward / forward)),
            default=None,
        )
        return {
            "label": label,
            "state": state,
            "problem": None,
            "folder": str(folder),
            "command": command,
            "optimizer_steps": plan.total_steps,
            "steps_left": left,
            "flops": flops,
            "seconds": round(flops * nearest.seconds_per_flop, 1) if nearest else None,
            "seconds_from": str(nearest.folder) if nearest else None,
        }

    def _answer(
        self, jobs: Sequence[JobPreview], folder: RunFolder, command: Sequence[str]
    ) -> dict[str, Any]:
        left = [job for job in jobs if job["command"]]
        seconds = [job["seconds"] for job in left]
        return {
            "command": shlex.join(command) if left else None,
            "folder": str(folder),
            "left": {
                "jobs": len(left),
                "flops": sum(job["flops"] or 0 for job in left),
                # One after the other.
                "seconds": None if None in seconds else round(sum(filter(None, seconds)), 1),
            },
            "jobs": list(jobs),
        }


def find_neighbours(study: Path) -> Iterator[Neighbour]:
    """Yield the finished runs in the folder of a study, those of its sweeps among them."""
    for path in sorted((*study.glob("*/summary.json"), *study.glob("*/*/summary.json"))):
        folder = RunFolder(path.parent)
        summary = folder.read_summary()
        forward = summary.get("model", {}).get("flops_per_image")
        seconds = summary.get("train", {}).get("wall_seconds")
        if summary.get("status") == State.FINISHED and forward and seconds:
            plan = make_plan(folder.read_config(), summary["data"]["train"])
            yield Neighbour(folder, summary.get("device"), forward, seconds / plan.training_flops(forward))


def _empty(label: str, state: str, problem: str | None) -> JobPreview:
    unknown = dict.fromkeys(JobPreview.__annotations__)
    return {**unknown, "label": label, "state": state, "problem": problem}  # type: ignore[typeddict-item]
