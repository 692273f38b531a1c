"""What a data set is to the rest of the project, and how a config names one.

Building a data set finds (or downloads) its files and checks what is there; ``load`` gives the images.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitlab.core.data_protocol import DatasetInfo
from vitlab.core.errors import UserError
from vitlab.data.cifar import ARCHIVES, Cifar
from vitlab.data.decode import Images
from vitlab.data.fashion_mnist import FashionMnist
from vitlab.data.image_folder import FileDataset
from vitlab.data.shapes import Shapes
from vitlab.data.split import split_size


class Dataset(Protocol):
    """A labelled set of images with a training and a test part."""

    name: str  # for titles, such as "CIFAR-10"
    classes: tuple[str, ...]  # names, in the order of the labels
    sizes: dict[str, int]  # images of "train" and "test", and of "val" where the set has its own
    shape: tuple[int, int]  # (H, W) of the images in pixels
    channels: int  # C of the images, 3 or 1
    on_disk: bool  # can images be read a batch at a time, without all of them in memory?
    notes: list[str]  # what the reader of the log should know: options without effect, files left out

    def load(self, split: str) -> tuple[Images, np.ndarray]:
        """Return images, uint8 (N, C, H, W), and labels, int64 (N,), of a split in ``sizes``.

        Images on the disk come as `LazyImages`, which are read when they are indexed.
        """
        ...


def build(options: Mapping[str, Any]) -> Dataset:
    """Make the data set that the ``data`` section of a config, resolved to plain values, asks for.

    What has been read to check it is kept for ``load``.

    Raises:
        UserError: the data is not there and cannot be downloaded, or does not fit the options.
    """
    kind, size = options["kind"], options["image_size"]
    shape = (size, size) if isinstance(size, int) else tuple(size)
    common: dict[str, Any] = {"shape": shape, "channels": options["channels"]}
    root = Path(str(options["root"])).expanduser()
    dataset: Dataset
    if kind == "shapes":
        dataset = Shapes(**{key: options[key] for key in ("num_train", "num_test", "seed")}, **common)
    elif kind in ARCHIVES:
        dataset = Cifar(ARCHIVES[kind], root=root, url=options["url"], md5=options["md5"], **common)
    elif kind == "fashion_mnist":
        dataset = FashionMnist(**{key: options[key] for key in ("url", "md5", "sha256")}, root=root, **common)
    else:
        cache = Path(options["cache"]).expanduser() if options["cache"] else None
        own = {key: options[key] for key in ("labels", "test_size", "split_seed", "num_workers")}
        on_error = options.get("on_error", "stop")  # runs from before there was the option stop
        dataset = FileDataset(kind, root=root, cache=cache, on_error=on_error, **own, **common)
    found = describe(dataset, options["val_size"])  # which refuses a hold-out that leaves nothing
    if len(found.classes) < 2:
        raise UserError(f"{found.name} has 1 class ({found.classes[0]}); two are needed.")
    if kind == "shapes" and options["root"] is not None:
        dataset.notes.append("data.root has no effect with data=shapes: the images are drawn, not read.")
    if "val" in dataset.sizes and options["val_size"] is not None:
        dataset.notes.append(
            f"data.val_size has no effect: {dataset.name} has {dataset.sizes['val']} validation images of "
            "its own."
        )
    return dataset


def describe(dataset: Dataset, val_size: int | float | None) -> DatasetInfo:
    """Return name, classes and sizes of a data set as a run with this ``data.val_size`` uses it.

    Raises:
        UserError: ``val_size`` leaves no images to train on.
    """
    train, val = dataset.sizes["train"], dataset.sizes.get("val")
    if val is None:
        val = split_size(val_size, train, "data.val_size")
        train -= val
    return DatasetInfo(dataset.name, dataset.classes, train, val, dataset.sizes["test"])
