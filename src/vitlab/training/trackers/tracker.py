"""What every tracker does, and the guard around those that may fail."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from vitlab.core.console import plain
from vitlab.core.summary import SummaryData

# What runs are compared by, in every tracker.
METRICS = ("hp/val_accuracy", "hp/test_accuracy", "hp/parameters", "hp/images_per_second")
LONGEST = 150  # characters of what a tracker says of its failure, and of what caused that


class Tracker(Protocol):
    """One of Lightning's loggers that knows a run's beginning, its pictures and its end.

    Steps are counted from 0, as Lightning counts: a run that resumes at step n logs n and later ones again.
    """

    def begin(self, config: Mapping[str, Any]) -> None:
        """Announce the run with its hyperparameters; a run that resumes goes on where it was."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log values at a step; not every value of a step comes at once, nor every step in its turn."""

    def add_image(self, name: str, pixels: np.ndarray, step: int = 0) -> None:
        """Show a figure, uint8 (H, W, 3), as soon as it is drawn, where the tracker can."""

    def save(self) -> None:
        """Bring what was logged to where it survives a kill; a checkpoint follows."""

    def finalize(self, status: str) -> None:
        """Called by Lightning after training and after the test: ``success``, or ``failed`` before them."""

    def end(self, summary: SummaryData, step: int) -> None:
        """Log the values of ``METRICS`` and all figures; the run has finished."""


def final_values(summary: SummaryData) -> dict[str, float]:
    """Return the values of ``METRICS``; one that was not measured is left out."""
    accuracies = [summary["metrics"].get(f"{split}/accuracy") for split in ("val", "test")]
    values = (*accuracies, summary["model"]["parameters"], summary["train"]["images_per_second"])
    return {name: value for name, value in zip(METRICS, values, strict=True) if value is not None}


def _describe(error: BaseException) -> str:
    """Return what an error says, cut, and what was at the bottom of it."""
    said, chain = plain(str(error)) or type(error).__name__, [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:  # or a circle
        chain.append(cause)
    if len(said) > LONGEST:
        said = f"{said[:LONGEST]} …"
    bottom = plain(str(chain[-1]))[:LONGEST]
    return said if bottom in said else f"{said} ({bottom})"


class Guarded(Logger):
    """A tracker that never ends a run: its first failure becomes a note, and the run goes on without it.

    Args:
        name: for the note.
        make: returns the tracker; importing its library and reaching its server may fail as well.
        say: prints the note.
    """

    def __init__(self, name: str, make: Callable[[], Tracker], say: Callable[[str], object]) -> None:
        super().__init__()
        self._name, self._make, self._say = name, make, say
        self._tracker: Tracker | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return ""

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tracker = None
            self._say(f"note: the run goes on without {self._name}, which failed: {_describe(error)}")

    @rank_zero_only
    def begin(self, config: Mapping[str, Any]) -> None:
        with self._guard():
            self._tracker = self._make()
            self._tracker.begin(config)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._guard():
            if self._tracker:
                self._tracker.log_metrics(metrics, step or 0)

    def log_hyperparams(self, *given: Any, **named: Any) -> None:
        """Do nothing: `begin` has them."""

    @rank_zero_only
    def add_image(self, name: str, pixels: np.ndarray, step: int = 0) -> None:
        with self._guard():
            if self._tracker:
                self._tracker.add_image(name, pixels, step)

    @rank_zero_only
    def save(self) -> None:
        with self._guard():
            if self._tracker:
                self._tracker.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with self._guard():
            if self._tracker:
                self._tracker.finalize(status)

    @rank_zero_only
    def end(self, summary: SummaryData, step: int) -> None:
        with self._guard():
            if self._tracker:
                self._tracker.end(summary, step)
