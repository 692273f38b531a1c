"""What a disk refuses: full, over its quota, read-only, broken or gone."""

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

PROBLEMS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk's quota is used up",
    errno.ENAMETOOLONG: "the disk takes no name as long as this",
    errno.EFBIG: "files may not become so large here (ulimit -f)",
    errno.EROFS: "the disk can only be read",
    errno.EIO: "the disk has failed (input/output error)",
    errno.ESTALE: "the network disk is gone (stale file handle)",
    errno.ENOTCONN: "the network disk is gone (not connected)",
}


def disk_problem(error: BaseException | None) -> str | None:
    """Return which of these is behind an error, and at which file; None if none is.

    Libraries wrap them, torch's writer hides them behind a complaint of its own, and of safetensors' there is
    only the text.
    """
    seen: list[BaseException] = []  # chains may be circles
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno in PROBLEMS:
            return PROBLEMS[error.errno] + (f": {error.filename}" if error.filename else "")
        for code, problem in PROBLEMS.items():
            if f"(os error {code})" in str(error):
                return problem
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def as_note(say: Callable[[str], object], what: str) -> Iterator[None]:
    """Note what a disk refuses to take of something that is not worth a run."""
    try:
        yield
    except OSError as error:
        say(f"note: {what} could not be written: {disk_problem(error) or error}")


def describe_room(folder: Path) -> str:
    """Return how much is free there, such as ``"12.50 MB are free in outputs"``."""
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.2f} MB are free in {folder}"
    except OSError:
        return f"{folder} cannot be asked"
