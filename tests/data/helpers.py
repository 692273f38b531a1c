"""Small data sets on disk for the tests of this folder."""

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf" / "data"


def config(kind: str, **changes):
    """Return the YAML of a data set as a plain dict, with changes."""
    cfg = yaml.safe_load((CONF / f"{kind}.yaml").read_text())
    assert not set(changes) - set(cfg), "not a key of the YAML"
    private = {"cache": None} if "cache" in cfg else {}  # no test writes to the user's own cache
    return cfg | private | changes


def save(path: Path, colour=(255, 0, 0), size=(8, 8), mode="RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def decoded(dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all images of a split as an array, and their labels."""
    images, labels = dataset.load(split)
    return images[np.arange(len(labels))], labels


def assert_same(batches, others):
    """Check that the batches have the same images and targets."""
    for a, b in zip(batches, others, strict=True):
        assert a.images.equal(b.images)
        assert a.targets.equal(b.targets)


def image_tree(root: Path, counts: dict[str, int]) -> Path:
    """Make ``root/<key>/000.png …``; the red of an image is its place in its folder."""
    for folder, number in counts.items():
        for i in range(number):
            save(root / folder / f"{i:03d}.png", (i, 0, 0))
    return root


def python2_pickle(content: dict) -> bytes:
    """Pickle as Python 2 did for the official files: byte strings, and an array of the old numpy.

    Takes bytes, lists of int or bytes, and one uint8 matrix.
    """

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value  # BINSTRING

    def encode(value) -> bytes:
        if isinstance(value, bytes):
            return text(value)
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(encode, value)) + b"e"
        assert isinstance(value, np.ndarray)
        assert value.dtype == np.uint8
        blank = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN"
        dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"(" + b"".join(encode(n) for n in value.shape) + b"t"
        return blank + b"(K\x01" + shape + dtype + b"I00\n" + text(value.tobytes()) + b"tb"

    items = b"".join(encode(key) + encode(value) for key, value in content.items())
    return b"\x80\x02}(" + items + b"u."


def cifar_files(per_batch: int = 20) -> dict[str, bytes]:
    """Return a small archive's members as CIFAR-10 has them; image n has n in its first pixel."""
    files = {}
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for place, name in enumerate(names):
        pixels = np.random.default_rng(place).integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        pixels[:, 0] = place * per_batch + np.arange(per_batch)
        labels = [n % 10 for n in range(per_batch)]
        files[f"cifar-10-batches-py/{name}"] = python2_pickle(
            {b"batch_label": b"some", b"labels": labels, b"data": pixels}
        )
    label_names = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog"]
    label_names += [b"horse", b"ship", b"truck"]
    files["cifar-10-batches-py/batches.meta"] = python2_pickle({b"label_names": label_names})
    files["cifar-10-batches-py/readme.html"] = b"<html>"
    return files


def tar_gz(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(out.getvalue(), mtime=0)  # the same bytes in every process


def md5(content: bytes) -> str:
    """Return the MD5 sum in hexadecimal."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx(values: np.ndarray) -> bytes:
    """Return bytes as MNIST's files have them."""
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def fashion_files(seed: int = 0) -> dict[str, bytes]:
    """Return what small files of Fashion-MNIST hold, by the keys of the config."""
    files = {}
    for split, number in (("train", 40), ("test", 20)):
        pixels = np.random.default_rng(seed + number).integers(0, 256, (number, 28, 28), dtype=np.uint8)
        files |= {
            f"{split}_images": idx(pixels),
            f"{split}_labels": idx((np.arange(number) % 10).astype(np.uint8)),
        }
    return files


def sums(kind: str, files: dict[str, bytes]) -> dict[str, str]:
    """Return the md5 or sha256 sum of each."""
    return {
        key: hashlib.new(kind, content, usedforsecurity=False).hexdigest() for key, content in files.items()
    }


def sha256(files: dict[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 sum of each, in hexadecimal."""
    return {key: hashlib.sha256(content).hexdigest() for key, content in files.items()}
