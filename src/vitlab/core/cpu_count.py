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
    return min(mask, read_quota() or mask)


def read_quota() -> int | None:
    """Return the cores whose time a container gets, such as by ``docker --cpus``; None where nothing is said.

    Source: the Linux kernel's documentation of control groups, version 2, ``cpu.max``.
    """
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
        group = next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
        allowed, period = (ROOT / "sys/fs/cgroup" / group / "cpu.max").read_text().split()
        return math.ceil(int(allowed) / int(period))  # "max" is no number: no quota
    return None
