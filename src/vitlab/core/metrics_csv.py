"""metrics.csv: one row an epoch, as it is written and read again."""

import csv
from typing import Any

from vitlab.core.errors import UserError
from vitlab.core.files import csv_text
from vitlab.core.run_folder import RunFolder
from vitlab.core.untrusted import read_whole

# Columns that stand first and in this order; others follow as they come.
COLUMNS = ["epoch", "step", "train/loss", "train/accuracy", "val/loss", "val/accuracy"]


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text, with the columns that people look for first."""
    found = dict.fromkeys(column for row in rows for column in row)
    columns = [c for c in COLUMNS if c in found] + [c for c in found if c not in COLUMNS]
    return csv_text(columns, rows)


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.csv``: epoch and step as int, metrics as float, empty cells left out.

    Raises:
        UserError: it is damaged.
    """
    try:
        rows = csv.DictReader(read_whole(folder.metrics).decode().splitlines(keepends=True))
        found = [
            {k: int(v) if k in ("epoch", "step") else float(v) for k, v in row.items() if v != ""}
            for row in rows
        ]
        if not all("epoch" in row and "step" in row for row in found):
            raise ValueError("a row has no epoch or no step")
        return found
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{folder.metrics} cannot be read ({error}). Mend or delete it: a run goes on without its rows."
        ) from error
