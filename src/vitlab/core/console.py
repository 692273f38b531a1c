"""The terminal and train.log, as one place to print to. Torch-free."""

from typing import Any

from rich.console import Console

from vitlab.core.run_folder import RunFolder

WIDTH = 120  # of lines in files


def say(text: str) -> None:
    print(text, flush=True)  # another process may write to the same screen, or read this line by line


def duration(seconds: float) -> str:
    """Return ``"1:02"`` or ``"2:03:04"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Screen:
    """Print to the terminal and, the same lines, to ``train.log``.

    Args:
        quiet: of ranks other than 0: print nothing anywhere.
    """

    def __init__(self, folder: RunFolder, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console = Console(quiet=quiet, highlight=False, soft_wrap=True, width=WIDTH)
        self._file = None if quiet else open(folder.log, "a", encoding="utf-8")  # noqa: SIM115
        self._log = Console(file=self._file, width=WIDTH, quiet=quiet, highlight=False, soft_wrap=True)

    def print(self, *objects: Any) -> None:
        self.console.print(*objects)
        self.log(*objects)

    def log(self, *objects: Any) -> None:
        self._log.print(*objects, markup=False)
        if self._file is not None:
            self._file.flush()
