"""``-m``: every combination of the values given, from a command line to a sweep's folder and its jobs."""

import contextlib
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vitlab.config import Combination, combinations, read_record, report
from vitlab.config.arguments import Arguments, check_folder
from vitlab.config.labels import HYDRA, label, own_overrides
from vitlab.core.console import say
from vitlab.core.errors import UserError
from vitlab.core.processes import rank_in_environment
from vitlab.core.run_folder import RunFolder
from vitlab.sweep.data_check import check_data, data_problems
from vitlab.sweep.launchers import check_launcher, launch_jobs
from vitlab.sweep.record import RECORD, Job, Sweep, find_sweep, folder_name


def run_grid(arguments: Arguments, show_results: Callable[[Path], object]) -> None:
    """Run the sweep that a command line asks for, or resume it; see `vitlab.sweep.run_sweep`."""
    launcher = [o for o in arguments.overrides if o.startswith((*HYDRA, "sweep.jobs_per_allocation="))]
    sweep, jobs = _load(arguments) if arguments.sweep_resume else _find_or_make(arguments)
    if launcher:
        sweep.launcher = [o for o in sweep.launcher if o.startswith("experiment=")] + launcher
    config = check_launcher(sweep)  # before anything is written
    known = {job.identity for job in sweep.jobs}
    new = [job for job in jobs if identify(job) not in known]
    if new:
        _add_jobs(sweep, new)
    number = len(sweep.runnable)
    count = f"{number} job{'s' * (number != 1)}"
    if new:
        say(f"{count} in {sweep}")
    if sweep.unfinished():
        launch_jobs(sweep, config, show_results)
    else:
        with contextlib.suppress(OSError):  # a disk that can only be read
            sweep.save()  # the call whose job was the last may have been killed before it could
        say(f"{sweep} is already finished: {count}. sweep.new=true runs it afresh.")
        show_results(sweep.path)


def _load(arguments: Arguments) -> tuple[Sweep, list[Combination]]:
    """Return the sweep of ``sweep.resume=``, and the jobs asked for beside it."""
    assert arguments.sweep_resume
    sweep = Sweep.load(arguments.sweep_resume)
    _make_folders(sweep, {})
    jobs: list[Combination] = []
    if own_overrides(arguments.overrides):
        jobs = combinations(arguments.overrides, True)
        sweep.command = _get_command(arguments)
    say(f"resuming {sweep}: python train.py {shlex.join(sweep.command)}")
    check_data([read_record(sweep.run_folder(job)) for job in sweep.unfinished()[:1]])
    _say_states(sweep)
    return sweep, jobs


def _find_or_make(arguments: Arguments) -> tuple[Sweep, list[Combination]]:
    """Return the sweep that has just the jobs of a command line, or one that has none yet, and those jobs."""
    jobs = combinations(arguments.overrides, True)
    if rank_in_environment():  # one of several tasks of SLURM: the first makes the sweep
        deadline = time.monotonic() + 60
        while not (jobs[0].folder / RECORD).exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    sweep = find_same(arguments, jobs)
    if sweep is None:
        return begin(arguments, jobs), jobs
    wanted = {identify(job): job for job in jobs}
    _make_folders(sweep, wanted)
    if left := sweep.unfinished():
        say(f"resuming {sweep}, which has the same jobs (sweep.new=true starts afresh)")
        _say_states(sweep)
        _note_changes(sweep.run_folder(left[0]), wanted[left[0].identity])
    return sweep, jobs


def find_same(arguments: Arguments, jobs: Sequence[Combination]) -> Sweep | None:
    """Return the newest sweep that has just these jobs, unless a new one is asked for."""
    wanted = {identify(job) for job in jobs}

    def matches(other: Sweep) -> bool:
        return other.search is None and {job.identity for job in other.jobs} == wanted

    launcher = [o for o in arguments.overrides if o.startswith(HYDRA)]
    return None if arguments.sweep_new else find_sweep(jobs[0].folder, launcher, matches)


def begin(arguments: Arguments, jobs: Sequence[Combination]) -> Sweep:
    """Return a sweep without jobs, in the folder that a command line asks for; nothing is written.

    Raises:
        UserError: it cannot have that folder.
    """
    folder, swept = jobs[0].folder, list(jobs[0].swept)
    if (folder / RECORD).exists():
        raise UserError(
            f"{folder} holds another sweep. Choose another folder (hydra.sweep.dir=…), or add these jobs "
            f"to it by sweep.resume={folder}."
        )
    check_folder(folder, "sweep")
    recipe = [o for o in jobs[0].overrides if o.startswith("experiment=") and "experiment" not in swept]
    return Sweep(folder.absolute(), _get_command(arguments), swept, recipe)


def identify(job: Combination) -> frozenset[str]:
    return frozenset(own_overrides(job.overrides))


def _get_command(arguments: Arguments) -> list[str]:
    return ["-m", *(o for o in arguments.overrides if not o.startswith(("sweep.resume=", "sweep.new=")))]


def _say_states(sweep: Sweep) -> None:
    say(", ".join(f"{number} {state}" for state, number in sorted(sweep.count_states().items())))


def _add_jobs(sweep: Sweep, jobs: list[Combination]) -> None:
    """Enter the jobs in the record, make a run folder for each that can run, and say which cannot.

    Raises:
        UserError: none can.
    """
    possible = {place: job.plain for place, job in enumerate(jobs) if not job.problems}
    refused = data_problems(possible)
    if refused and len(refused) == len(possible):
        raise UserError(next(iter(refused.values())))
    for place, problem in refused.items():
        jobs[place] = jobs[place].refused(problem)
    if any(job.problems for job in jobs):
        say(report(jobs, "are skipped"))
    enter(sweep, jobs)
    sweep.save()  # first: a folder that it does not name would belong to nobody
    _make_folders(sweep, {identify(job): job for job in jobs})


def enter(sweep: Sweep, jobs: Sequence[Combination]) -> None:
    """Add the jobs to a sweep, with a name for the folder of each that can run; nothing is written."""
    taken = {job.folder for job in sweep.jobs if job.folder}
    for job in jobs:
        overrides = tuple(own_overrides(job.overrides))
        text, name = label(overrides, own_overrides(job.swept)), None
        if not job.problems:
            name = folder_name(text, overrides, taken)
            taken.add(name)
        sweep.jobs.append(Job(overrides, text, name, "; ".join(job.problems) or None))


def _make_folders(sweep: Sweep, composed: Mapping[frozenset[str], Combination]) -> None:
    """Make the run folder of each job that has none: also after a call that was killed before it could."""
    for job in sweep.runnable:
        folder = sweep.run_folder(job)
        if folder.config.exists():
            continue
        if found := composed.get(job.identity):
            record = found.record
        else:
            record = combinations(job.overrides)[0].record | {"swept": sweep.swept}
        try:
            RunFolder.create(folder.path, record | {"overrides": [*job.overrides]})
        except UserError:
            if not folder.config.exists():  # otherwise another call on this sweep was faster
                raise


def _note_changes(folder: RunFolder, now: Combination) -> None:
    """Say it where conf/ no longer says what a sweep began with."""
    if now.problems:
        return
    old, ignored = read_record(folder), ("choices", "overrides", "swept")
    changed = [key for key, value in now.record.items() if key not in ignored and old.get(key) != value]
    if changed:
        say(
            f"note: conf/ has changed since this sweep began ({', '.join(changed)}). Its jobs keep the "
            "settings in their config.yaml; sweep.new=true starts afresh with the new ones."
        )
