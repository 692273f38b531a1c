"""Image files and arrays to uint8 arrays of one size.

How the many kinds of image that PIL reads are converted:

- EXIF orientation is applied.
- 16-bit and 32-bit integer grayscale is read as 0..65535 and scaled to 0..255; floating-point
  images are refused, since nothing says what their range is.
- Transparent images (RGBA, LA, palettes) are put on white.
- Palette, CMYK and the like become RGB; ``channels=1`` takes the luma of ITU-R 601 (PIL's ``L``).
- The first frame of an animation is used.
- Images are resized without keeping their aspect ratio, bilinear, with antialiasing.
"""

import contextlib
import functools
import math
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from vitlab.core.cpu_count import count_cores
from vitlab.core.errors import UserError
from vitlab.data.memory import check_memory

MAX_LISTED = 5  # files named in a message; the rest are counted
CHUNK = 64  # files decoded in one call
RULES_VERSION = 1  # of the rules above; raise it when they change, so that caches are decoded again
MIN_IMAGES_FOR_BAR = 2048  # fewer are decoded before anyone could read a progress bar

T = TypeVar("T")


def convert_image(image: Image.Image, shape: tuple[int, int], channels: int) -> np.ndarray:
    """Convert an image to uint8 (channels, height, width) by the rules at the top of this file.

    Raises:
        ValueError: the image has floating-point pixels.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def read_image(path: Path, shape: tuple[int, int], channels: int) -> np.ndarray:
    """Decode a file to uint8 (channels, height, width). Raises what PIL raises if it is broken."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, and a device has no end
        raise ValueError("it is not a file")
    with Image.open(path) as image:
        # A large JPEG is decoded at a fraction of its size, at least twice the size wanted.
        image.draft(None, (2 * max(shape), 2 * max(shape)))
        return convert_image(image, shape, channels)


def list_problems(title: str, problems: Sequence[str]) -> str:
    """Return a title with a line for each of the first problems, and the number of the rest."""
    lines = [title, *(f"  {problem}" for problem in problems[:MAX_LISTED])]
    if len(problems) > MAX_LISTED:
        lines.append(f"  … and {len(problems) - MAX_LISTED} more")
    return "\n".join(lines)


def _read_chunk(
    paths: Sequence[Path], shape: tuple[int, int], channels: int
) -> tuple[np.ndarray, dict[int, str]]:
    """Return uint8 (n, channels, height, width), and of each row that cannot be read which file and why."""
    pixels = np.zeros((len(paths), channels, *shape), dtype=np.uint8)
    broken = {}
    for row, path in enumerate(paths):
        try:
            pixels[row] = read_image(path, shape, channels)
        except Exception as error:  # PIL raises many kinds for a broken file
            broken[row] = f"{path}: {error}"
    return pixels, broken


def decode_files(
    paths: Sequence[Path], shape: tuple[int, int], channels: int, num_workers: int | None = None
) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
    """Decode files in parallel, and yield what `_read_chunk` returns of each `CHUNK` of them, in order.

    In processes: PIL holds the interpreter lock for most of the time that a small image takes, so threads
    would be slower than one.

    Args:
        num_workers: see `ImageFiles`.

    Raises:
        UserError: a process was killed.
    """
    from vitlab.data.workers import Workers  # here, as it brings torch

    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    read = functools.partial(_read_chunk, shape=shape, channels=channels)
    num_workers = min(len(chunks), count_cores() if num_workers is None else num_workers)
    with contextlib.closing(Workers(read, num_workers if num_workers > 1 else 0)) as workers:
        for pixels, broken in workers(chunks):
            yield pixels.numpy(), broken


def _refuse(broken: Sequence[str]) -> None:
    if broken:
        noun = "file cannot be read as an image" if len(broken) == 1 else "files cannot be read as images"
        said = list_problems(f"{len(broken)} {noun}:", broken)
        raise UserError(f"{said}\nReplace or remove them, or leave a few out by data.on_error=skip.")


class LazyImages:
    """Images that are read when they are indexed.

    ``images[rows]`` is uint8 (len(rows), C, H, W), as of an array; ``shape`` is (N, C, H, W).
    """

    shape: tuple[int, int, int, int]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        raise NotImplementedError


Images = np.ndarray | LazyImages  # uint8 (N, C, H, W)


class ImageFiles(LazyImages):
    """Image files, decoded and resized each time they are indexed.

    Args:
        num_workers: processes that decode all of them; None for one a core, 0 is 1, and 1 is this one.

    Raises:
        UserError: while decoding, for broken files (the message names them after all have been tried), or
            when a process was killed.
    """

    def __init__(
        self, paths: Sequence[Path], shape: tuple[int, int], channels: int, num_workers: int | None
    ) -> None:
        self.paths = paths
        self.shape = (len(paths), channels, *shape)
        self.num_workers = num_workers

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        # In this process: whoever reads a few at a time has a process for each core.
        pixels, broken = _read_chunk([self.paths[row] for row in rows], self.shape[2:], self.shape[1])
        _refuse([*broken.values()])
        return pixels

    def decode_all(self) -> np.ndarray:
        """Decode all into one array."""
        out = np.empty(self.shape, dtype=np.uint8)
        first = 0
        for pixels in self.decode():
            out[first : first + len(pixels)] = pixels
            first += len(pixels)
        return out

    def find_broken(self, rows: Sequence[int]) -> dict[int, str]:
        """Decode some, for nothing but to see which cannot be: of these rows, which file it is and why."""
        chunks = decode_files(
            [self.paths[row] for row in rows], self.shape[2:], self.shape[1], self.num_workers
        )
        bar = with_bar(chunks, "Looking for broken images", len(rows), CHUNK)
        found = [(n * CHUNK + row, text) for n, (_, part) in enumerate(bar) for row, text in part.items()]
        return {rows[place]: text for place, text in found}

    def decode(self) -> Iterator[np.ndarray]:
        """Decode all in parallel and yield chunks uint8 (n, C, H, W), in order."""
        broken: list[str] = []
        chunks = decode_files(self.paths, self.shape[2:], self.shape[1], self.num_workers)
        for pixels, failures in with_bar(chunks, "Decoding images", len(self.paths), CHUNK):
            broken += failures.values()
            yield pixels
        _refuse(broken)


def resize_images(images: np.ndarray, shape: tuple[int, int], channels: int) -> np.ndarray:
    """Resize uint8 (N, C, H, W), or give it other channels, by the same rules as for files."""
    if images.shape[1:] == (channels, *shape):
        return images
    check_memory((len(images), channels, *shape))
    out = np.empty((len(images), channels, *shape), dtype=np.uint8)
    for row in with_bar(range(len(images)), "Resizing images", len(images), 1):
        pixels = images[row].transpose(1, 2, 0).squeeze()  # PIL takes one channel without its dimension
        out[row] = convert_image(Image.fromarray(pixels), shape, channels)
    return out


def with_bar(
    chunks: Iterable[T], title: str, number: int, size: int, fewest: int = MIN_IMAGES_FOR_BAR
) -> Iterable[T]:
    """Return ``chunks`` of ``size`` of the ``number`` images, with a bar on a terminal if they are many."""
    if number < fewest or not sys.stderr.isatty():
        return chunks
    from rich.console import Console
    from rich.progress import track

    total = math.ceil(number / size)
    return track(chunks, title, total=total, console=Console(stderr=True), transient=True)
