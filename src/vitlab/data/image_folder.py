"""A user's own images: class folders, or a CSV file that lists them."""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitlab.core.data_protocol import DEFAULT_TEST_SIZE
from vitlab.core.errors import UserError
from vitlab.core.seeding import derive_seed
from vitlab.core.suggest import suggest
from vitlab.data.cache import TAG, find_broken, load_cached
from vitlab.data.decode import MAX_LISTED, ImageFiles, Images, list_problems
from vitlab.data.split import split_size, stratified_split

SPLITS = ("train", "val", "test")
MAX_SKIPPED = 0.01  # of the files of a split, that ``data.on_error=skip`` leaves out; one in any case

Listing = list[tuple[Path, str]]  # (file, class name); never empty


class FileDataset:
    """Labelled image files in splits.

    Args:
        kind: ``image_folder`` or ``image_list``.
        root: the folder, or the CSV file.
        shape, channels: of the images, see `Dataset`.
        labels, test_size, split_seed, num_workers, cache, on_error: as in ``conf/data/image_folder.yaml``.

    Raises:
        UserError: the images cannot be listed, too many cannot be read, or the splits do not fit together.

    Attributes:
        skipped: the files that were left out, as ``path: reason``.
    """

    on_disk = True

    def __init__(
        self,
        kind: str,
        *,
        root: Path,
        shape: tuple[int, int],
        channels: int,
        labels: Mapping[Any, Any] | None,
        test_size: int | float | None,
        split_seed: int,
        num_workers: int | None,
        cache: Path | None,
        on_error: str,
    ) -> None:
        self.root = root
        self.shape = shape
        self.channels = channels
        self.num_workers = num_workers
        self.cache = cache
        self.notes: list[str] = []
        self.skipped: list[str] = []
        self.name = root.stem if kind == "image_list" else os.path.basename(os.path.realpath(root))
        try:
            listings = _read_list(root) if kind == "image_list" else _scan_folder(root, self.notes)
        except OSError as error:
            raise UserError(
                f"data.root={root} cannot be read: {error.strerror}: {error.filename}."
            ) from error
        if labels:
            listings = self._rename(listings, labels)
        if on_error == "skip":
            listings = self._without_broken(listings)
        self.classes = _natural_order({label for _, label in listings["train"]})
        self._check_labels(listings)
        self._split_by = ""  # what decides which images a split has, for the name of its cache
        self._listings = self._assign_splits(listings, test_size, split_seed)
        self.sizes = {split: len(listing) for split, listing in self._listings.items()}

    def load(self, split: str) -> tuple[Images, np.ndarray]:
        """Return a split, from its cache or as files; raises UserError for broken ones if a cache is made."""
        listing = self._listings[split]
        labels = self._number(listing)
        files = ImageFiles(self.files(split), self.shape, self.channels, self.num_workers)
        if self.cache is None:
            return files, labels
        return load_cached(files, self.cache, self.root, split + self._split_by, self.notes), labels

    def files(self, split: str) -> list[Path]:
        """Return the files of a split, in the order of its images."""
        return [path for path, _ in self._listings[split]]

    def fingerprint(self) -> str:
        """Return a hash of which images each split has, in their order and with their classes.

        Of their names within the data set's folder, which may move; not of their pixels.
        """
        folder = f"{self.root if self.root.is_dir() else self.root.parent}{os.sep}"
        digest = hashlib.sha256()
        for split, listing in self._listings.items():
            for path, label in listing:
                digest.update(repr((split, str(path).removeprefix(folder), label)).encode())
        return digest.hexdigest()

    def _number(self, listing: Listing) -> np.ndarray:
        """Return int64 (N,), the number of each file's class."""
        index = {label: i for i, label in enumerate(self.classes)}
        return np.array([index[label] for _, label in listing], dtype=np.int64)

    def _rename(self, listings: Mapping[str, Listing], labels: Mapping[Any, Any]) -> dict[str, Listing]:
        """Apply ``data.labels``. Keys and values become text: YAML reads a class 7 as a number."""
        new = {str(key): str(value) for key, value in labels.items()}
        known = {label for listing in listings.values() for _, label in listing}
        for key in new:
            if key not in known:
                raise UserError(
                    f"data.labels: '{key}' is not a class of {self.name}{suggest(key, known)}. "
                    f"Its classes: {_shorten(_natural_order(known))}."
                )
        return {
            split: [(path, new.get(label, label)) for path, label in listing]
            for split, listing in listings.items()
        }

    def _without_broken(self, listings: Mapping[str, Listing]) -> dict[str, Listing]:
        """Return ``listings`` as they would be if the files that cannot be read had never been there."""
        paths = [path for listing in listings.values() for path, _ in listing]
        files = ImageFiles(paths, self.shape, self.channels, self.num_workers)
        broken = {paths[row]: text for row, text in find_broken(files, self.cache, self.root).items()}
        kept = {}
        for split, listing in listings.items():
            kept[split] = [(path, label) for path, label in listing if path not in broken]
            lost = [broken[path] for path, _ in listing if path in broken]
            gone = {label for _, label in listing} - {label for _, label in kept[split]}
            if gone or len(lost) > max(1, MAX_SKIPPED * len(listing)):
                title = f"{self.name}: {len(lost)} of {len(listing)} {split} files cannot be read as images"
                limit = f"which leaves none of {_shorten(sorted(gone))}" if gone else "too many to leave out"
                raise UserError(f"{list_problems(f'{title}, {limit}:', lost)}\nReplace or remove them.")
            if lost:
                title = f"left out {len(lost)} of {len(listing)} {split} files that cannot be read as images:"
                self.notes.append(list_problems(title, lost))
        self.skipped = [*broken.values()]
        return kept

    def _check_labels(self, listings: Mapping[str, Listing]) -> None:
        for label in self.classes:
            try:
                label.encode()
            except UnicodeEncodeError:  # TensorBoard and YAML take no other
                raise UserError(f"{self.name}: the name of class {label!a} is not in UTF-8.") from None
        for split, listing in listings.items():
            counts = Counter(label for _, label in listing)
            for label, number in counts.most_common():
                if label not in self.classes:
                    raise UserError(
                        f"{self.name}: class '{label}' has {number} images in {split} and none in train"
                        f"{suggest(label, self.classes)}. Classes to train on: {_shorten(self.classes)}."
                    )
            if absent := sorted(set(self.classes) - set(counts)):
                self.notes.append(f"{self.name}: {split} has no images of {_shorten(absent)}.")

    def _assign_splits(
        self, listings: Mapping[str, Listing], test_size: int | float | None, split_seed: int
    ) -> dict[str, Listing]:
        """Decide which images train, validate and test, where the data does not have all three."""
        arranged = {split: listings[split] for split in SPLITS if split in listings}
        if "test" not in arranged and "val" in arranged:
            arranged["test"] = arranged.pop("val")
            self.notes.append(f"{self.name} has no test images: val is the test set.")
        if "test" in arranged:
            if test_size is not None:
                self.notes.append(f"data.test_size has no effect: {self.name} has its own test images.")
            return arranged
        train = arranged["train"]
        count = split_size(test_size, len(train), "data.test_size", DEFAULT_TEST_SIZE)
        if count == 0:
            raise UserError(f"data.test_size=0, but {self.name} has no test images: some must be split off.")
        self._split_by = f"_{test_size or DEFAULT_TEST_SIZE}_{split_seed}"
        seed = derive_seed(split_seed, "test")
        rest, part = stratified_split(self._number(train), count, seed, "data.test_size")
        return {"train": [train[i] for i in rest], "test": [train[i] for i in part]}


