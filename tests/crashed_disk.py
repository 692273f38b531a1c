"""A disk as it may be found after a crash.

The abstract persistence model of Pillai et al., OSDI 2014, "All File Systems Are Not Created Equal": what a
file was given since its last fsync is there, in part, as zeros or not at all; of what a folder was given
since its last fsync, the first so many changes are there.
"""

import os
import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What is lost, and what a disk kept of what was not synced, of names and of data. A disk that two kinds of
# loss lead to is counted under the first.
LOSSES = {
    "all that was not synced": ("none", "none"),
    "names, not data": ("none", "all"),
    "data, not names": ("all", "none"),
    "data reads as zeros": ("all", "zeros"),
    "data is torn": ("all", "torn"),
    "by lot": ("lot", "lot"),
    "nothing": ("all", "all"),
}
FOLDER = -1  # in place of a file's number
State = dict[str, bytes | None]  # path → content, None for a folder


def data_of(argument: str) -> bytes:
    return bytes.fromhex(argument.strip('"').replace("\\x", ""))


def path_of(argument: str) -> str:
    """Return the path in an argument: a string, or what strace says of a descriptor."""
    inside = argument[argument.index("<") + 1 : argument.rindex(">")] if "<" in argument else argument
    inside = inside.strip('"')
    return data_of(inside).decode() if inside.startswith("\\x") else inside


@dataclass
class Kept:
    """What a disk has for certain of one file or one folder, and what it may have lost."""

    certain: Any
    pending: list[Any] = field(default_factory=list)


def change(content: bytes, write: tuple[int, bytes | None]) -> bytes:
    """Return a file's content after a write at a place, or after it was cut there (None)."""
    at, data = write
    if data is None:
        return content[:at].ljust(at, b"\0")
    return content[:at].ljust(at, b"\0") + data + content[at + len(data) :]


class Disk:
    """A file system below ``root``, as it may be found if the power goes after the calls so far."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.names: dict[str, int] = {}  # as the processes see them
        self.sizes: dict[int, int] = {}
        self.files: dict[int, Kept] = {}
        self.folders: dict[str, Kept] = defaultdict(lambda: Kept({}))
        self.open: dict[tuple[str, str], tuple[int, bool, int]] = {}  # number, appends, place

    def apply(self, name: str, arguments: list[str], result: int) -> str | None:
        """Take a call; return what was synced, or None."""
        first = path_of(arguments[0])
        if name not in ("openat", "unlinkat") and not self._holds(first):
            return None  # the path was in what was printed
        match name:
            case "openat":
                self._open(path_of(arguments[1]), arguments[2], f"{result}")
            case "write" | "pwrite64":
                data = data_of(arguments[1])[:result]
                self._write(arguments[0], data, int(arguments[3]) if name == "pwrite64" else None)
            case "lseek":
                key = self._key(arguments[0])
                if key in self.open:
                    self.open[key] = (*self.open[key][:2], result)
            case "ftruncate":
                number = self.open[self._key(arguments[0])][0]
                self._cut(number, int(arguments[1]))
            case "fsync" | "fdatasync":
                self._sync(first)
                return first
            case "mkdir":
                self._name({first.rstrip("/"): FOLDER})
            case "unlink" | "rmdir":
                self._name({first: None})
            case "unlinkat":
                self._name({os.path.join(first, path_of(arguments[1])): None})
            case "rename" | "link":
                second = path_of(arguments[1])
                gone = {first: None} if name == "rename" else {}
                self._name({second: self.names[first]} | gone)
            case _:
                raise NotImplementedError(f"{name}{arguments}")
        return None

    def _holds(self, path: str) -> bool:
        return f"{path}/".startswith(f"{self.root}/")

    def _key(self, descriptor: str) -> tuple[str, str]:
        return descriptor.partition("<")[0], path_of(descriptor)

    def _open(self, path: str, flags: str, descriptor: str) -> None:
        if not self._holds(path) or "O_DIRECTORY" in flags:
            return
        if path not in self.names and "O_CREAT" in flags:
            number = len(self.files)
            self.files[number], self.sizes[number] = Kept(b""), 0
            self._name({path: number})
        number = self.names.get(path, FOLDER)
        if number == FOLDER:
            return
        if "O_TRUNC" in flags and self.sizes[number]:
            self._cut(number, 0)
        self.open[descriptor, path] = number, "O_APPEND" in flags, 0

    def _cut(self, number: int, size: int) -> None:
        self.files[number].pending.append((size, None))
        self.sizes[number] = size

    def _write(self, descriptor: str, data: bytes, at: int | None) -> None:
        number, appends, place = self.open[self._key(descriptor)]
        start = at if at is not None else self.sizes[number] if appends else place
        self.files[number].pending.append((start, data))
        self.sizes[number] = max(self.sizes[number], start + len(data))
        if at is None:
            self.open[self._key(descriptor)] = number, appends, start + len(data)

    def _name(self, changes: dict[str, int | None]) -> None:
        """Give and take names, all in one folder, at once."""
        (folder,) = {os.path.dirname(path) for path in changes}
        self.folders[folder].pending.append(changes)
        for path, number in changes.items():
            if number is None:
                del self.names[path]
            else:
                self.names[path] = number

    def _sync(self, path: str) -> None:
        number = self.names.get(path, FOLDER)
        kept = self.folders[path] if number == FOLDER else self.files[number]
        for step in kept.pending:
            kept.certain = kept.certain | step if number == FOLDER else change(kept.certain, step)
        kept.pending = []

    def after(self, loss: str, lot: random.Random) -> State:
        """Return what is found when there is power again."""
        of_names, of_data = LOSSES[loss]
        names: dict[str, int | None] = {}
        for kept in self.folders.values():
            number = {"all": len(kept.pending), "none": 0, "lot": lot.randint(0, len(kept.pending))}[of_names]
            for changes in [kept.certain, *kept.pending[:number]]:
                names |= changes
        state: State = {}
        found: dict[int, bytes] = {}  # two names of one file have one content
        for path in sorted(names):
            number = names[path]
            parent = os.path.dirname(path)
            if number is not None and (parent == self.root or parent in state):
                if number >= 0 and number not in found:
                    found[number] = self._content(self.files[number], of_data, lot)
                state[path] = None if number == FOLDER else found[number]
        return state

    def _content(self, kept: Kept, kind: str, lot: random.Random) -> bytes:
        if kind == "lot":
            kind = lot.choice(["all", "none", "zeros", "torn"])
        if not kept.pending or kind == "none":
            return kept.certain
        content = kept.certain
        for write in kept.pending:
            if kind == "zeros" and write[1] is not None:
                write = write[0], bytes(len(write[1]))
            content = change(content, write)
        if kind == "torn":
            content = content[: lot.randint(min(len(kept.certain), len(content)), len(content))]
        return content
