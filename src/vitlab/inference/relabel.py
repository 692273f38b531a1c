"""Other data for a trained network: with its classes by name, or all images as one part."""

from collections.abc import Sequence

import numpy as np

from vitlab.core.errors import UserError
from vitlab.core.suggest import suggest
from vitlab.data.datasets import Dataset
from vitlab.data.decode import Images, LazyImages


def with_classes(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Return a data set whose labels are a network's, matched by the names of the classes.

    Raises:
        UserError: it has a class that the network does not know.
    """
    missing = [name for name in dataset.classes if name not in classes]
    if len(missing) == len(dataset.classes):
        raise UserError(
            f"{dataset.name} has no class that this network was trained on: expected {list_some(classes)}, "
            f"found {list_some(missing)}{suggest(missing[0], classes)}."
        )
    if missing:
        raise UserError(
            f"{dataset.name} has classes that this network was not trained on: {list_some(missing)}"
            f"{suggest(missing[0], classes)}. Leave their images out, or rename classes of image files by "
            f"data.labels={{{missing[0]}: {classes[0]}}}."
        )
    return dataset if list(dataset.classes) == list(classes) else Relabelled(dataset, classes)


def list_some(names: Sequence[str]) -> str:
    """Return the first names as one text."""
    return ", ".join(names[:8]) + (" …" if names[8:] else "")


class View:
    """Another view of a data set: all that it says of itself, to be changed."""

    def __init__(self, dataset: Dataset) -> None:
        self.name, self.classes = dataset.name, dataset.classes
        self.sizes, self.notes = dataset.sizes, dataset.notes
        self.shape, self.channels, self.on_disk = dataset.shape, dataset.channels, dataset.on_disk
        self._dataset = dataset


class Pooled(View):
    """A data set whose test part is all of its images: those of training first, then its other parts."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self.sizes = {"train": dataset.sizes["train"], "test": sum(dataset.sizes.values())}

    def load(self, split: str) -> tuple[Images, np.ndarray]:
        """Return images (N, C, H, W) and labels (N,)."""
        if split == "train":
            return self._dataset.load(split)
        parts = [self._dataset.load(name) for name in self._dataset.sizes]
        return Joined([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


class Joined(LazyImages):
    """Images of several parts, one after the other."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self._parts = parts
        self._ends = np.cumsum([part.shape[0] for part in parts])
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        of = np.searchsorted(self._ends, rows, side="right")  # (n,) the part of each row
        for number, part in enumerate(self._parts):
            mine = of == number
            first = self._ends[number] - part.shape[0]
            found[mine] = part[rows[mine] - first]
        return found


class Relabelled(View):
    """A data set that has some of these classes, with the numbers that they have among all of them."""

    def __init__(self, dataset: Dataset, classes: Sequence[str]) -> None:
        super().__init__(dataset)
        self.classes = tuple(classes)
        self._numbers = np.array([self.classes.index(name) for name in dataset.classes])

    def load(self, split: str) -> tuple[Images, np.ndarray]:
        """Return images (N, C, H, W) and labels (N,)."""
        images, labels = self._dataset.load(split)
        return images, self._numbers[labels]
