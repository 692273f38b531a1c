"""Images of one's own: class folders, or a CSV file that lists them. Torch-free."""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitlab.core.errors import UserError
from vitlab.core.seeding import derive
from vitlab.core.suggest import suggest
from vitlab.data.cache import TAG, cached
from vitlab.data.decode import SHOWN, ImageFiles, Images
from vitlab.data.split import split_count, stratified_split

SPLITS = ("train", "val", "test")
TEST_SHARE = 0.2  # of data that has no test part of its own, unless data.test_size says otherwise

Listing = list[tuple[Path, str]]  # (file, class name)


class Files:
    """Labelled image files in splits. ``ImageFolder`` and ``ImageList`` find them.

    Args:
        name: for titles.
        listings: the files of each split: "train", or several of "train", "val" and "test".
        shape: (height, width) in pixels that every image is resized to.
        channels: 3 or 1.
        labels: new name for a class, by its name in the data; two classes with one new name are
            merged.
        test_size: count or fraction to split off for testing where the data has no test part; None
            for a fifth.
        split_seed: of that split.
        num_workers: threads that decode a split at once; None for one a core.
        cache: folder for decoded splits; None for none.
        root: of the data set; what a cache calls a file is relative to it.
        listed: what names the files: the folder itself, or a list.
        notes: what to tell the reader of the log.

    Raises:
        UserError: if there is nothing to train on, or the splits do not fit together.
    """

    on_disk = True

    def __init__(
        self,
        *,
        name: str,
        listings: Mapping[str, Listing],
        shape: tuple[int, int],
        channels: int,
        labels: Mapping[Any, Any] | None,
        test_size: int | float | None,
        split_seed: int,
        num_workers: int | None,
        cache: Path | None,
        root: Path,
        listed: Path,
        notes: Sequence[str],
    ) -> None:
        if num_workers is not None and (isinstance(num_workers, bool) or num_workers < 0):
            raise UserError(
                f"data.num_workers must be a number from 0, or null for one a core, but is {num_workers}."
            )
        self.name = name
        self.shape = shape
        self.channels = channels
        self.num_workers = num_workers
        self.cache = cache
        self.root = root
        self.listed = listed
        self.notes = list(notes)
        renamed = _rename(listings, labels, name)
        self.classes = _natural_order({label for _, label in renamed.get("train", [])})
        if not self.classes:
            raise UserError(f"{name} holds no images to train on.")
        self._check_labels(renamed)
        own_test = bool(renamed.get("test") or renamed.get("val"))
        self._split_by = "" if own_test else f"_{test_size or TEST_SHARE}_{split_seed}"
        self._listings = self._arrange(renamed, test_size, split_seed)
        self.sizes = {split: len(listing) for split, listing in self._listings.items()}

    def load(self, split: str) -> tuple[Images, np.ndarray]:
        """Return a split, from its cache or as files: uint8 (N, C, H, W) and int64 labels (N,).

        Raises:
            UserError: for broken files, where a cache is made of them.
        """
        listing = self._listings[split]
        number = {label: place for place, label in enumerate(self.classes)}
        labels = np.array([number[label] for _, label in listing], dtype=np.int64)
        files = ImageFiles([path for path, _ in listing], self.shape, self.channels, self.num_workers)
        if self.cache is None:
            return files, labels
        images = cached(
            files,
            folder=self.cache,
            root=self.root,
            listed=self.listed,
            split=split + self._split_by,
            notes=self.notes,
        )
        return images, labels

    def _check_labels(self, listings: Mapping[str, Listing]) -> None:
        for split, listing in listings.items():
            unknown = Counter(label for _, label in listing if label not in self.classes)
            if unknown:
                label, number = unknown.most_common(1)[0]
                raise UserError(
                    f"{self.name}: class '{label}' has {number} images in {split} and none in train"
                    f"{suggest(label, self.classes)}. Classes to train on: {_few(self.classes)}."
                )
            absent = sorted(set(self.classes) - {label for _, label in listing})
            if absent:
                self.notes.append(f"{self.name}: {split} has no images of {_few(absent)}.")

    def _arrange(
        self, listings: Mapping[str, Listing], test_size: int | float | None, split_seed: int
    ) -> dict[str, Listing]:
        """Settle which images train, validate and test, where the data does not have all three."""
        arranged = {split: listings[split] for split in SPLITS if listings.get(split)}
        if "test" not in arranged and "val" in arranged:
            arranged["test"] = arranged.pop("val")
            self.notes.append(f"{self.name} has no test images: val is the test set.")
        if "test" in arranged:
            if test_size is not None:
                self.notes.append(f"data.test_size has no effect: {self.name} has its own test images.")
            return arranged
        train = arranged["train"]
        labels = np.array([self.classes.index(label) for _, label in train])
        size = TEST_SHARE if test_size is None else test_size
        count = split_count(size, len(train), "data.test_size")
        if count == 0:
            raise UserError(f"data.test_size=0, but {self.name} has no test images: some must be split off.")
        rest, part = stratified_split(labels, count, derive(split_seed, "test"), "data.test_size")
        return {"train": [train[i] for i in rest], "test": [train[i] for i in part]}


