"""Train a classifier: compose, check, claim a run folder, run it. `--help` says what can be set."""

import os
import sys
from collections.abc import Sequence

from vitlab.config import combinations
from vitlab.config.arguments import Arguments, check_folder, parse_arguments
from vitlab.config.data_check import check_with_data
from vitlab.config.show import show
from vitlab.core.cli import finish
from vitlab.core.console import printed_as_errors
from vitlab.core.errors import UserError
from vitlab.core.files import json_text
from vitlab.core.processes import rank_in_environment
from vitlab.core.run_folder import RunFolder, wait_for_run
from vitlab.core.slurm import check_tasks


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.shows:
        show(arguments.shows)
    elif arguments.status is not None:
        from vitlab.sweep.status import find_status

        print(json_text(find_status(arguments.status)))
    elif arguments.plan:
        print_plan(arguments)
    elif arguments.resume:
        resume(arguments.resume)
    elif arguments.multirun:
        from vitlab.compare import show_leaderboard  # a single run starts sooner without
        from vitlab.sweep import run_sweep

        run_sweep(arguments, show_leaderboard)
    else:
        train(arguments.overrides)


def print_plan(arguments: Arguments) -> None:
    """Print as JSON what would be trained, and train nothing."""
    with printed_as_errors():
        from vitlab.sweep.preview import Preview
        from vitlab.training.cost import measure_forward

        found = Preview(measure_forward).of(arguments)
    print(json_text(found))


def resume(path: str) -> None:
    """Finish the run at ``path``."""
    folder = RunFolder.find(path)
    from vitlab.training.run import run  # torch takes seconds to import: after what can be refused

    run(folder)


def train(overrides: Sequence[str]) -> None:
    """Train one new run; what is refused before it has trained leaves nothing behind."""
    (composed,) = combinations(overrides)
    check_folder(composed.folder)
    os.environ.update(composed.environment)
    from vitlab.data import datasets

    config = composed.record
    check_tasks(config["trainer"]["devices"], config["trainer"]["num_nodes"])
    dataset = datasets.build(config["data"])
    info = datasets.describe(dataset, config["data"]["val_size"])
    plan = check_with_data(config, info)
    if rank_in_environment():
        folder = wait_for_run(composed.folder)
    else:
        folder = RunFolder.create(composed.folder, config)
    from vitlab.training.run import run

    try:
        run(folder, dataset, plan)
    except UserError:
        if folder.read_summary()["train"]["optimizer_steps"] == 0:
            folder.discard()
        raise


if __name__ == "__main__":
    sys.exit(finish(main))
