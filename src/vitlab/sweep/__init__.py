"""Many runs: every combination of the values given, or a search, over one record (sweep.json)."""

from collections.abc import Callable
from pathlib import Path

from vitlab.config.arguments import Arguments
from vitlab.core.errors import UserError
from vitlab.core.processes import rank_in_environment
from vitlab.sweep.grid import run_grid
from vitlab.sweep.search import is_search, run_search


def run_sweep(arguments: Arguments, show_results: Callable[[Path], object]) -> None:
    """Run the sweep or the search that a command line asks for, or resume it.

    Args:
        arguments: what was typed.
        show_results: prints the results of the sweep in a folder.

    Raises:
        UserError: it cannot run as asked for, or jobs failed.
        Interrupted: Ctrl-C or SIGTERM; the jobs under way have kept a checkpoint.
    """
    if rank_in_environment() is not None:
        raise UserError(
            "a sweep starts the processes of its jobs itself: call python train.py -m … without torchrun, "
            "with trainer=ddp trainer.devices=N for several devices."
        )
    if is_search(arguments.overrides):
        run_search(arguments.overrides)
    else:
        run_grid(arguments, show_results)
