"""What a run's trackers show, read back by what they are read with."""

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from wandb.proto.wandb_internal_pb2 import Record

from vitlab.core.run_folder import RunFolder

Points = dict[str, list[tuple[int, float]]]  # (step, value) by name
OWN = ("_step", "_timestamp", "_runtime", "trainer/global_step")  # W&B's, and Lightning's for it
BLOCK = 32_768  # bytes, of W&B's file, which is LevelDB's log with a header of seven bytes


def drop_speeds(points: Points) -> Points:
    return {name: points[name] for name in sorted(points) if "images_per_second" not in name}


def csv_points(folder: Path) -> Points:
    points: Points = {}
    with open(folder / "steps.csv", newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value:
                    points.setdefault(name, []).append((int(row["step"]), float(value)))
    return drop_speeds(points)


def mlflow_run(folder: Path) -> tuple[MlflowClient, Run]:
    client = MlflowClient(RunFolder(folder).read_config()["logger"]["mlflow"]["tracking_uri"])
    return client, client.get_run(json.loads((folder / "trackers.json").read_text())["mlflow"])


def mlflow_points(folder: Path) -> Points:
    client, run = mlflow_run(folder)
    points: Points = {}
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        points[name] = sorted((point.step, point.value) for point in history)
    return drop_speeds(points)


def wandb_records(folder: Path) -> Iterator[Any]:
    """Yield the records of a run's one offline file."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, kept = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := BLOCK - at % BLOCK) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        piece, at = data[at + 7 : at + 7 + size], at + 7 + size
        kept = piece if kind in (1, 2) else kept + piece  # whole, first
        if kind in (1, 4):  # whole, last
            record = Record()
            record.ParseFromString(kept)
            yield record


def wandb_points(folder: Path) -> Points:
    points: Points = {}
    for record in wandb_records(folder):
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            if name not in OWN and not name.startswith("figures/"):
                points.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))
    return drop_speeds(points)
