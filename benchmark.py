"""Measure images per second against other stacks: check, claim a folder, measure. See `--help`."""

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vitlab.benchmark.checks import check_benchmark, check_own_folder
from vitlab.config import CONF, preflight, register_resolvers, to_plain
from vitlab.core.cli import finish
from vitlab.core.errors import UserError
from vitlab.training.launch import as_typed, check_data, check_folder, parse_arguments

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to `finish`, which says them in one line


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.resume or arguments.multirun:
        raise UserError(
            "benchmark.py measures one config at a time, from the start: leave out -m and resume=."
        )
    if arguments.checked:
        check_folder(arguments.overrides)
        (config,) = map(to_plain, preflight(arguments.overrides, root="benchmark"))
        check_benchmark(config)
        check_data([config])
        check_own_folder(arguments.overrides)
    jobs: list[tuple[Path, dict[str, Any]]] = []

    @hydra.main(config_path=str(CONF), config_name="benchmark", version_base="1.3")
    def job(cfg: DictConfig) -> None:
        jobs.append((Path(HydraConfig.get().runtime.output_dir), to_plain(cfg) | as_typed()))

    register_resolvers()
    try:
        job()
    except OSError as error:
        raise UserError(f"the folder cannot be made: {error}") from error
    for folder, config in jobs:  # here, outside Hydra: its own errors and signals
        from vitlab.benchmark.measure import measure

        measure(folder, config)


if __name__ == "__main__":
    sys.exit(finish(main))
