"""How many of the CPU's cores this process may use."""

import contextlib
import math
import os
from pathlib import Path

# Set for the jobs of a sweep that runs several at a time.
SHARE = "VITLAB_CORES"
ROOT = Path("/")  # of Linux's files about the process


def count_cores() -> int:
    """Return the number of cores: this run's share beside other jobs of a sweep, or all that it may run on.

    A machine has more of them than a process that taskset, SLURM or a container holds to some, and threads
    beyond those wait for each other.
    """
    if share := os.environ.get(SHARE):
        return int(share)
    # Where there is no such mask (macOS) every process may run everywhere.
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # SLURM counts cores; whether it also keeps a task from using others is up to the cluster.
    asked = int(os.environ.get("SLURM_CPUS_PER_TASK", mask))
    return min(mask, asked, read_quota() or mask)


def read_quota() -> int | None:
    """Return the cores whose time a container gets, such as by ``docker --cpus``; None where nothing is said.

    Source: the Linux kernel's documentation of control groups, version 2, ``cpu.max``.
    """
    with contextlib.suppress(OSError, ValueError):
        allowed, period = (find_group() / "cpu.max").read_text().split()
        return math.ceil(int(allowed) / int(period))  # "max" is no number: no quota
    return None


def find_group() -> Path:
    """Return the folder of this process's control group, which holds what the group may use.

    Raises:
        OSError: there is none of version 2.
    """
    for line in (ROOT / "proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::/"):
            return ROOT / "sys/fs/cgroup" / line.removeprefix("0::/")
    raise FileNotFoundError("no control group of version 2")
