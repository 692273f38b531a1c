"""Train a classifier: compose, check, claim a run folder, run it. `--help` says what can be set."""

import os
import sys

import hydra
from omegaconf import DictConfig

from vitlab.config import CONF, preflight, register_resolvers, to_plain
from vitlab.core.cli import finish
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.sweep import run_sweep
from vitlab.training.launch import check_data, check_folder, claim, execute, parse_arguments

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to `finish`, which says them in one line


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.resume:
        execute(RunFolder.find(arguments.resume))
        return
    if arguments.checked and arguments.multirun:
        run_sweep(arguments)
        return
    if arguments.checked:
        check_folder(arguments.overrides)
        check_data([to_plain(config) for config in preflight(arguments.overrides)])
    claimed: list[RunFolder] = []

    @hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
    def job(cfg: DictConfig) -> None:
        claimed.append(claim(to_plain(cfg)))

    register_resolvers()
    try:
        job()
    except OSError as error:
        raise UserError(f"the run folder cannot be made: {error}") from error
    for folder in claimed:  # outside Hydra: a run has its own errors and signals
        execute(folder, new=True)


if __name__ == "__main__":
    sys.exit(finish(main))
