"""The jobs of a sweep in SLURM's queue, several to an allocation if asked, by submitit.

Hydra's own launcher has one job to an allocation (its issue 2633), and it waits for what each returns: for
ever where a job was cancelled and the cluster keeps no accounts, and for no other once one has failed. Here
the queue says who is still to come, and the folders of the jobs what became of them.
"""

import contextlib
import io
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import DictConfig, OmegaConf
from submitit import AutoExecutor
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder, State
from vitlab.sweep.worker import Worker

SOON, LATE = 2, 30  # seconds between two looks at the queue: at the beginning, and at most


@dataclass
class Allocation:
    """What submitit calls when SLURM has given an allocation, and again when it gives another one.

    Attributes:
        worker: of the call that waits for the jobs.
        folders: of the jobs, which run at the same time; what has finished is not run again.
        share: jobs that the cores and GPUs are divided among; the last allocation may have fewer.
    """

    worker: Worker
    folders: Sequence[RunFolder]
    share: int

    def __call__(self) -> None:
        """Run the jobs to their end, or until SLURM or the sweep stops them."""
        self.worker.enter_allocation(self.share)
        self.worker.run_jobs(*self.folders)

    def checkpoint(self) -> DelayedSubmission:
        """Return what is to be queued again when SLURM's time is nearly up."""
        return DelayedSubmission(self)


def run_in_queue(folders: Sequence[RunFolder], launcher: DictConfig, worker: Worker, share: int) -> None:
    """Queue jobs and wait until none of them is in the queue any more, or all have finished.

    Where the sweep is to stop, those that have not begun leave the queue; the others are told by `Worker`.

    Args:
        folders: of the jobs.
        launcher: ``hydra.launcher``.
        worker: the open worker of this call.
        share: jobs to an allocation, where they run at the same time.

    Raises:
        UserError: SLURM or submitit refuses what the launcher says.
    """
    chunks = [folders[first : first + share] for first in range(0, len(folders), share)]
    number, told = _submit([Allocation(worker, chunk, share) for chunk in chunks], launcher), False
    begun = looked = time.monotonic()
    while any(folder.state() != State.FINISHED for folder in folders):
        if worker.stop_signal() and not told:
            _ask("scancel", "--state=PENDING", number)
            told = True
        now = time.monotonic()
        if now - looked > min(LATE, max(SOON, (now - begun) / 10)):
            looked = now
            queued = _ask("squeue", "--me", "--noheader", "--format=%F")  # %F: the number of the whole array
            if queued is not None and number not in queued:
                return
        time.sleep(1)


def _submit(allocations: Sequence[Allocation], launcher: DictConfig) -> str:
    """Put allocations into the queue, as one array, and return its number."""
    options: Any = OmegaConf.to_container(launcher, resolve=True)
    del options["_target_"]
    folder, most = options.pop("submitit_folder"), options.pop("max_num_timeout")
    for name in options.keys() - BaseQueueConf.__dataclass_fields__.keys():
        options[f"slurm_{name}"] = options.pop(name)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=most)
            executor.update_parameters(**options)
            with executor.batch():
                jobs = [executor.submit(allocation) for allocation in allocations]
    except (FailedJobError, FailedSubmissionError, ValueError, TypeError, NameError) as error:
        said = " ".join((printed.getvalue().strip() or str(error)).split())
        raise UserError(f"the sweep cannot be queued as hydra.launcher says: {said}") from error
    return jobs[0].job_id.partition("_")[0]


def _ask(*command: str) -> list[str] | None:
    """Return the words that one of SLURM's programs prints; None where SLURM does not answer."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return ended.stdout.split() if ended.returncode == 0 else None
    return None
