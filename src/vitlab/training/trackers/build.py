"""The trackers that a run is configured with."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

from lightning.pytorch.loggers import Logger

from vitlab.core.run_folder import RunFolder
from vitlab.training.trackers.step_table import StepTable
from vitlab.training.trackers.tensorboard import TensorBoardTracker
from vitlab.training.trackers.tracker import Guarded, Tracker


def build_trackers(
    folder: RunFolder, config: Mapping[str, Any], resumed_at: int | None, say: Callable[[str], object]
) -> list[Tracker]:
    """Return what ``config.logger`` asks for; what lies in the run's folder may end the run, the rest not.

    Args:
        resumed_at: the optimizer step; None for a run that starts.
        say: prints a note.
    """
    chosen = {name: options for name, options in config["logger"].items() if options}
    trackers: list[Logger] = []
    if "tensorboard" in chosen:
        trackers.append(TensorBoardTracker(folder, resumed_at))
    if chosen.keys() - {"tensorboard"}:
        # First: what the others are told is on the disk already.
        trackers.append(table := StepTable(folder, resumed_at))
    for name, shown, make in (("mlflow", "MLflow", _make_mlflow), ("wandb", "W&B", _make_wandb)):
        if name in chosen:
            trackers.append(Guarded(shown, functools.partial(make, folder, table, config, chosen[name]), say))
    return cast(list[Tracker], trackers)


def _make_mlflow(
    folder: RunFolder, table: StepTable, config: Mapping[str, Any], options: Mapping[str, Any]
) -> Tracker:
    from vitlab.training.trackers.mlflow import MLflowTracker  # an extra, which may not be installed

    return MLflowTracker(folder, table, config, **options)


def _make_wandb(
    folder: RunFolder, table: StepTable, config: Mapping[str, Any], options: Mapping[str, Any]
) -> Tracker:
    from vitlab.training.trackers.wandb import WandbTracker  # an extra, which may not be installed

    return WandbTracker(folder, table, config, **options)
