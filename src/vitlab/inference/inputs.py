"""What is given to a verb after training: a trained network, and images."""

import contextlib
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vitlab.core.errors import UserError
from vitlab.core.files import check_links
from vitlab.core.run_folder import RunFolder, State, find_checkpoint
from vitlab.data.decode import convert_image, read_image

# What a folder is searched for; a file that is named is tried whatever its name.
SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
LARGEST = 1024  # pixels of the longer side, of an image that is shown


def find_weights(run: str) -> tuple[Path, Path]:
    """Return the checkpoint that ``run`` means, and the folder for what is found out about it.

    Args:
        run: a run folder, or a checkpoint anywhere.

    Raises:
        UserError: there is none, or the run is still training.
    """
    checkpoint = find_checkpoint(run, "")
    folder = RunFolder(checkpoint.parent.parent)
    if checkpoint.parent != folder.checkpoints or not folder.config.is_file():
        return checkpoint, checkpoint.parent
    if folder.state() is State.RUNNING:
        raise UserError(
            f"{folder} is still training, and its weights change: wait for it, or give a copy of "
            f"{checkpoint.name}."
        )
    check_links(folder.path)
    return checkpoint, folder.path


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Return the image files that names of files, of folders and globs mean, each once.

    Raises:
        UserError: one of them means none.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            named = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            files = sorted(file for file in named if not file.is_dir())
        elif path.exists():
            files = [path]
        else:
            files = [Path(file) for file in sorted(glob.glob(str(path), recursive=True))]
        if not files:
            raise UserError(
                f"{pattern}: there is no image: expected a file, a folder with images, or a glob."
            )
        found += files
    return list(dict.fromkeys(found))


def read_both(path: Path, shape: tuple[int, int], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image as the network's data are decoded, uint8 ``(C, H, W)``, and as a person sees it.

    Raises:
        UserError: it is no image that can be read.
    """
    with broken_images(path):
        return read_image(path, shape, channels), read_shown(path)


@contextlib.contextmanager
def broken_images(path: str | Path) -> Iterator[None]:
    """Raise a UserError for a file that is no image that can be read."""
    try:
        yield
    except Exception as error:  # PIL raises many kinds for a broken file
        raise UserError(f"{path} cannot be read as an image: {error}") from error


def read_shown(path: Path) -> np.ndarray:
    """Return an image to look at, uint8 ``(H, W, 3)``, with its sides as they are, or smaller."""
    with Image.open(path) as image:
        shown = ImageOps.exif_transpose(image)
        shown.thumbnail((LARGEST, LARGEST))
        return convert_image(shown, (shown.height, shown.width), 3).transpose(1, 2, 0)
