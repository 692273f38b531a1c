"""Many runs: every combination of the values given, or a search, over one record, ``sweep.json``."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from vitlab.config import compose
from vitlab.config.arguments import Arguments
from vitlab.core.errors import UserError
from vitlab.core.processes import rank_in_environment
from vitlab.core.slurm import count_tasks
from vitlab.sweep.grid import run_grid
from vitlab.sweep.record import Sweep


def run_sweep(arguments: Arguments, show_results: Callable[[Path], object]) -> None:
    """Run the sweep or the search that a command line asks for, or resume it.

    Args:
        arguments: what was typed.
        show_results: prints the results of the sweep in a folder.

    Raises:
        UserError: it cannot run as asked for, or jobs failed.
        Interrupted: Ctrl-C or SIGTERM; the jobs under way have kept a checkpoint.
    """
    search = is_search(arguments)
    if rank_in_environment() is not None:
        if "RANK" in os.environ or count_tasks() == 1:
            raise UserError(
                "a sweep starts the processes of its jobs itself: call python train.py -m … without "
                "torchrun, with trainer=ddp trainer.devices=N for several devices."
            )
        if not arguments.sweep_resume and not any("hydra.sweep.dir=" in o for o in arguments.overrides):
            raise UserError(
                f"{count_tasks()} tasks of SLURM can work on one sweep if they are told its folder: add "
                "hydra.sweep.dir=DIR, or start a single task."
            )
    if not search:
        run_grid(arguments, show_results)
        return
    try:
        from vitlab.sweep.search import run_search
    except ImportError as error:
        raise UserError(f"sweep=optuna needs Optuna: pip install -e .[optuna] ({error})") from None
    run_search(arguments)


def is_search(arguments: Arguments) -> bool:
    """Whether a command line asks for a search rather than for every combination."""
    if arguments.sweep_resume:
        with contextlib.suppress(UserError):  # said by who resumes it
            return Sweep.load(arguments.sweep_resume).search is not None
        return False
    if chosen := [o for o in arguments.overrides if o.startswith("sweep=")]:
        return chosen[-1] == "sweep=optuna"
    recipe = [o for o in arguments.overrides if o.startswith("experiment=")]
    with contextlib.suppress(UserError):  # said by the check of the whole command line
        return bool(recipe) and compose(recipe, with_hydra=True).hydra.runtime.choices["sweep"] == "optuna"
    return False
