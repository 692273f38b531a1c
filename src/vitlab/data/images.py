"""Image files and arrays to uint8 arrays of one size. Torch-free.

What happens to the many kinds of image that PIL reads:

- EXIF orientation is applied.
- 16-bit and 32-bit integer grayscale is read as 0..65535 and scaled to 0..255; floating-point
  images are refused, since nothing says what their range is.
- Transparency (RGBA, LA, palettes) is laid over white.
- Palette, CMYK and the like become RGB; ``channels=1`` takes the luma of ITU-R 601 (PIL's ``L``).
- Of an animation the first frame is taken.
- The image is resized to the size asked for without keeping its aspect, bilinear, with
  antialiasing.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vitlab.errors import UserError

SHOWN = 5  # files named in a message; the rest are counted
CHUNK = 64  # files decoded by one call of a thread
BAR_AFTER = 2048  # images; fewer are decoded before anyone could read the bar


def image_shape(size: Any) -> tuple[int, int]:
    """Return (height, width) in pixels of an ``image_size``: an integer or [height, width].

    Raises:
        UserError: if it is neither, or not positive.
    """
    values = [size, size] if isinstance(size, int) else size
    if (
        isinstance(size, bool | str)
        or not isinstance(values, Sequence)
        or len(values) != 2
        or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
    ):
        raise UserError(f"data.image_size must be a positive integer or [height, width], but is {size!r}.")
    return int(values[0]), int(values[1])


def check_channels(channels: Any) -> int:
    """Return ``channels`` if it is 1 or 3; raise UserError otherwise."""
    if channels not in (1, 3) or isinstance(channels, bool):
        raise UserError(f"data.channels must be 3 (colour) or 1 (grayscale), but is {channels!r}.")
    return int(channels)


def to_array(image: Image.Image, shape: tuple[int, int], channels: int) -> np.ndarray:
    """Convert an image to (channels, height, width) uint8 by the rules at the head of this file.

    Raises:
        ValueError: for a floating-point image.
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
    if image.size != (shape[1], shape[0]):
        image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def read_image(path: Path, shape: tuple[int, int], channels: int) -> np.ndarray:
    """Decode a file to (channels, height, width) uint8. Raises what PIL does if it is broken."""
    with Image.open(path) as image:
        # A large JPEG is decoded at a fraction of its size, never below twice what is wanted.
        image.draft(None, (2 * max(shape), 2 * max(shape)))
        return to_array(image, shape, channels)


def read_images(
    paths: Sequence[Path], shape: tuple[int, int], channels: int, num_workers: int | None
) -> np.ndarray:
    """Decode files in threads to (N, channels, height, width) uint8.

    Args:
        paths: the files.
        shape: (height, width) in pixels.
        channels: 3 or 1.
        num_workers: threads; None for one a core. PIL lets go of the interpreter lock while it
            decodes.

    Raises:
        UserError: naming the broken files, all of them found in one go; or if memory does not
            suffice.
    """
    check_memory(len(paths), shape, channels)
    images = np.empty((len(paths), channels, *shape), dtype=np.uint8)

    def decode(index: int) -> None:
        images[index] = read_image(paths[index], shape, channels)

    failures = _in_threads(decode, len(paths), num_workers, "Decoding images")
    if failures:
        lines = [f"  {paths[i]}: {error}" for i, error in failures[:SHOWN]]
        if len(failures) > SHOWN:
            lines.append(f"  … and {len(failures) - SHOWN} more")
        noun = "file is not an image" if len(failures) == 1 else "files are not images"
        raise UserError(
            f"{len(failures)} of {len(paths)} {noun} that can be read:\n"
            + "\n".join(lines)
            + "\nReplace or remove them."
        )
    return images


def resize_images(images: np.ndarray, shape: tuple[int, int], channels: int) -> np.ndarray:
    """Bring (N, 3, H, W) uint8 to another size or to grayscale, by the same rules as files."""
    if images.shape[1:] == (channels, *shape):
        return images
    check_memory(len(images), shape, channels)
    out = np.empty((len(images), channels, *shape), dtype=np.uint8)

    def convert(index: int) -> None:
        pixels = np.ascontiguousarray(images[index].transpose(1, 2, 0))
        out[index] = to_array(Image.fromarray(pixels), shape, channels)

    failures = _in_threads(convert, len(images), None, "Resizing images")
    if failures:
        raise failures[0][1]
    return out


def check_memory(number: int, shape: tuple[int, int], channels: int) -> None:
    """Raise UserError if ``number`` decoded images do not fit the memory at hand.

    Counted twice, since the hold-out or the transfer to the device copies them once.
    """
    needed = 2 * number * channels * shape[0] * shape[1]
    available = available_memory()
    if available is not None and needed > available:
        raise UserError(
            f"{number:,} images of {shape[0]} × {shape[1]} × {channels} need about "
            f"{needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} GiB is available. "
            "Set a smaller data.image_size (a model may enlarge its input on the device) or use fewer images."
        )


def available_memory() -> int | None:
    """Return the bytes that this machine or container may still give, if known."""
    bounds = []
    with contextlib.suppress(OSError):
        machine = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
        bounds += [int(machine[1]) * 1024] if machine else []
    # An OSError where there is no such group, a ValueError where its limit is "max".
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        # Cached files count as used there, but are given back on demand.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        bounds.append(limit - used + int(stat.get("inactive_file", 0)))
    return min(bounds) if bounds else None


def _in_threads(
    work: Callable[[int], None], number: int, num_workers: int | None, title: str
) -> list[tuple[int, Exception]]:
    """Call ``work(0 … number - 1)`` in threads; return what failed, in order."""

    def chunk(start: int) -> list[tuple[int, Exception]]:
        failed: list[tuple[int, Exception]] = []
        for index in range(start, min(start + CHUNK, number)):
            try:
                work(index)
            except Exception as error:  # PIL raises many kinds for a broken file
                failed.append((index, error))
        return failed

    failures = []
    with (
        _bar(title, number) as advance,
        ThreadPoolExecutor(num_workers or os.cpu_count() or 1) as pool,
    ):
        for failed in pool.map(chunk, range(0, number, CHUNK)):
            failures += failed
            advance(CHUNK)
    return failures


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal if the work is long enough; yield its ``advance(steps)``."""
    if total < BAR_AFTER or not sys.stderr.isatty():
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda steps: progress.advance(task, steps)