class ImageFolder(Files):
    """A folder with ``train/<class>/*`` and ``test/<class>/*``, or with class folders alone.

    ``val/<class>/*`` beside both is the validation set; in place of ``test`` it is the test set.
    Class folders alone are split by ``test_size``. Hidden files, files that are no images and files
    beside the class folders are left out. The other arguments are those of ``Files``.

    Args:
        root: the folder.
    """

    def __init__(self, *, root: Path, **options: Any) -> None:
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            hint = " A list of images is read with data=image_list." if root.suffix == ".csv" else ""
            raise UserError(f"data.root={root} should be a folder of images, but {what}.{hint}")
        notes: list[str] = []
        if (root / "train").is_dir() and _folders(root / "train"):
            listings = {split: _scan(root / split, notes) for split in SPLITS if (root / split).is_dir()}
            others = [f.name for f in _folders(root) if f.name not in SPLITS]
            if others:
                notes.append(f"{root}: {_few(others)} left out: only {', '.join(SPLITS)} are read.")
        elif any((root / split).is_dir() and _folders(root / split) for split in ("val", "test")):
            raise UserError(f"{root} has a folder for testing but no train/<class>/ to train on.")
        else:
            listings = {"train": _scan(root, notes)}
        name = root.resolve().name
        super().__init__(name=name, root=root, listed=root, listings=listings, notes=notes, **options)


class ImageList(Files):
    """A CSV file with the columns ``path``, ``label`` and perhaps ``split`` (train, val, test).

    Paths are relative to the folder of the file. Without ``split`` the images are split by
    ``test_size``. The other arguments are those of ``Files``.

    Args:
        root: the file.
    """

    def __init__(self, *, root: Path, **options: Any) -> None:
        if not root.is_file():
            what = "is a folder" if root.is_dir() else "does not exist"
            hint = " Folders are read with data=image_folder." if root.is_dir() else ""
            raise UserError(f"data.root={root} should be a CSV file, but {what}.{hint}")
        listings = _read_list(root)
        super().__init__(
            name=root.stem, root=root.parent, listed=root, listings=listings, notes=[], **options
        )


def _scan(folder: Path, notes: list[str]) -> Listing:
    """List the images in the class folders of ``folder``, in a fixed order."""
    classes = _folders(folder)
    if not classes:
        raise UserError(
            f"{folder} has no class folders. Expected {folder}/<class>/<image>, or "
            "train/<class>/<image> and "
            "test/<class>/<image>."
        )
    endings = _endings()
    listing: Listing = []
    others: list[str] = []
    for directory in classes:
        with os.scandir(directory) as entries:  # which says without a look at each file that it is one
            names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
        images = [name for name in names if os.path.splitext(name)[1].lower() in endings]
        others += [str(directory / n) for n in names if os.path.splitext(n)[1].lower() not in endings]
        if not images:
            inner = _folders(directory)
            hint = f" It holds folders ({_few([f.name for f in inner])})." if inner else ""
            raise UserError(
                f"The class folder {directory} holds no images.{hint} Expected image files in it; "
                "remove it if it is not a class."
            )
        listing += [(directory / name, directory.name) for name in images]
    if others:
        notes.append(f"{folder}: {len(others)} files that are no images left out ({_few(others)}).")
    return listing


