"""Fashion-MNIST from its four files (Xiao, Rasul and Vollgraf 2017)."""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitlab.core.errors import UserError
from vitlab.core.files import locked
from vitlab.data.decode import resize_images
from vitlab.data.download import download, explained
from vitlab.data.memory import format_bytes

NAME = "Fashion-MNIST"
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FILES = {  # what the config's keys are called on disk
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
FOLDER = "fashion-mnist"  # below data.root, where they are downloaded to
FOLDERS = (".", FOLDER, "FashionMNIST/raw")  # the last is torchvision's
MAX_UNPACKED = 1 << 27  # bytes of a file; the largest official one has 47 MB


class FashionMnist:
    """Fashion-MNIST, found in ``root`` or downloaded to it.

    Looked for in ``root`` and its ``FOLDERS``, as .gz of any packing or unpacked; else downloaded. The
    files are read once, to check them; ``load`` hands over what was read.

    Args:
        root, url, md5, sha256: as in ``conf/data/fashion_mnist.yaml``.
        shape, channels: of the images, see `Dataset`; those stored are resized.

    Raises:
        UserError: the data is not there and cannot be downloaded, or is not what it should be.
    """

    on_disk = False
    name = NAME
    classes: tuple[str, ...] = CLASSES

    def __init__(
        self,
        *,
        root: Path,
        url: str,
        md5: Mapping[str, str],
        sha256: Mapping[str, str],
        shape: tuple[int, int],
        channels: int,
    ) -> None:
        self.shape, self.channels = shape, channels
        self.notes: list[str] = []
        self._files = _find(root) or _fetch(root, url, md5)
        self._sha256 = sha256
        self._read = {split: self._read_split(split) for split in ("train", "test")}  # until it is loaded
        self.sizes = {split: len(labels) for split, (_, labels) in self._read.items()}

    def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a split: uint8 (N, C, H, W) and int64 labels (N,)."""
        images, labels = self._read.pop(split) if split in self._read else self._read_split(split)
        return resize_images(images, self.shape, self.channels), labels

    def _read_split(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return images (N, 1, 28, 28) and labels (N,) as they are in the files."""
        images, labels = (
            self._read_idx(f"{split}_{part}", ndim) for part, ndim in (("images", 3), ("labels", 1))
        )
        if len(images) != len(labels):
            raise self._broken(f"{split}_labels", f"it has {len(labels):,} labels for {len(images):,} images")
        if labels.max(initial=0) >= len(CLASSES):
            raise self._broken(f"{split}_labels", f"it has labels beyond {len(CLASSES) - 1}")
        return images[:, None], labels.astype(np.int64)

    def _read_idx(self, key: str, ndim: int) -> np.ndarray:
        """Return the bytes of a file in the idx format of MNIST as an array, if they are the right ones.

        The format: two zero bytes, 8 (unsigned bytes), the number of dimensions, each of them as four bytes,
        the highest first, and then the values, row by row.
        """
        try:
            with self._files[key].open("rb") as file:
                is_packed = file.read(2) == b"\x1f\x8b"
                file.seek(0)
                stream = gzip.GzipFile(fileobj=file) if is_packed else file
                content = stream.read(MAX_UNPACKED + 1)
        except (EOFError, zlib.error, OSError) as error:
            raise self._broken(key, str(error)) from error
        if len(content) > MAX_UNPACKED:
            raise self._broken(key, f"it holds more than {format_bytes(MAX_UNPACKED)}")
        found, expected = hashlib.sha256(content).hexdigest(), self._sha256[key].lower()
        if found != expected:
            raise self._broken(key, f"the SHA-256 of its unpacked bytes is {found}, expected {expected}")
        header = 4 + 4 * ndim
        shape = struct.unpack(f">{ndim}I", content[4:header].ljust(4 * ndim, b"\0"))
        if content[:4] != bytes((0, 0, 8, ndim)) or len(content) != header + math.prod(shape):
            raise self._broken(key, f"it is not in the idx format, with {ndim} dimension(s)")
        writable = bytearray(content)  # as torch wants it
        return np.frombuffer(writable, dtype=np.uint8, offset=header).reshape(shape)

    def _broken(self, key: str, reason: str) -> UserError:
        return UserError(
            f"{self._files[key]} is not a {NAME} file: {reason.rstrip('.')}. Replace it, or delete it to "
            "have it downloaded."
        )


def _find(root: Path) -> dict[str, Path]:
    """Return the four files from the first folder that has all of them; nothing if none has."""
    for folder in FOLDERS:
        names = {key: (root / folder / f"{name}.gz", root / folder / name) for key, name in FILES.items()}
        found = {key: file for key, pair in names.items() for file in reversed(pair) if file.is_file()}
        if len(found) == len(FILES):
            return found
    return {}


def _fetch(root: Path, url: str, md5: Mapping[str, str]) -> dict[str, Path]:
    """Download the files that are lacking; of several processes one does it."""
    folder = root / FOLDER
    with explained(NAME, root, url, md5, f"{FILES['train_images']}.gz and the other three files"):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            for key, name in FILES.items():
                target = folder / f"{name}.gz"
                if not target.is_file() and not (folder / name).is_file():
                    download(f"{url.rstrip('/')}/{target.name}", target, md5[key])
    return _find(root)
