"""CIFAR-10 and CIFAR-100 from their official archives (Krizhevsky 2009)."""

import gzip
import math
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vitlab.core.errors import UserError
from vitlab.core.files import locked, write_atomic
from vitlab.data.decode import resize_images
from vitlab.data.download import download, explained, md5_of
from vitlab.data.memory import format_bytes

SIDE = 32  # pixels of the stored images
MAX_UNPACKED = 1 << 29  # bytes in an archive; the official ones have less than 190 MB


@dataclass(frozen=True)
class Archive:
    """An archive and its contents."""

    name: str  # of the data set, for titles
    file: str
    folder: str  # in the archive, and beside it when extracted
    splits: dict[str, list[str]]  # the files that hold the images of each
    meta: str  # the file with the names of the classes
    label_key: bytes  # in a file with images
    names_key: bytes  # in ``meta``

    @property
    def members(self) -> list[str]:
        """All files that the data set needs."""
        return [*self.splits["train"], *self.splits["test"], self.meta]


ARCHIVES = {
    "cifar10": Archive(
        name="CIFAR-10",
        file="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        splits={"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
        meta="batches.meta",
        label_key=b"labels",
        names_key=b"label_names",
    ),
    "cifar100": Archive(
        name="CIFAR-100",
        file="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        splits={"train": ["train"], "test": ["test"]},
        meta="meta",
        label_key=b"fine_labels",
        names_key=b"fine_label_names",
    ),
}


class Cifar:
    """CIFAR-10 or CIFAR-100, found in ``root`` or downloaded to it.

    Looked for in this order: the extracted folder, the archive, the network. The files are read once,
    to count and check what is in them; ``load`` hands over what was read.

    Args:
        root, url, md5: as in ``conf/data/cifar10.yaml``.
        shape, channels: of the images, see `Dataset`; those stored are resized.

    Raises:
        UserError: the data is not there and cannot be downloaded, or is not what it should be.
    """

    on_disk = False

    def __init__(
        self, archive: Archive, *, root: Path, url: str, md5: str, shape: tuple[int, int], channels: int
    ) -> None:
        self.archive = archive
        self.name = archive.name
        self.shape = shape
        self.channels = channels
        self.notes: list[str] = []
        self.folder = root / archive.folder
        _ensure_extracted(archive, root, url, md5)
        names = self._read_file(archive.meta).get(archive.names_key)
        if not isinstance(names, list) or not names:
            raise self._broken(archive.meta, "it holds no class names")
        self.classes = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
        self._read = {split: self._read_split(split) for split in archive.splits}  # until it is loaded
        self.sizes = {split: len(labels) for split, (_, labels) in self._read.items()}

    def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a split: uint8 (N, C, H, W) and int64 labels (N,)."""
        images, labels = self._read.pop(split) if split in self._read else self._read_split(split)
        return resize_images(images, self.shape, self.channels), labels

    def _read_split(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return images (N, 3, 32, 32) and labels (N,) as they are in the files."""
        images, labels = zip(*map(self._read_batch, self.archive.splits[split]), strict=True)
        return np.concatenate(images), np.concatenate(labels)

    def _read_batch(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return one file's images (n, 3, 32, 32) and labels (n,), or say what is wrong with it."""
        content = self._read_file(name)
        pixels, labels = content.get(b"data"), content.get(self.archive.label_key)
        width = 3 * SIDE * SIDE
        if (
            not isinstance(pixels, np.ndarray)
            or pixels.dtype != np.uint8
            or pixels.shape[1:] != (width,)
            or not isinstance(labels, list)
            or len(labels) != len(pixels)
            or not all(isinstance(n, int) and 0 <= n < len(self.classes) for n in labels)
        ):
            raise self._broken(name, f"it does not hold rows of {width} bytes with a label for each")
        return pixels.reshape(-1, 3, SIDE, SIDE), np.array(labels, dtype=np.int64)

    def _read_file(self, name: str) -> dict[Any, Any]:
        try:
            with (self.folder / name).open("rb") as file:
                content = _BatchUnpickler(file, encoding="bytes").load()
        except Exception as error:  # a damaged pickle raises nearly anything
            raise self._broken(name, str(error) or type(error).__name__) from error
        if not isinstance(content, dict):
            raise self._broken(name, "it does not hold a dictionary")
        return content

    def _broken(self, name: str, reason: str) -> UserError:
        return UserError(
            f"{self.folder / name} is not a {self.name} file: {reason}. Delete {self.folder}, and it is "
            "extracted from the archive again."
        )


class _BatchUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists and arrays, and refuses everything else.

    A pickle could otherwise call any function. The files were written by Python 2, so their strings are to
    be read as bytes.
    """

    ALLOWED = (
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the allowed classes and functions; refuse all others."""
        module = module.replace("numpy.core", "numpy._core")  # as numpy 2 calls it
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no such file needs")
        return super().find_class(module, name)


def _ensure_extracted(archive: Archive, root: Path, url: str, md5: str) -> None:
    """Download and extract what is not there yet; of several processes one does it."""

    def is_complete() -> bool:
        return all((root / archive.folder / name).is_file() for name in archive.members)

    if is_complete():
        return
    with explained(archive.name, root, url, md5, f"{archive.file} (or the extracted {archive.folder}/)"):
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f".{archive.file}.lock"):
            if is_complete():  # thanks to the process that held the lock
                return
            target = root / archive.file
            if not target.exists():
                download(url, target, md5)
            elif (found := md5_of(target)) != md5.lower():
                raise UserError(
                    f"{target} is not the {archive.name} archive: its MD5 is {found}, expected {md5}. "
                    "Replace it, or delete it to have it downloaded."
                )
            _extract(archive, target)


class _Bounded(gzip.GzipFile):
    """A gzip file that unpacks to no more than it should; without, a small one could fill the memory."""

    def read(self, size: int | None = -1) -> bytes:
        """Read at most ``size`` bytes."""
        self._check(math.inf if size is None or size < 0 else self.tell() + size)
        return super().read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place, counted from the start."""
        self._check(offset)
        return super().seek(offset, whence)

    def _check(self, end: float) -> None:
        if end > MAX_UNPACKED:
            raise ValueError(f"it holds more than {format_bytes(MAX_UNPACKED)}")


def _extract(archive: Archive, file: Path) -> None:
    """Extract the expected plain files beside the archive, when all of them have been found.

    No name in the archive becomes a path: they are compared with the expected ones.
    """
    files: dict[str, bytes] = {}
    try:
        with _Bounded(file) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise ValueError(
                        f"its path '{member.name}' leads out of its folder; nothing of it was used"
                    )
                if str(path.parent) == archive.folder and path.name in archive.members:
                    plain = tar.extractfile(member) if member.isreg() else None
                    if plain is None:
                        raise ValueError(f"{member.name} is not a plain file")
                    files[path.name] = plain.read()
        if lacking := sorted(set(archive.members) - set(files)):
            raise ValueError(f"it lacks {', '.join(lacking)}")
    except (tarfile.TarError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file} cannot be used as {archive.name} archive: {error}. Delete it.") from error
    folder = file.with_name(archive.folder)
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        write_atomic(folder / name, content)
