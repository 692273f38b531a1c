"""steps.csv: all that is logged, a row a step."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from vitlab.core.claim import end_if_lost
from vitlab.core.errors import UserError
from vitlab.core.files import csv_text, write_atomic
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import SummaryData
from vitlab.core.untrusted import read_whole
from vitlab.training.trackers.tracker import final_values

Entry = tuple[int, Mapping[str, float]]  # step, values by name


class StepTable(Logger):
    """Keep what is logged in ``steps.csv``, which is rewritten whole and atomically before each checkpoint.

    Lightning's CSVLogger deletes its file where a run resumes. This one drops what is repeated, and so is
    exactly what belongs to the checkpoint: other trackers are told from it what they lack.

    Args:
        resumed_at: the optimizer step; None for a run that starts.

    Attributes:
        entries: in the order in which they were logged; those of before a resume by step.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, folder: RunFolder, resumed_at: int | None) -> None:
        super().__init__()
        self.path = folder.steps
        self.entries: list[Entry] = []
        if resumed_at is not None:
            self.entries = [entry for entry in self._read() if entry[0] < resumed_at]

    @property
    def name(self) -> str:
        return "steps.csv"

    @property
    def version(self) -> str:
        return ""

    def begin(self, config: Mapping[str, Any]) -> None:
        """Do nothing: config.yaml lies beside the file."""

    def log_hyperparams(self, *given: Any, **named: Any) -> None:
        """Do nothing, as `begin`."""

    def add_image(self, name: str, pixels: np.ndarray, step: int = 0) -> None:
        """Do nothing: figures/ has it."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        epoch = values.pop("epoch", None)
        if epoch is not None and not any(name.startswith("test/") for name in values):
            values["epoch"] = epoch + 1  # Lightning counts from 0; the screen and metrics.csv from 1
        self.entries.append((step or 0, values))

    @rank_zero_only
    def save(self) -> None:
        end_if_lost(self.path.parent)
        rows = [{"step": step, **values} for step, values in by_step(self.entries)]
        write_atomic(
            self.path, csv_text(list(dict.fromkeys(name for row in rows for name in row)), rows).encode()
        )

    def finalize(self, status: str) -> None:
        self.save()

    def end(self, summary: SummaryData, step: int) -> None:
        """Add the values that runs are compared by."""
        self.log_metrics(final_values(summary), step)
        self.save()

    def _read(self) -> Sequence[Entry]:
        try:
            rows = csv.DictReader(read_whole(self.path).decode().splitlines(keepends=True))
            return [
                (int(row.pop("step")), {name: float(value) for name, value in row.items() if value != ""})
                for row in rows
            ]
        except FileNotFoundError:  # the tracker that needs it was added since
            return []
        except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
            raise UserError(
                f"{self.path} cannot be read ({error}). Mend or delete it: a run goes on without its rows."
            ) from error


def by_step(entries: Iterable[Entry]) -> list[Entry]:
    """Return one entry a step, in their order."""
    merged: dict[int, dict[str, float]] = {}
    for step, values in entries:
        merged.setdefault(step, {}).update(values)
    return sorted(merged.items())
