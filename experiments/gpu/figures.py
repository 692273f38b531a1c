"""From what a measurement has left, finished or not, to its figures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import SummaryData
from vitlab.core.untrusted import read_json

TARGETS = (0.90, 0.93, 0.95)  # accuracy on the hold-out


def read_training(folder: Path, begun: float) -> dict[str, Any]:
    """Return when the hold-out reached each of ``TARGETS``, and what the whole run took and reached."""
    run = RunFolder(folder / "run")
    summary, train = describe_run(run)
    events = EventAccumulator(str(run.path))
    events.Reload()
    # An epoch ends when its validation does; that is when TensorBoard is told of it.
    clock = [event.wall_time - begun for event in events.Scalars("val/accuracy")]
    rows = [row for row in read_metrics(run) if "val/accuracy" in row]
    rate, batch = train["images_per_second"], run.read_config()["data"]["batch_size"]
    moments = [
        {
            "epoch": row["epoch"],
            "val_accuracy": row["val/accuracy"],
            "seconds": seconds,
            "training_seconds": row["step"] * batch / rate if rate else None,
        }
        for row, seconds in zip(rows, clock, strict=False)
    ]
    return summary | {
        "images_per_second": rate,
        "reached": {f"{target:.0%}": first_reached(moments, target) or "not" for target in TARGETS},
        "last": moments[-1],
        "best_val_accuracy": max(moment["val_accuracy"] for moment in moments),
        "test_accuracy": run.read_summary()["metrics"].get("test/accuracy"),
    }


def first_reached(moments: Sequence[Mapping[str, Any]], target: float) -> Mapping[str, Any] | None:
    """Return the first moment at which the accuracy was ``target`` or more; None if there is none."""
    return next((moment for moment in moments if moment["val_accuracy"] >= target), None)


def describe_run(run: RunFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what every run's figures say, and ``train`` of its summary."""
    data: SummaryData = run.read_summary()
    train: dict[str, Any] = data["train"]  # type: ignore[assignment]
    keys = ("device", "precision", "compiled")
    found = {key: data.get(key) for key in keys} | {"peak_memory_bytes": train["peak_memory_bytes"]}
    return found | ({"error": data["error"]} if "error" in data else {}), train


def read_benchmark(folder: Path, begun: float) -> dict[str, Any]:
    """Return images/s and MFU of every candidate, and how much faster compiled is than eager."""
    record = read_json(folder / "benchmark" / "results.json")
    keys = ("images_per_second", "mfu", "ratio", "peak_device_bytes")
    about = ("device", "precision", "compiled", "peak_flops", "compiled_over_eager")
    found = {key: record[key] for key in about if key in record}
    found["layers"] = {
        layer: {name: {key: row[key] for key in keys} for name, row in rows.items()}
        for layer, rows in record["layers"].items()
    }
    return found


def read_float16(folder: Path, begun: float) -> dict[str, Any]:
    """Return whether the run trained and stayed finite, and how many steps overflowed."""
    run = RunFolder(folder / "run")
    found, train = describe_run(run)
    rows = read_metrics(run)
    return found | {
        "finite": all(math.isfinite(value) for row in rows for value in row.values()),
        "train_loss": {"first": rows[0]["train/loss"], "last": rows[-1]["train/loss"]},
        "val_accuracy": rows[-1]["val/accuracy"],
        "optimizer_steps": train["optimizer_steps"],
        "overflowed_steps": train["skipped_steps"],
    }


def read_resume(folder: Path, begun: float) -> dict[str, Any]:
    """Return what of a run that was killed and resumed differs from one that was not."""
    *_, row = read_json(folder / "kills.json")
    keys = ("kills", "while", "resumed_at", "differs")
    return {"bitwise_equal": not row["differs"]} | {key: row[key] for key in keys}


def read_memory(folder: Path, begun: float) -> dict[str, Any]:
    """Return the peak of each recipe."""
    runs = [RunFolder(path.parent) for path in sorted(folder.glob("*/config.yaml"))]
    return {run.path.name: describe_run(run)[0] for run in runs}
