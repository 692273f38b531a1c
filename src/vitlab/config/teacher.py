"""Where the weights of ``task=distill``'s teacher are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitlab.core.errors import UserError
from vitlab.core.run_folder import find_checkpoint

TIMM = "timm/"  # what the name of a network of timm's begins with, where a run is named otherwise


def teacher_file(task: Mapping[str, Any]) -> Path:
    """Return the weights of the teacher that a ``task`` node names: of a run, or of timm's network.

    Raises:
        UserError: they are not there.
    """
    if not task["teacher"].startswith(TIMM):
        return find_checkpoint(task["teacher"], "task.teacher")
    file = Path(task["teacher_checkpoint"])
    if not file.is_file():
        raise UserError(f"task.teacher_checkpoint={file}: there is no such file.")
    return file