def _scan_folder(root: Path, notes: list[str]) -> dict[str, Listing]:
    """List a folder with ``train/<class>/*`` and ``test/<class>/*``, or with class folders alone.

    ``val/<class>/*`` beside both is the validation set; in place of ``test`` it is the test set. Hidden
    files, files that are not images and files beside the class folders are ignored.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        hint = " A list of images is read with data=image_list." if root.suffix == ".csv" else ""
        raise UserError(f"data.root={root} should be a folder of images, but {what}.{hint}")
    if (root / "train").is_dir() and _folders(root / "train"):
        listings = {split: _scan_classes(root / split, notes) for split in SPLITS if (root / split).is_dir()}
        if others := [name for name in _folders(root) if name not in SPLITS]:
            notes.append(f"{root}: ignored {_shorten(others)}: only {', '.join(SPLITS)} are read.")
        return listings
    if any((root / split).is_dir() and _folders(root / split) for split in ("val", "test")):
        raise UserError(f"{root} has a folder for testing but no train/<class>/ to train on.")
    return {"train": _scan_classes(root, notes)}


def _scan_classes(folder: Path, notes: list[str]) -> Listing:
    """List the images in the class folders of ``folder``, in a fixed order."""
    classes = _folders(folder)
    if not classes:
        raise UserError(
            f"{folder} has no class folders. Expected {folder}/<class>/<image>, or train/<class>/<image> "
            "and test/<class>/<image>."
        )
    readable = tuple(end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN)
    listing: Listing = []
    others: list[str] = []
    for label in classes:
        directory = folder / label
        with os.scandir(directory) as entries:  # knows which are files without a stat of each
            names = sorted(e.name for e in entries if not e.name.startswith(".") and not _is_folder(e))
        images = [name for name in names if name.lower().endswith(readable)]
        if not images:
            inner = _folders(directory)
            hint = f" It holds folders ({_shorten(inner)})." if inner else ""
            raise UserError(
                f"The class folder {directory} holds no images.{hint} Expected image files in it; "
                "remove it if it is not a class."
            )
        listing += [(directory / name, label) for name in images]
        others += [str(directory / name) for name in names if not name.lower().endswith(readable)]
    if others:
        notes.append(f"{folder}: ignored {len(others)} files that are not images ({_shorten(others)}).")
    return listing


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    return (
        os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()
    )  # a link may be to nowhere, or a loop


def _folders(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder`` that may be classes, sorted."""
    # Names with a leading dot or two underscores belong to other programs (.git, __MACOSX); a tagged
    # folder is our own cache, which is in data/ by default, perhaps beside the classes.
    return sorted(
        f.name
        for f in folder.iterdir()
        if f.is_dir() and not f.name.startswith((".", "__")) and not os.path.exists(f / TAG)
    )


