"""Refuse what cannot be measured, before anything heavy is imported."""

from collections.abc import Mapping
from typing import Any

from vitlab.config.types import show
from vitlab.core.errors import UserError

PRECISIONS = ("auto", "32-true", "32", 32, "bf16-mixed", "16-mixed")
# A measurement is some steps of one process: what these say about the length of a run has no meaning there.
FIXED: dict[str, Any] = {
    "accumulate_grad_batches": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "fast_dev_run": False,
    "overfit_batches": 0,
    "limit_train_batches": None,
    "min_epochs": None,
    "min_steps": None,
    "max_time": None,
    "profiler": None,
    "detect_anomaly": False,
}


def check_benchmark(config: Mapping[str, Any]) -> None:
    """Refuse a resolved config that ``benchmark.py`` cannot measure.

    Raises:
        UserError: an option that a measurement, or the plain loop to compare with, cannot follow.
    """
    for key, value in FIXED.items():
        if (found := config["trainer"][key]) != value:
            raise UserError(
                f"trainer.{key}={show(found)}: benchmark.py measures plain steps of one process. Leave it at "
                f"{show(value)}."
            )
    if config["callbacks"]["ema"]["decay"] is not None:
        raise UserError(
            "callbacks.ema.decay: the plain loop to compare with does not average weights. Leave it at null."
        )
    if "teacher" in config["task"]:
        raise UserError("task=distill: the plain loop to compare with has no teacher. Use task=classify.")
    if (found := config["trainer"]["precision"]) not in PRECISIONS:
        raise UserError(
            f"trainer.precision={found}: the plain loop to compare with knows 32-true, bf16-mixed and "
            "16-mixed. Choose one of them, or auto."
        )
