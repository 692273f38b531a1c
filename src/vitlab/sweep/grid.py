"""``-m``: every combination of the values given, as one sweep that can be resumed.

From a command line to the folder of a sweep: which one, which jobs, and why some cannot run.
"""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from vitlab.config import Combination, combinations, report
from vitlab.config.arguments import Arguments, check_folder
from vitlab.config.labels import label
from vitlab.core.console import say
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.sweep.data_check import data_problems
from vitlab.sweep.launchers import check_launcher, launch_jobs
from vitlab.sweep.record import RECORD, Job, Sweep, find_sweep, folder_name, own_overrides


def run_grid(arguments: Arguments, show_results: Callable[[Path], object]) -> None:
    """Run the sweep that a command line asks for, or resume it.

    Raises:
        UserError: it cannot run as asked for, or jobs failed.
        Interrupted: Ctrl-C or SIGTERM; the jobs under way have kept a checkpoint.
    """
    launcher = [o for o in arguments.overrides if o.startswith(("hydra.", "hydra/"))]
    sweep, new = _load(arguments) if arguments.sweep_resume else _find_or_make(arguments, launcher)
    if launcher:
        sweep.launcher = [o for o in sweep.launcher if o.startswith("experiment=")] + launcher
    config = check_launcher(sweep)  # before anything is written
    if new:
        _add_jobs(sweep, new)
        sweep.save()
        say(f"{_count(sweep)} in {sweep}")
    if sweep.unfinished():
        launch_jobs(sweep, config, show_results)
    else:
        say(f"{sweep} is already finished: {_count(sweep)}. sweep.new=true runs it afresh.")
        show_results(sweep.path)


def _count(sweep: Sweep) -> str:
    number = len(sweep.runnable)
    return f"{number} job{'s' * (number != 1)}"


def _load(arguments: Arguments) -> tuple[Sweep, list[Combination]]:
    """Return the sweep of ``sweep.resume=``, and the jobs asked for beside it that it does not have yet."""
    assert arguments.sweep_resume
    sweep = Sweep.load(arguments.sweep_resume)
    new: list[Combination] = []
    if own_overrides(arguments.overrides):
        known = {job.identity for job in sweep.jobs}
        new = [job for job in combinations(arguments.overrides, True) if _identify(job) not in known]
        sweep.command = _get_command(arguments)
    say(f"resuming {sweep}: python train.py {shlex.join(sweep.command)}")
    first = [sweep.run_folder(job).read_config() for job in sweep.unfinished()[:1]]
    for error in data_problems(first).values():
        raise UserError(error)
    _say_states(sweep)
    return sweep, new


def _find_or_make(arguments: Arguments, launcher: list[str]) -> tuple[Sweep, list[Combination]]:
    """Return the sweep that has just the jobs of a command line, or a new one and the jobs it is to get."""
    jobs = combinations(arguments.overrides, True)
    wanted = {_identify(job): job for job in jobs}
    folder, given = jobs[0].folder, any(o.startswith("hydra.sweep.dir=") for o in launcher)
    fresh = arguments.sweep_new
    sweep = None if fresh else find_sweep(folder, given, lambda other: other.has_just(wanted))
    if sweep is None:
        if given and (folder / RECORD).exists():
            raise UserError(
                f"{folder} holds another sweep. Choose another folder (hydra.sweep.dir=…), or add these jobs "
                f"to it by sweep.resume={folder}."
            )
        check_folder(arguments.overrides)
        swept = list(jobs[0].swept)
        recipe = [o for o in jobs[0].overrides if o.startswith("experiment=") and "experiment" not in swept]
        return Sweep(folder.absolute(), _get_command(arguments), swept, recipe), jobs
    if left := sweep.unfinished():
        say(f"resuming {sweep}, which has the same jobs (sweep.new=true starts afresh)")
        _say_states(sweep)
        _note_changes(sweep.run_folder(left[0]), wanted[left[0].identity])
    return sweep, []


def _identify(job: Combination) -> frozenset[str]:
    return frozenset(own_overrides(job.overrides))


def _get_command(arguments: Arguments) -> list[str]:
    return ["-m", *(o for o in arguments.overrides if not o.startswith(("sweep.resume=", "sweep.new=")))]


def _say_states(sweep: Sweep) -> None:
    say(", ".join(f"{number} {state}" for state, number in sorted(sweep.count_states().items())))


def _add_jobs(sweep: Sweep, jobs: Sequence[Combination]) -> None:
    """Make a run folder for each job that can run, and say which cannot.

    Raises:
        UserError: none can.
    """
    possible = [job for job in jobs if not job.problems]
    refused = data_problems([job.plain for job in possible])
    if possible and len(refused) == len(possible):
        raise UserError(next(iter(refused.values())))
    said = {id(possible[place]): text for place, text in refused.items()}
    jobs = [job.refused(said[id(job)]) if id(job) in said else job for job in jobs]
    if any(job.problems for job in jobs):
        say(report(jobs, "are skipped"))
    taken = {job.folder for job in sweep.jobs if job.folder}
    for job in jobs:
        overrides = tuple(own_overrides(job.overrides))
        text = label(overrides, own_overrides(job.swept))
        if job.problems:
            sweep.jobs.append(Job(overrides, text, None, "; ".join(job.problems)))
            continue
        name = folder_name(text, overrides, taken)
        taken.add(name)
        RunFolder.create(sweep.path / name, job.record | {"overrides": [*overrides]})
        sweep.jobs.append(Job(overrides, text, name))


def _note_changes(folder: RunFolder, now: Combination) -> None:
    """Say it where conf/ no longer says what a sweep began with."""
    if now.problems:
        return
    old, new = folder.read_config(), now.record
    ignored = ("choices", "overrides", "swept")
    changed = [key for key in new if key not in ignored and old.get(key) != new[key]]
    if changed:
        say(
            f"note: conf/ has changed since this sweep began ({', '.join(changed)}). Its jobs keep the "
            "settings in their config.yaml; sweep.new=true starts afresh with the new ones."
        )
