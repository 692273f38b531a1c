"""What a data set is to the rest of the project, and how a config names one. Torch-free.

Building a dataset finds (or downloads) the data and checks what is there; ``load`` makes it readable.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitlab.core.errors import UserError
from vitlab.core.suggest import suggest
from vitlab.data.decode import Images, check_channels, image_shape
from vitlab.data.split import split_count

KINDS = ("cifar10", "cifar100", "image_folder", "image_list", "shapes")


class Dataset(Protocol):
    """A labelled set of images with a training and a test part."""

    name: str  # for titles, as "CIFAR-10"
    classes: tuple[str, ...]
    sizes: dict[str, int]  # images of "train" and "test", and of "val" where the set brings its own
    shape: tuple[int, int]  # (H, W) of the images in pixels
    channels: int  # C of the images: 3 or 1
    on_disk: bool  # whether images can be read a batch at a time, without all of them in memory
    notes: list[str]  # what a reader of the log should know: options without effect, files left out

    def load(self, split: str) -> tuple[Images, np.ndarray]:
        """Return (images, labels) of a split in ``sizes``: uint8 (N, C, H, W) and int64 (N,).

        Images on the disk come as `StoredImages`, which are read when they are asked for.
        """
        ...


def build(cfg: Mapping[str, Any]) -> Dataset:
    """Make the dataset that the ``data`` part of a config asks for.

    Args:
        cfg: the resolved ``data`` section as plain values; ``kind`` picks the dataset.

    Raises:
        UserError: if the data is not there and cannot be fetched, or does not fit the options.
    """
    kind = cfg["kind"]
    shape, channels = image_shape(cfg["image_size"]), check_channels(cfg["channels"])
    fixed_normalization(cfg["normalization"], channels)
    dataset: Dataset
    if kind in ("cifar10", "cifar100"):
        from vitlab.data.cifar import ARCHIVES, Cifar

        dataset = Cifar(
            archive=ARCHIVES[kind],
            root=_folder(cfg["root"], kind),
            url=cfg["url"],
            md5=cfg["md5"],
            shape=shape,
            channels=channels,
        )
    elif kind in ("image_folder", "image_list"):
        from vitlab.data.image_folder import ImageFolder, ImageList

        files = ImageFolder if kind == "image_folder" else ImageList
        dataset = files(
            root=_folder(cfg["root"], kind),
            shape=shape,
            channels=channels,
            labels=cfg["labels"],
            test_size=cfg["test_size"],
            split_seed=cfg["split_seed"],
            num_workers=cfg["num_workers"],
            # Not in the config of runs from before there was a cache.
            cache=Path(cfg["cache"]).expanduser() if cfg.get("cache") else None,
        )
    elif kind == "shapes":
        from vitlab.data.shapes import Shapes

        dataset = Shapes(
            num_train=cfg["num_train"],
            num_test=cfg["num_test"],
            seed=cfg["seed"],
            shape=shape,
            channels=channels,
        )
    else:
        raise UserError(
            f"data.kind={kind} is not known{suggest(str(kind), KINDS)}. It may be one of: {', '.join(KINDS)}."
        )
    _check(dataset, cfg)
    dataset.notes += _without_effect(dataset, cfg)
    return dataset


def part_sizes(dataset: Dataset, val_size: int | float | None) -> dict[str, int]:
    """Return how many images train, validate and test: keys "train", "val" (0 for none), "test".

    The validation part is the dataset's own or is held out of the training images; ``val_size`` None
    holds out a tenth.

    Raises:
        UserError: if ``val_size`` is not a count or a fraction that leaves images to train on.
    """
    total = dataset.sizes["train"]
    if "val" in dataset.sizes:
        return {"train": total, "val": dataset.sizes["val"], "test": dataset.sizes["test"]}
    held = split_count(0.1 if val_size is None else val_size, total, "data.val_size")
    return {"train": total - held, "val": held, "test": dataset.sizes["test"]}


def fixed_normalization(normalization: Any, channels: int) -> tuple[list[float], list[float]] | None:
    """Return (mean, std), a value a channel on the 0..1 scale; None for the training images' own.

    Raises:
        UserError: unless it is ``dataset``, ``half`` or {mean: [...], std: [...]} with as many
            values as channels.
    """
    ways = "dataset, half or {mean: [...], std: [...]} with values on the 0..1 scale"
    if normalization == "dataset":
        return None
    if normalization == "half":
        return [0.5] * channels, [0.5] * channels
    if not isinstance(normalization, Mapping) or set(normalization) != {"mean", "std"}:
        hint = suggest(normalization, ["dataset", "half"]) if isinstance(normalization, str) else ""
        raise UserError(f"data.normalization must be {ways}, but is {normalization}{hint}.")
    given = []
    for key, low in (("mean", -1e-9), ("std", 0.0)):
        values = normalization[key]
        if (
            isinstance(values, str)
            or not isinstance(values, Sequence)
            or len(values) != channels
            or not all(isinstance(v, int | float) and low < v <= 1 for v in values)
        ):
            bound = "from 0 to 1" if key == "mean" else "above 0, up to 1"
            raise UserError(
                f"data.normalization.{key} must be {channels} number(s) {bound} (one a channel; "
                "data.channels is "
                f"{channels}), but is {values}."
            )
        given.append([float(v) for v in values])
    return given[0], given[1]


def _folder(root: Any, kind: str) -> Path:
    if root is None:
        what = "data.root=FILE.csv" if kind == "image_list" else "data.root=DIR"
        raise UserError(f"data={kind} needs to know where the images are: give {what}.")
    return Path(str(root)).expanduser()


def _check(dataset: Dataset, cfg: Mapping[str, Any]) -> None:
    number = len(dataset.classes)
    if number < 2:
        raise UserError(f"{dataset.name} has {number} class ({', '.join(dataset.classes)}); two are needed.")
    if cfg["num_classes"] is not None and cfg["num_classes"] != number:
        raise UserError(
            f"data.num_classes={cfg['num_classes']}, but {dataset.name} has {number} classes. "
            "Leave it out: it is found from the data."
        )
    seed = cfg["split_seed"]
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"data.split_seed must be an integer, but is {seed!r}.")
    train = part_sizes(dataset, cfg["val_size"])["train"]
    if cfg["batch_size"] > train:
        raise UserError(
            f"data.batch_size={cfg['batch_size']} is more than the {train} images there are to train on. "
            f"Set it to {train} or less."
        )


def _without_effect(dataset: Dataset, cfg: Mapping[str, Any]) -> list[str]:
    """Name the options that were set and change nothing: they corrupt comparisons."""
    notes = []
    kind = cfg["kind"]
    if kind == "shapes" and cfg["root"] is not None:
        notes.append("data.root has no effect with data=shapes: the images are drawn, not read.")
    if "val" in dataset.sizes and cfg["val_size"] is not None:
        notes.append(
            f"data.val_size has no effect: {dataset.name} brings {dataset.sizes['val']} validation images."
        )
    return notes
