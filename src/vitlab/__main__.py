"""``python -m vitlab RUN_FOLDER``: start or resume the run whose config.yaml is there.

What sweeps, several devices and torchrun start: ``torchrun --nproc-per-node=2 -m vitlab RUN_FOLDER``.
"""

import sys

from vitlab.core.cli import finish
from vitlab.core.errors import UserError


def main() -> None:
    """Run the folder that is named on the command line."""
    from vitlab.core.processes import end_with_parent
    from vitlab.core.run_folder import RunFolder

    if len(sys.argv) != 2:
        raise UserError("usage: python -m vitlab RUN_FOLDER")
    folder = RunFolder.find(sys.argv[1])
    end_with_parent(folder)  # before what takes seconds to import
    from vitlab.training.run import run

    run(folder)


if __name__ == "__main__":
    sys.exit(finish(main))
