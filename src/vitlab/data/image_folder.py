"""A user's own images: class folders, or a CSV file that lists them."""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitlab.core.data_protocol import DEFAULT_TEST_SIZE
from vitlab.core.errors import UserError
from vitlab.core.seeding import derive_seed
from vitlab.core.suggest import suggest
from vitlab.data.cache import TAG, load_cached
from vitlab.data.decode import MAX_LISTED, ImageFiles, Images, list_problems
from vitlab.data.split import split_size, stratified_split

SPLITS = ("train", "val", "test")

Listing = list[tuple[Path, str]]  # (file, class name)


class FileDataset:
    """Labelled image files in splits; ``ImageFolder`` and ``ImageList`` find them.

    Args:
        name: for titles.
        listings: the files of each split: "train", or several of "train", "val" and "test".
        shape: (height, width) in pixels that every image is resized to.
        channels: 3 or 1.
        labels: new name for a class, by its name in the data; two classes with one new name are
            merged.
        test_size: count or fraction to split off for testing where the data has no test part; None
            for the default.
        split_seed: of that split.
        num_workers: threads or processes that decode a whole split; None for one a core.
        cache: folder for decoded splits; None for none.
        root: of the data set; the paths in the key of a cache are relative to it.
        listed: what names the files: the folder itself, or a list.
        notes: what the reader of the log should know.

    Raises:
        UserError: there is nothing to train on, or the splits do not fit together.
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
        self._split_by = "" if own_test else f"_{test_size or DEFAULT_TEST_SIZE}_{split_seed}"
        self._listings = self._assign_splits(renamed, test_size, split_seed)
        self.sizes = {split: len(listing) for split, listing in self._listings.items()}

    def load(self, split: str) -> tuple[Images, np.ndarray]:
        """Return a split, from its cache or as files: uint8 (N, C, H, W) and int64 labels (N,).

        Raises:
            UserError: files are broken, where a cache is made from them.
        """
        listing = self._listings[split]
        index = {label: i for i, label in enumerate(self.classes)}
        labels = np.array([index[label] for _, label in listing], dtype=np.int64)
        files = ImageFiles([path for path, _ in listing], self.shape, self.channels, self.num_workers)
        if self.cache is None:
            return files, labels
        images = load_cached(
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
                    f"{suggest(label, self.classes)}. Classes to train on: {_shorten(self.classes)}."
                )
            absent = sorted(set(self.classes) - {label for _, label in listing})
            if absent:
                self.notes.append(f"{self.name}: {split} has no images of {_shorten(absent)}.")

    def _assign_splits(
        self, listings: Mapping[str, Listing], test_size: int | float | None, split_seed: int
    ) -> dict[str, Listing]:
        """Decide which images train, validate and test, where the data does not have all three."""
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
        count = split_size(test_size, len(train), "data.test_size", DEFAULT_TEST_SIZE)
        if count == 0:
            raise UserError(f"data.test_size=0, but {self.name} has no test images: some must be split off.")
        rest, part = stratified_split(labels, count, derive_seed(split_seed, "test"), "data.test_size")
        return {"train": [train[i] for i in rest], "test": [train[i] for i in part]}


class ImageFolder(FileDataset):
    """A folder with ``train/<class>/*`` and ``test/<class>/*``, or with class folders alone.

    ``val/<class>/*`` beside both is the validation set; in place of ``test`` it is the test set.
    Class folders alone are split by ``test_size``. Hidden files, files that are not images and files
    beside the class folders are ignored.

    Args:
        root: the folder.
        **options: as for `FileDataset`.

    Raises:
        UserError: as for `FileDataset`, or the folder is not arranged like this.
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
                notes.append(f"{root}: ignored {_shorten(others)}: only {', '.join(SPLITS)} are read.")
        elif any((root / split).is_dir() and _folders(root / split) for split in ("val", "test")):
            raise UserError(f"{root} has a folder for testing but no train/<class>/ to train on.")
        else:
            listings = {"train": _scan(root, notes)}
        name = root.resolve().name
        super().__init__(name=name, root=root, listed=root, listings=listings, notes=notes, **options)


class ImageList(FileDataset):
    """A CSV file with the columns ``path``, ``label`` and perhaps ``split`` (train, val, test).

    Paths are relative to the folder of the file. Without ``split`` the images are split by
    ``test_size``.

    Args:
        root: the file.
        **options: as for `FileDataset`.

    Raises:
        UserError: as for `FileDataset`, or lines of the file cannot be used.
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
            f"{folder} has no class folders. Expected {folder}/<class>/<image>, or train/<class>/<image> "
            "and test/<class>/<image>."
        )
    endings = _endings()
    listing: Listing = []
    others: list[str] = []
    for directory in classes:
        with os.scandir(directory) as entries:  # knows which are files without a stat of each
            names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
        images = [name for name in names if os.path.splitext(name)[1].lower() in endings]
        others += [str(directory / n) for n in names if os.path.splitext(n)[1].lower() not in endings]
        if not images:
            inner = _folders(directory)
            hint = f" It holds folders ({_shorten([f.name for f in inner])})." if inner else ""
            raise UserError(
                f"The class folder {directory} holds no images.{hint} Expected image files in it; "
                "remove it if it is not a class."
            )
        listing += [(directory / name, directory.name) for name in images]
    if others:
        notes.append(f"{folder}: ignored {len(others)} files that are not images ({_shorten(others)}).")
    return listing


def _read_list(file: Path) -> dict[str, Listing]:
    """Read the rows of a CSV file; what is wrong with them is reported together."""
    listings: dict[str, Listing] = {}
    problems: list[str] = []
    seen: dict[Path, str] = {}  # file → line
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
                line = f"line {reader.line_num}"
                if not path or not label:
                    problems.append(f"{line}: no {'path' if not path else 'label'}")
                elif split not in SPLITS:
                    problems.append(
                        f"{line}: split '{split}' is none of {', '.join(SPLITS)}{suggest(split, SPLITS)}"
                    )
                elif not (full := file.parent / path).is_file():
                    problems.append(f"{line}: {full} does not exist")
                elif full in seen:
                    problems.append(f"{line}: {path} is listed already, at {seen[full]}")
                else:
                    seen[full] = line
                    listings.setdefault(split, []).append((full, label))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a CSV file in UTF-8: {error}.") from error
    if problems:
        raise UserError(list_problems(f"{file}: {len(problems)} lines cannot be used:", problems))
    if not listings.get("train"):
        raise UserError(f"{file} lists no images to train on.")
    return listings


def _rename(
    listings: Mapping[str, Listing], labels: Mapping[Any, Any] | None, name: str
) -> dict[str, Listing]:
    """Apply ``data.labels``. Keys and values become text: YAML reads a class 7 as a number."""
    if not labels:
        return dict(listings)
    new = {str(key): str(value) for key, value in labels.items()}
    known = {label for listing in listings.values() for _, label in listing}
    for key in new:
        if key not in known:
            raise UserError(
                f"data.labels: '{key}' is not a class of {name}{suggest(key, known)}. "
                f"Its classes: {_shorten(_natural_order(known))}."
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
    # Names with a leading dot or two underscores belong to other programs (.git, __MACOSX); a tagged
    # folder is our own cache, which is in data/ by default, perhaps beside the classes.
    return sorted(
        f
        for f in folder.iterdir()
        if f.is_dir() and not f.name.startswith((".", "__")) and not (f / TAG).exists()
    )


def _endings() -> set[str]:
    """Return the file endings that PIL can read, in lower case."""
    return {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_LISTED])
    return shown if len(names) <= MAX_LISTED else f"{shown} and {len(names) - MAX_LISTED} more"
