"""What SLURM says of a process that it has started, and what is asked of it."""

import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from vitlab.core.errors import UserError
from vitlab.core.signals import PARENT

# What says which task of how many a process is. A process that vitlab starts must not inherit it: it would
# take itself for that task, and wait for the others.
TASK = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def count_tasks() -> int:
    """Return how many processes ``srun`` has started beside this one, itself included.

    A batch script is told its SLURM_NTASKS and rank 0 as well, but is a single process.
    """
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def check_tasks(devices: Any, nodes: int) -> None:
    """Check that SLURM has started the processes of a run, or that it is to start none of them.

    Args:
        devices: ``trainer.devices``; nothing is said of ``auto``, whose number torch finds later.
        nodes: ``trainer.num_nodes``.

    Raises:
        UserError: it has started more or fewer, or on more or fewer nodes.
    """
    processes = len(devices) if isinstance(devices, list) else devices
    unknown = not isinstance(processes, int) or processes < 1
    if unknown or "WORLD_SIZE" in os.environ or "SLURM_JOB_ID" not in os.environ:  # torchrun counts itself
        return
    if (tasks := count_tasks()) == 1 and nodes == 1:
        return
    here = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if (tasks, here) == (processes * nodes, nodes):
        return
    if os.environ.get("SLURM_PROCID", "0") != "0":
        raise SystemExit(1)  # the first task says it
    started = f"{tasks} task{'s' * (tasks > 1)} on {here} node{'s' * (here > 1)}"
    without = "" if "SLURM_STEP_NUM_TASKS" in os.environ else " (srun has not started this process)"
    raise UserError(
        f"trainer.devices={processes} on each of trainer.num_nodes={nodes} needs srun --nodes={nodes} "
        f"--ntasks-per-node={processes}, but SLURM has started {started}{without}: give that to srun or "
        "sbatch, or set trainer.devices and trainer.num_nodes to what there is."
    )


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
