"""What is asked of SLURM."""

import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from vitlab.core.signals import PARENT


def requeue(config: Mapping[str, Any], signum: int) -> str:
    """Put this job back into SLURM's queue where its time is nearly up and its run wants that.

    A job of a sweep leaves that to the sweep: SLURM ends all that runs at once, saved or not.

    Args:
        config: of the run.
        signum: that it has stopped by; SIGUSR1 is SLURM's warning.

    Returns:
        What became of it, in a sentence; empty where nothing was to be done.
    """
    wanted = config["callbacks"]["checkpoint"].get("requeue", False)  # absent from older runs
    if not wanted or signum != signal.SIGUSR1 or PARENT in os.environ:
        return ""
    job = os.environ.get("SLURM_JOB_ID")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):  # which is also the number of one of its tasks
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if not job:
        return "not queued again: this is no job of SLURM (SLURM_JOB_ID is not set)"
    try:
        ended = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        problem = (ended.stderr.strip() or f"status {ended.returncode}") if ended.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    return f"not queued again: scontrol requeue {job}: {problem}" if problem else f"queued again as job {job}"
