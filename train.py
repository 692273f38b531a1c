"""Train a classifier: compose, check, claim a run folder, run it. `--help` says what can be set."""

import os
import sys

import hydra
from omegaconf import DictConfig

from vitlab.cli import finish
from vitlab.config import CONF, preflight, register_resolvers, to_plain
from vitlab.errors import UserError
from vitlab.folder import RunFolder
from vitlab.launch import check_data, check_folder, claim, execute, parse_arguments
from vitlab.processes import run_job

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to `finish`, which says them in one line


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.resume:
        execute(RunFolder.find(arguments.resume))
        return
    configs = []
    if arguments.checked:
        if arguments.multirun:
            sys.argv[1:] = ["-m", *arguments.overrides]  # Hydra takes no flag between overrides
        check_folder(arguments.overrides)
        configs = [to_plain(config) for config in preflight(arguments.overrides, arguments.multirun)]
        check_data(configs)
    single: list[RunFolder] = []
    failed: list[UserError] = []

    @hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
    def job(cfg: DictConfig) -> None:
        try:
            folder = claim(to_plain(cfg), arguments.swept)
            if arguments.multirun:
                run_job(folder)
            else:
                single.append(folder)  # run below, outside Hydra: its own errors and signals
        except UserError as error:
            failed.append(error)
            raise

    register_resolvers()
    try:
        job()  # in a sweep Hydra goes on after a failed job, and raises its error at the end
    except OSError as error:
        raise UserError(f"the run folder cannot be made: {error}") from error
    except UserError as error:
        many = f"{len(failed)} of {len(configs)} jobs failed; the first: " if arguments.multirun else ""
        raise UserError(f"{many}{error}") from None
    for folder in single:
        execute(folder, new=True)


if __name__ == "__main__":
    sys.exit(finish(main))
