"""Measure images per second against a plain loop: check, claim a folder, measure. See `--help`."""

import functools
import os
import sys

from vitlab.benchmark.checks import check_benchmark
from vitlab.config import combinations
from vitlab.config.arguments import check_folder, parse_arguments
from vitlab.config.data_check import check_with_data
from vitlab.config.show import show
from vitlab.core.cli import finish
from vitlab.core.errors import UserError


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.shows:
        show(arguments.shows, "benchmark")
        return
    if arguments.resume or arguments.multirun:
        raise UserError(
            "benchmark.py measures one config at a time, from the start: leave out -m and resume=."
        )
    (composed,) = combinations(arguments.overrides, root="benchmark")
    check_folder(composed.folder)
    check_benchmark(composed.plain)
    os.environ.update(composed.environment)
    from vitlab.data import datasets

    config = composed.record
    dataset = datasets.build(config["data"])
    info = datasets.describe(dataset, config["data"]["val_size"])
    check_with_data(config, info)
    if (composed.folder / "results.json").exists():
        raise UserError(f"{composed.folder} holds results already; choose another folder (hydra.run.dir=…).")
    try:
        composed.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder cannot be made: {error}") from error
    from vitlab.benchmark.measure import Benchmark, measure

    measure(composed.folder, config, functools.partial(Benchmark, dataset=dataset))


if __name__ == "__main__":
    sys.exit(finish(main))
