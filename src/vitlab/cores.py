"""How many of the CPU's cores this process may use. Torch-free."""

import os

# Set for the jobs of a sweep that runs several at a time.
SHARE = "VITLAB_CORES"


def cores() -> int:
    """Return the number of cores: all, or this run's share beside other jobs of a sweep."""
    return int(os.environ.get(SHARE) or os.cpu_count() or 1)
