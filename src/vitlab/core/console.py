"""The terminal and train.log, as one place to print to.

What a person typed, or a class or a folder is called, is text: its brackets are no markup of Rich's, and its
control characters reach no terminal. Style comes from Rich's own objects, such as ``Text`` and ``Table``.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from vitlab.core.run_folder import RunFolder

WIDTH = 120  # of lines in files


def printable(text: str) -> str:
    """Return ``text`` with a harmless sign for each control character but line breaks and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def hide_passwords(text: str) -> str:
    """Return ``text`` with three stars for the password of each address, as in ``mysql://me:***@host``."""
    return re.sub(r"(://[^/\s:@]*):\S*@", r"\1:***@", text)


def plain(text: str) -> str:
    """Return ``text`` on one line that every file and terminal can take."""
    return printable(" ".join(text.split()))


def escape_markdown(text: str) -> str:
    """Return ``text`` on one line, in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", plain(text))


def say(text: str) -> None:
    """Print a line at once: another process may write to the same terminal, or read this line by line."""
    with contextlib.suppress(OSError):  # the terminal was closed; what goes on is worth more than the line
        print(printable(text), flush=True)


@contextlib.contextmanager
def printed_as_errors() -> Iterator[None]:
    """Send what is printed meanwhile, by other processes too, to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def duration(seconds: float) -> str:
    """Return ``"1:02"`` or ``"2:03:04"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class PlainConsole(Console):
    """A console that takes every string for text, those in the cells of a table too."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return ``text`` as it is, without markup."""
        return super().render_str(printable(text), **options | {"markup": False, "emoji": False})


def make_console(**options: Any) -> Console:
    """Return a console for what people read; where it is no terminal, its lines have one width everywhere."""
    console = PlainConsole(highlight=False, soft_wrap=True, **options)
    if not console.is_terminal and "width" not in options:
        console.width = WIDTH
    return console


class RunConsole:
    """Print to the terminal and, the same lines, to ``train.log``; ``quiet`` ranks print nothing."""

    def __init__(self, folder: RunFolder, *, quiet: bool = False) -> None:
        self.console = make_console(quiet=quiet)
        file = None if quiet else open(folder.log, "a", encoding="utf-8")  # noqa: SIM115
        self._log = make_console(file=file, width=WIDTH, quiet=quiet)

    def print(self, *objects: Any) -> None:
        """Print to both."""
        with contextlib.suppress(OSError):  # a terminal that was closed; the run has a checkpoint to write
            self.console.print(*objects)
        self.log(*objects)

    def log(self, *objects: Any) -> None:
        """Print to ``train.log`` alone."""
        with contextlib.suppress(OSError):  # a full disk; what matters more will say so
            self._log.print(*objects)