def _read_list(file: Path) -> dict[str, Listing]:
    """Read the rows of a CSV file and check them all before any complaint."""
    listings: dict[str, Listing] = {}
    problems: list[str] = []
    seen: dict[Path, str] = {}
    try:
        # utf-8-sig: spreadsheet programs begin a CSV file with a byte-order mark.
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            columns = [c.strip() for c in reader.fieldnames or []]
            reader.fieldnames = columns
            for needed in ("path", "label"):
                if needed not in columns:
                    raise UserError(
                        f"{file} has no column '{needed}'{suggest(needed, columns)}. Expected a first line "
                        f"'path,label' or 'path,label,split', found '{','.join(columns)}'."
                    )
            for row in reader:
                path, label = (row["path"] or "").strip(), (row["label"] or "").strip()
                split = (row.get("split") or "").strip() if "split" in columns else "train"
                place = f"line {reader.line_num}"
                if not path or not label:
                    problems.append(f"{place}: no {'path' if not path else 'label'}")
                elif split not in SPLITS:
                    problems.append(
                        f"{place}: split '{split}' is none of {', '.join(SPLITS)}{suggest(split, SPLITS)}"
                    )
                elif not (full := file.parent / path).is_file():
                    problems.append(f"{place}: {full} does not exist")
                elif full in seen:
                    problems.append(f"{place}: {path} is listed already, at {seen[full]}")
                else:
                    seen[full] = place
                    listings.setdefault(split, []).append((full, label))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a CSV file in UTF-8: {error}.") from error
    if problems:
        raise UserError(_list(f"{file}: {len(problems)} lines cannot be used:", problems))
    if not listings.get("train"):
        raise UserError(f"{file} lists no images to train on.")
    return listings


def _rename(
    listings: Mapping[str, Listing], labels: Mapping[Any, Any] | None, name: str
) -> dict[str, Listing]:
    """Apply ``data.labels``. Keys and values become text: YAML reads a class 7 as a number."""
    if not labels:
        return dict(listings)
    if not isinstance(labels, Mapping):
        raise UserError(f"data.labels must map names to names, as {{cat: pet}}, but is {labels!r}.")
    new = {str(key): str(value) for key, value in labels.items()}
    known = {label for listing in listings.values() for _, label in listing}
    for key in new:
        if key not in known:
            raise UserError(
                f"data.labels: '{key}' is not a class of {name}{suggest(key, known)}. "
                f"Its classes: {_few(_natural_order(known))}."
            )
    return {
        split: [(path, new.get(label, label)) for path, label in listing]
        for split, listing in listings.items()
    }


def _natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort class names: by number if all of them are numbers, so that 10 comes after 9."""
    names = list(names)
    if all(n.isascii() and n.isdigit() for n in names):
        return tuple(sorted(names, key=lambda n: (int(n), n)))
    return tuple(sorted(names))


def _folders(folder: Path) -> list[Path]:
    # Names with a leading dot or two underscores are droppings of other programs (.git, __MACOSX); a
    # tagged folder is our own cache, which lies in data/ by default, perhaps beside the classes.
    return sorted(
        f
        for f in folder.iterdir()
        if f.is_dir() and not f.name.startswith((".", "__")) and not (f / TAG).exists()
    )


def _endings() -> set[str]:
    """Return the file endings that PIL can read, in lower case."""
    return {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _list(title: str, problems: Sequence[str]) -> str:
    lines = [title, *(f"  {p}" for p in problems[:SHOWN])]
    if len(problems) > SHOWN:
        lines.append(f"  … and {len(problems) - SHOWN} more")
    return "\n".join(lines)
