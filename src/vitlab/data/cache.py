"""Image files decoded once: one ``.npy`` file a split, from which later starts read.

Beside it, under ``data.on_error=skip``, a ``.json`` file a data set with which of its files are broken.

The name of a cache says what it was made from: ``<set>-<its folder>-<split>-<H>x<W>x<C>-<key>.npy``.
The key hashes the paths, sizes and times of the files and the rules of decoding, so a cache of other
pixels has another name and is not found. Deleting the folder is safe: caches are made again.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from vitlab.core.files import locked, try_lock, write_json
from vitlab.data.decode import RULES_VERSION, ImageFiles, LazyImages
from vitlab.data.memory import format_bytes

# This file tells backup programs that a folder is a cache (https://bford.info/cachedir/), and
# `image_folder` that it is not a class of images.
TAG = "CACHEDIR.TAG"
TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# Decoded images; deleting them is safe.\n"


class CachedImages(LazyImages):
    """A cache file as a memory map, which is read where it is indexed; processes share what was read.

    The file is locked as in use for as long as the object lives. Raises anything where it is damaged.
    """

    def __init__(self, file: Path, shape: tuple[int, int, int, int]) -> None:
        self.file = file
        self.shape = shape
        self._handle = file.open("rb")
        with contextlib.suppress(OSError):  # a file system without locks: a map outlives its file's removal
            try_lock(self._handle, shared=True)
        self._array = np.load(file, mmap_mode="r", allow_pickle=False)
        if (self._array.shape, self._array.dtype) != (shape, np.uint8):
            raise ValueError(f"{file} holds {self._array.dtype} {self._array.shape}, expected uint8 {shape}")

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._array[rows]

    def __reduce__(self) -> tuple[Any, ...]:  # a process that is not forked opens the file itself
        return CachedImages, (self.file, self.shape)


def load_cached(files: ImageFiles, folder: Path, source: Path, split: str, notes: list[str]) -> LazyImages:
    """Return the images of ``files`` from their cache in ``folder``, decoding them into it first if needed.

    Where no cache can be made (no space, no permission) the files themselves are returned, with a note.
    Of two processes that start together one decodes and the other waits. A cache of the same split at
    the same size whose files have changed since is removed, unless it is in use.

    Args:
        source: what names the files: the data set's folder, or a list in it.
        split: its name, with whatever determines its choice of files.
        notes: gets what the reader of the log should know.

    Raises:
        UserError: files cannot be read as images.
    """
    prefix = _prefix(files, source, split)
    try:
        file = folder / f"{prefix}-{_key(files, source)}.npy"
        if found := _open(file, files):  # before the lock: the folder may be read-only
            return found
        with _making(folder, prefix):
            if found := _open(file, files):  # made by the process that held the lock
                return found
            _remove_old(folder, prefix)
            _build(file, files)
            return CachedImages(file, files.shape)
    except (OSError, ValueError) as error:
        note = f"no cache in data.cache={folder} ({error}): images are decoded at every start."
        if note not in notes:
            notes.append(note)
        return files


def find_broken(files: ImageFiles, folder: Path | None, source: Path) -> dict[int, str]:
    """Return the rows of ``files`` that cannot be decoded, and for each which file it is and why.

    All are decoded once, and then only those that were broken when nothing else has changed since: what was
    mended, or could not be read for a moment, counts again. Without a ``folder`` to note them in, or where
    none can be made, all are decoded each time.
    """
    rows: Sequence[int] = range(len(files.paths))
    if folder:
        prefix = _prefix(files, source, "broken")
        with contextlib.suppress(OSError):
            file = folder / f"{prefix}-{_key(files, source)}.json"
            if (known := _read_rows(file)) is None:
                with _making(folder, prefix):
                    if (known := _read_rows(file)) is None:
                        _remove_old(folder, prefix)
                        found = files.find_broken(rows)
                        with contextlib.suppress(OSError):
                            write_json(file, [*found])
                        return found
            rows = known
    return files.find_broken(rows)


def _read_rows(file: Path) -> list[int] | None:
    try:
        return [int(row) for row in json.loads(file.read_text())]
    except (OSError, ValueError, TypeError):  # missing or damaged
        return None


def _prefix(files: ImageFiles, source: Path, content: str) -> str:
    _, channels, height, width = files.shape
    location = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:8]
    title = re.sub(r"[^A-Za-z0-9]+", "_", source.stem)
    return f"{title}-{location}-{content}-{height}x{width}x{channels}"


@contextlib.contextmanager
def _making(folder: Path, prefix: str) -> Iterator[None]:
    """Make the cache folder, and be the only one in it that makes what has this prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TAG).write_text(TAG_TEXT)
    with locked(folder / f".{prefix}.lock"):
        yield


def _key(files: ImageFiles, source: Path) -> str:
    """Hash what determines the pixels, without reading a file; the set's folder may be written in any way."""
    prefix = f"{source if source.is_dir() else source.parent}{os.sep}"
    digest = hashlib.sha256(repr((RULES_VERSION, PIL.__version__, files.shape)).encode())
    for path in files.paths:
        stat = path.stat()
        digest.update(repr((str(path).removeprefix(prefix), stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


def _open(file: Path, files: ImageFiles) -> CachedImages | None:
    try:
        return CachedImages(file, files.shape)
    except Exception:  # missing, or damaged, which raises many kinds: it is made (again)
        return None


def _remove_old(folder: Path, prefix: str) -> None:
    """Remove caches of earlier states of the same files, and what a killed build left."""
    for left in folder.glob(f".{prefix}-*.tmp"):
        left.unlink(missing_ok=True)
    for old in folder.glob(f"{prefix}-*"):
        with old.open("rb") as handle, contextlib.suppress(OSError):
            if try_lock(handle):  # not in use
                old.unlink(missing_ok=True)


def _build(file: Path, files: ImageFiles) -> None:
    """Decode into a temporary file, which is renamed to ``file`` when it is complete and on the disk."""
    needed, free = math.prod(files.shape), shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(f"{format_bytes(needed)} needed, {format_bytes(free)} of disk free")
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as out:
            header = {"descr": "|u1", "fortran_order": False, "shape": files.shape}
            np.lib.format.write_array_header_1_0(out, header)
            # Written, not mapped: a full disk is then an error, and not a bus error.
            for pixels in files.decode():
                out.write(pixels.tobytes())
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
