"""``-m``: every combination of the values given, as one sweep that can be gone on with. Torch-free.

From a command line to the folder of a sweep: which one, which jobs, and why some cannot run.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.types import RunMode

from vitlab.config import Combination, combinations, report, to_plain
from vitlab.config.composer import Composer
from vitlab.config.labels import label
from vitlab.core.console import say
from vitlab.core.errors import UserError
from vitlab.core.processes import rank_in_environment
from vitlab.core.run_folder import RunFolder
from vitlab.sweep.launchers import check_launcher, run_jobs
from vitlab.sweep.progress import show_results
from vitlab.sweep.record import RECORD, Job, Sweep, folder_name, newest, own_overrides
from vitlab.training.launch import Arguments, check_folder, data_problems, record


def sweep(arguments: Arguments) -> None:
    """Run the sweep that a command line asks for, or go on with it.

    Raises:
        UserError: it cannot run as asked for, or jobs failed.
        Interrupted: Ctrl-C or SIGTERM; the jobs under way have kept a checkpoint.
    """
    if rank_in_environment() is not None:
        raise UserError(
            "a sweep starts the processes of its jobs itself: call python train.py -m … without torchrun, "
            "with trainer=ddp trainer.devices=N for several devices."
        )
    typed = arguments.overrides
    launcher = [o for o in typed if o.startswith(("hydra.", "hydra/"))]
    found, jobs = _resumed(arguments) if arguments.sweep_resume else _asked(arguments, launcher)
    if launcher:
        found.launcher = [o for o in found.launcher if o.startswith("experiment=")] + launcher
    config = check_launcher(found)  # before anything is written
    if jobs:
        _add(found, jobs)
        found.save()
        say(f"{_size(found)} in {found}")
    if found.left():
        run_jobs(found, config)
    else:
        say(f"{found} is finished: {_size(found)}. sweep.new=true runs it afresh.")
        show_results(found)


def _size(found: Sweep) -> str:
    number = len(found.runnable)
    return f"{number} job{'s' * (number != 1)}"


def _resumed(arguments: Arguments) -> tuple[Sweep, list[Combination]]:
    """Return the sweep of ``sweep.resume=``, and what is asked for beside it that it does not have."""
    assert arguments.sweep_resume
    found = Sweep.load(arguments.sweep_resume)
    jobs: list[Combination] = []
    if own_overrides(arguments.overrides):
        known = {job.identity for job in found.jobs}
        jobs = [j for j in combinations(arguments.overrides, True) if _identity(j) not in known]
        found.command = _command(arguments)
    say(f"going on with {found}: python train.py {shlex.join(found.command)}")
    left = found.left()
    for error in data_problems([found.run_folder(job).read_config() for job in left[:1]]).values():
        raise UserError(error)
    say(_standing(found))
    return found, jobs


def _identity(job: Combination) -> frozenset[str]:
    return frozenset(own_overrides(job.overrides))


def _asked(arguments: Arguments, launcher: list[str]) -> tuple[Sweep, list[Combination]]:
    """Return the sweep that has just the jobs of a command line, or a new one and the jobs it is to get."""
    jobs = combinations(arguments.overrides, True)
    wanted = {_identity(job): job for job in jobs}
    folder, given = _folder(arguments.overrides), any(o.startswith("hydra.sweep.dir=") for o in launcher)
    there = [folder] if given else [record.parent for record in folder.parent.glob(f"*/{RECORD}")]
    same = None if arguments.sweep_new else newest(there, wanted)
    if same is None:
        if given and (folder / RECORD).exists():
            raise UserError(
                f"{folder} holds another sweep. Choose another folder (hydra.sweep.dir=…), or add these jobs "
                f"to it by sweep.resume={folder}."
            )
        check_folder(arguments.overrides)
        swept = list(jobs[0].swept)
        recipe = [o for o in jobs[0].overrides if o.startswith("experiment=") and "experiment" not in swept]
        return Sweep(folder.absolute(), _command(arguments), swept, recipe), jobs
    if left := same.left():
        say(f"going on with {same}, which has the same jobs (sweep.new=true starts afresh)")
        say(_standing(same))
        _compare(same.run_folder(left[0]), wanted[left[0].identity])
    return same, []


def _command(arguments: Arguments) -> list[str]:
    return ["-m", *(o for o in arguments.overrides if not o.startswith(("sweep.resume=", "sweep.new=")))]


def _standing(found: Sweep) -> str:
    states = [found.state(job) for job in found.jobs]
    return ", ".join(f"{states.count(state)} {state}" for state in sorted({*states}))


def _folder(overrides: Sequence[str]) -> Path:
    """Return the folder that Hydra gives to a sweep."""
    with Composer("train") as composer:
        config = composer.loader.load_configuration("train", list(overrides), run_mode=RunMode.MULTIRUN)
        return Path(config.hydra.sweep.dir)


def _add(found: Sweep, jobs: Sequence[Combination]) -> None:
    """Claim a folder for each job that can run, and say which cannot.

    Raises:
        UserError: none can.
    """
    possible = [job for job in jobs if not job.problems]
    configs = {id(job): to_plain(job.config) for job in possible}
    refused = data_problems([configs[id(job)] for job in possible])
    if possible and len(refused) == len(possible):
        raise UserError(next(iter(refused.values())))
    said = {id(possible[place]): text for place, text in refused.items()}
    jobs = [job if id(job) not in said else job.refused(said[id(job)]) for job in jobs]
    if any(job.problems for job in jobs):
        say(report(jobs, "are skipped"))
    taken = {job.folder for job in found.jobs if job.folder}
    for job in jobs:
        overrides = tuple(own_overrides(job.overrides))
        text = label(overrides, own_overrides(job.swept))
        if job.problems:
            found.add(Job(overrides, text, None, "; ".join(job.problems)), {})
            continue
        name = folder_name(text, overrides, taken)
        taken.add(name)
        config = record(to_plain(job.config), job.choices, overrides, job.swept)
        found.add(Job(overrides, text, name), config)


def _compare(folder: RunFolder, now: Combination) -> None:
    """Say it where conf/ no longer says what a sweep began with."""
    if now.problems:
        return
    old, new = folder.read_config(), record(to_plain(now.config), now.choices, now.overrides, now.swept)
    ignored = ("choices", "overrides", "swept")
    changed = [key for key in new if key not in ignored and old.get(key) != new[key]]
    if changed:
        say(
            f"note: conf/ has changed since this sweep began ({', '.join(changed)}). Its jobs keep the "
            "settings in their config.yaml; sweep.new=true starts afresh with the new ones."
        )
