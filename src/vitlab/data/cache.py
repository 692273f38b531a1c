"""Image files decoded once: one ``.npy`` file a split, from which later starts read. Torch-free.

The name of a cache says what it was made of: ``<set>-<its folder>-<split>-<H>x<W>x<C>-<key>.npy``. The
key hashes the paths, sizes and times of the files and the rules of decoding, so a cache of other
pixels has another name and is not found. Deleting the folder is safe: caches are made again.
"""

import contextlib
import errno
import fcntl
import hashlib
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from vitlab.data.decode import RULES_VERSION, ImageFiles, StoredImages, format_bytes
from vitlab.data.download import locked

# By this file backup programs know a cache (https://bford.info/cachedir/), and `folder` knows not to
# take ours for a class of images.
TAG = "CACHEDIR.TAG"
TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# Decoded images; deleting them is safe.\n"


class CachedImages(StoredImages):
    """A cache file as a memory map: what is asked for is read, and all processes share what was.

    The file is marked as in use for as long as the object lives.

    Raises:
        OSError, ValueError: it is not there, or not a whole uint8 array of this shape.
    """

    def __init__(self, file: Path, shape: tuple[int, int, int, int]) -> None:
        self.file = file
        self.shape = shape
        self._handle = file.open("rb")
        with contextlib.suppress(OSError):  # a file system without locks: a map outlives its file's removal
            fcntl.flock(self._handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        try:
            self._array = np.load(file, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header raises many kinds
            raise ValueError(f"{file} is damaged: {error}") from error
        if (self._array.shape, self._array.dtype) != (shape, np.uint8):
            raise ValueError(f"{file} holds {self._array.dtype} {self._array.shape}, expected uint8 {shape}")

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._array[rows]

    def __reduce__(self) -> tuple[Any, ...]:  # a process that is not forked opens the file itself
        return CachedImages, (self.file, self.shape)


def cached(
    files: ImageFiles, *, folder: Path, root: Path, listed: Path, split: str, notes: list[str]
) -> StoredImages:
    """Return the images of ``files`` from their cache in ``folder``, decoding them into it first if needed.

    Where there can be none (no space, no permission) the files themselves are returned, with a note.
    Two processes that start together decode once: the other waits. A cache of the same split at the
    same size whose files have changed since is removed, unless it is in use.

    Args:
        files: of one split, in order.
        folder: holds the caches.
        root: of the data set; the part of the paths that its caches do not depend on.
        listed: what names the files: the folder itself, or a list.
        split: its name, with what its choice of files hangs on.
        notes: for what the reader of the log should know.

    Raises:
        UserError: for files that cannot be read as images.
    """
    _, channels, height, width = files.shape
    place = hashlib.sha256(str(listed.resolve()).encode()).hexdigest()[:8]
    title = re.sub(r"[^A-Za-z0-9]+", "_", listed.stem)
    slot = f"{title}-{place}-{split}-{height}x{width}x{channels}"
    try:
        file = folder / f"{slot}-{_key(files, root)}.npy"
        if found := _open(file, files):  # before the lock: the folder may be one that others keep
            return found
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TAG).write_text(TAG_TEXT)
        with locked(folder / f".{slot}.lock"):
            if found := _open(file, files):  # made by the process that held the lock
                return found
            _clear(folder, slot)
            _build(file, files)
            return CachedImages(file, files.shape)
    except (OSError, ValueError) as error:
        note = f"no cache in data.cache={folder} ({error}): images are decoded at every start."
        if note not in notes:
            notes.append(note)
        return files


def _key(files: ImageFiles, root: Path) -> str:
    """Hash what determines the pixels, without reading a file."""
    prefix = f"{root}{os.sep}"
    digest = hashlib.sha256(repr((RULES_VERSION, PIL.__version__, files.shape)).encode())
    for path in files.paths:
        stat = path.stat()
        digest.update(repr((str(path).removeprefix(prefix), stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


def _open(file: Path, files: ImageFiles) -> CachedImages | None:
    try:
        return CachedImages(file, files.shape)
    except (OSError, ValueError):  # none, or a damaged one: it is made (again)
        return None


def _clear(folder: Path, slot: str) -> None:
    """Remove what earlier states of the same files left, and the rest of a build that was killed."""
    for left in folder.glob(f".{slot}-*.tmp"):
        left.unlink(missing_ok=True)
    for old in folder.glob(f"{slot}-*.npy"):
        with old.open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # in use
                continue
            old.unlink(missing_ok=True)


def _build(file: Path, files: ImageFiles) -> None:
    """Decode into a file beside ``file``, which takes its name when it is whole and on the disk."""
    needed, free = math.prod(files.shape), shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC, f"it needs {format_bytes(needed)}, and {format_bytes(free)} of disk is free"
        )
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as out:
            header = {"descr": "|u1", "fortran_order": False, "shape": files.shape}
            np.lib.format.write_array_header_1_0(out, header)
            # Writing and not mapping: a disk that fills up is an error then, and not a bus error.
            files.decode(lambda place, pixels: out.write(pixels.tobytes()))
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
