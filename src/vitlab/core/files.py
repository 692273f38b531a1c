"""Files that survive a crash or a power failure, and locks that end with their process."""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from vitlab.core.errors import UserError

# What a disk without locks answers, such as NFS whose server has no lock daemon.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def write_atomic(path: Path, data: bytes, *, new: bool = False) -> None:
    """Write ``data`` so that a reader, or a machine that loses power, sees the old file or the new one.

    The temporary file lies beside the target: `os.replace` is atomic only within one file system.

    Args:
        new: of several that write such a file at once one succeeds; raises FileExistsError if it exists.
    """
    # A number of its own: another machine may have a process with the same one.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        (_publish_new if new else os.replace)(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # it may have none, or the temporary one's
        raise
    finally:
        with contextlib.suppress(OSError):  # what was refused first says more
            temporary.unlink(missing_ok=True)
    sync(path.parent)


def _publish_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # which fails where the name exists, unlike a rename
    except FileExistsError:
        raise
    except OSError:  # no links on this file system, which has to do without a guard against races
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(temporary, path)


def add_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, so that they survive a power failure."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def make_folder(path: Path) -> Path:
    """Make a folder for results if need be, and return it; called before what takes long.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        add_folder(path)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"nothing can be written to the folder {path}: {error.strerror}.") from error
    return path


@contextlib.contextmanager
def results_folders(paths: Iterable[Path]) -> Iterator[None]:
    """Make folders for results, and take away those that are still empty at the end.

    Raises:
        UserError: one cannot be made or written to.
    """
    made = [folder for path in paths for folder in (path, *path.parents) if not folder.exists()]
    for path in paths:
        make_folder(path)
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # there is something in it, or it is gone already
                folder.rmdir()


def check_links(folder: Path, within: Path | None = None) -> None:
    """Check that what is written into a folder, which another may have made, stays in it.

    Checkpoints may be links: they are replaced by others, never written through.

    Args:
        within: where links may lead; by default the folder itself.

    Raises:
        UserError: a link in it leads out.
    """
    top = os.path.realpath(within or folder)
    found = [Path(where, name) for where, *names in os.walk(folder) for name in (*names[0], *names[1])]
    for path in (folder, *found) if within else found:
        is_link = path.is_symlink() and path.suffix != ".ckpt"
        if is_link and not Path(os.path.realpath(path)).is_relative_to(top):
            raise UserError(
                f"{path} is a link that leads out of {within or folder}, and this would write there "
                f"({os.path.realpath(path)}): put a copy in its place, or move the whole folder."
            )


def json_text(content: Any) -> str:
    """Return JSON that every reader takes; a NaN is a ValueError, since most readers refuse it."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, content: Any, *, new: bool = False) -> None:
    """Write `json_text`, atomically; ``new`` as in `write_atomic`."""
    # Names of files may hold bytes that are no UTF-8; the escape is JSON's own.
    write_atomic(path, f"{json_text(content)}\n".encode(errors="backslashreplace"), new=new)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as the text of a CSV file with a heading; what a row lacks is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _no_formula(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _no_formula(cell: Any) -> Any:
    """Return a cell that a spreadsheet takes for text too, as an apostrophe before it says."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def sync(path: Path) -> None:
    """Make what was written to a file, or the names in a folder, survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def try_lock(file: IO[Any], *, patience: float = 0, shared: bool = False) -> bool:
    """Lock an open file and say whether that went well within ``patience`` seconds.

    The lock is the operating system's: it goes when the file is closed or its process ends, however.

    Raises:
        OSError: the disk has no locks (`NO_LOCKS`).
    """
    until = time.monotonic() + patience
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on the file at ``path``, which is created if needed and left behind; waits for it.

    On a file system without locks the block runs without one.
    """
    with path.open("a") as file:
        with contextlib.suppress(OSError):
            if not try_lock(file):
                print(f"Waiting for another process that holds {path} …", file=sys.stderr)
                try_lock(file, patience=math.inf)
        yield


def is_locked(path: Path) -> bool:
    """Say whether some process holds the lock on the file at ``path``; none does on a disk without locks."""
    try:
        with open(path) as file:
            return not try_lock(file, shared=True)
    except OSError as error:
        if error.errno in (errno.ENOENT, *NO_LOCKS):
            return False
        raise
