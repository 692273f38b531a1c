"""How many of the CPU's cores this process may use. Torch-free."""

import os

# Set for the jobs of a sweep that runs several at a time.
SHARE = "VITLAB_CORES"


def cores() -> int:
    """Return the number of cores: this run's share beside other jobs of a sweep, or all that it may run on.

    A machine has more of them than a process that taskset, SLURM or a container holds to some, and threads
    beyond those wait for each other.
    """
    if share := os.environ.get(SHARE):
        return int(share)
    # Where there is no such mask (macOS) every process may run everywhere.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
