"""How much memory is free, and whether the images of a run are kept there or streamed."""

import contextlib
import math
import re
import resource
from pathlib import Path

from vitlab.core.cpu_count import find_group
from vitlab.core.errors import UserError

SMALLER = "a smaller data.image_size (a model may enlarge its input on the device)."


def decide_in_memory(asked: bool | str, *, needed: int, free: int | None, device: str) -> tuple[bool, str]:
    """Resolve ``data.in_memory``: whether the images are kept in memory, and the reason, for the log.

    ``auto`` leaves half of what is free to the network, its activations and the rest of the machine.

    Args:
        needed: bytes of all decoded images of the run.
        free: bytes free on ``device``; None where that is not known.

    Raises:
        UserError: it is ``true``, and they do not fit.
    """
    size, auto = format_bytes(needed), "" if asked is True else "; auto"
    if asked is False:
        return False, f"{size} in all; data.in_memory=false"
    if free is None:
        return True, f"{size}{auto}"
    if auto and needed > free / 2:
        return False, f"{size} would not fit in half of the {format_bytes(free)} free on {device}; auto"
    if needed > free:
        raise UserError(
            f"data.in_memory=true, but the images need {size} and {device} has {format_bytes(free)} free. "
            f"Set data.in_memory=false to stream them, or {SMALLER}"
        )
    return True, f"{size} of {format_bytes(free)} free{auto}"


def check_memory(shape: tuple[int, int, int, int]) -> None:
    """Raise UserError if uint8 images of shape (N, C, H, W) do not fit into the free memory."""
    number, channels, height, width = shape
    needed, available = math.prod(shape), available_memory()
    if available is not None and needed > available:
        raise UserError(
            f"{number:,} images of {height} × {width} × {channels} need {format_bytes(needed)} of memory, "
            f"and {format_bytes(available)} is available. Set {SMALLER}"
        )


def available_memory() -> int | None:
    """Return the bytes that are free on this machine or in this container, if known."""
    bounds = []
    with contextlib.suppress(OSError):
        machine = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
        bounds += [int(machine[1]) * 1024] if machine else []
    # SLURM and systemd limit the group of a job, or one above it; a container sees its own as the root.
    groups: list[Path] = []
    with contextlib.suppress(OSError):
        own = find_group()
        groups = [group for group in (own, *own.parents) if (group / "memory.max").exists()]
    for group in groups:
        with contextlib.suppress(OSError, ValueError):  # its limit is "max"
            limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
            # Cached files count as used there, but are released on demand.
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            bounds.append(limit - used + int(stat.get("inactive_file", 0)))
    with contextlib.suppress(OSError):
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)  # ulimit -v
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        bounds += [max(0, limit - used)] if limit != resource.RLIM_INFINITY else []
    return min(bounds, default=None)


def format_bytes(number: int) -> str:
    """Return a number of bytes in readable units, such as ``"147 MiB"``."""
    return f"{number / 2**20:,.0f} MiB" if number < 2**30 else f"{number / 2**30:,.1f} GiB"