def _read_list(file: Path) -> dict[str, Listing]:
    """Read a CSV file with the columns ``path``, ``label`` and perhaps ``split`` (train, val, test).

    Paths are relative to the folder of the file. What is wrong with its lines is reported together.
    """
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "there is no such file"
        hint = " Folders are read with data=image_folder." if file.is_dir() else ""
        raise UserError(f"data.root={file} should be a CSV file, but {what}.{hint}")
    listings: dict[str, Listing] = {}
    problems: list[str] = []
    seen: dict[str, int] = {}  # file → line
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
                path, label, split = ((row.get(c) or "").strip() for c in ("path", "label", "split"))
                full = file.parent / path
                place = os.path.normpath(full)
                if not path or not label:
                    problem = f"no {'path' if not path else 'label'}"
                elif "split" in columns and split not in SPLITS:
                    problem = f"split '{split}' is none of {', '.join(SPLITS)}{suggest(split, SPLITS)}"
                elif not os.path.isfile(full):
                    problem = f"no file can be read at {full}"
                elif place in seen:
                    problem = f"{path} is listed already, at line {seen[place]}"
                else:
                    seen[place] = reader.line_num
                    listings.setdefault(split or "train", []).append((full, label))
                    continue
                problems.append(f"line {reader.line_num}: {problem}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a CSV file in UTF-8: {error}.") from error
    if problems:
        raise UserError(list_problems(f"{file}: {len(problems)} lines cannot be used:", problems))
    if "train" not in listings:
        raise UserError(f"{file} lists no images to train on.")
    return listings


def _natural_order(names: Collection[str]) -> tuple[str, ...]:
    """Sort class names: by number if all of them are numbers, so that 10 comes after 9."""
    numbers = all(n.isascii() and n.isdigit() for n in names)
    return tuple(sorted(names, key=lambda n: (int(n) if numbers else 0, n)))


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_LISTED])
    return shown if len(names) <= MAX_LISTED else f"{shown} and {len(names) - MAX_LISTED} more"
