"""Kill runs at random moments, resume them until they end, and hold them against runs that were never killed.

    python -m tests.chaos --kills 200 --seed 0 --out kills.csv

A kill is SIGKILL to the process that trains, at a moment drawn by lot: while it starts, in a step, while a
checkpoint or a row is written, while it validates, tests or draws. What resumes may be killed again. At last
weights, averaged and raw, and the optimizer's state are to be equal bit for bit; metrics.csv, the trackers
and the test's results are to have neither a gap nor anything twice.
"""

import argparse
import csv
import itertools
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import TINY, checkpoint, on_two, summary
from tests.trackers import csv_points, mlflow_points, wandb_points
from vitlab.config import combinations
from vitlab.core.checkpoint import RAW
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder

BASE = [*TINY, "trainer.max_epochs=3", "callbacks.checkpoint.every_minutes=1e-6", "logger=tensorboard"]
# What may vary, under the name that the table has for it. TEACHER is a finished run, WORK the folder of all.
VARIANTS: dict[str, list[str]] = {
    "in memory": [],
    "streamed by two workers": ["data.in_memory=false", "data.num_workers=2"],
    "two processes": on_two(),
    "accumulation": ["trainer.accumulate_grad_batches=3"],
    "averaged weights": ["callbacks.ema.decay=0.7"],
    "mixup and cutmix": ["augment=mixup_cutmix"],
    "RandAugment, drop path": ["augment=randaugment", "model.drop_path=0.2"],
    "Muon": ["optimizer=muon"],
    "bfloat16": ["trainer.precision=bf16-mixed"],
    "float16": ["trainer.precision=auto", "optimizer.lr=0.003"],  # a config for a GPU
    "compiled": ["compile=true"],
    "validation within epochs": ["trainer.val_check_interval=3"],
    "diagnostics": ["callbacks=diagnostics", "callbacks.diagnostics.every_epochs=1"],
    "early stopping": ["callbacks.early_stopping.patience=1"],
    "distillation": ["task=distill", "task.teacher=TEACHER"],
    "figures": ["callbacks.figures=true"],
    "no hold-out": ["data.val_size=0"],
    "MLflow, W&B, steps.csv": [
        *("logger=[tensorboard,csv,mlflow,wandb]", "logger.mlflow.tracking_uri=sqlite:///WORK/mlflow.db"),
        "trainer.log_every_n_steps=1",
    ],
}
MOST_KILLS = 3  # of one run


def make_run(folder: Path, options: Sequence[str], teacher: Path) -> Path:
    """Make a run folder that has not begun."""
    given = [
        o.replace("TEACHER", str(teacher)).replace("WORK", str(folder.parent)) for o in (*BASE, *options)
    ]
    given = list({o.split("=", 1)[0]: o for o in given}.values())
    (composed,) = combinations([*given, f"hydra.run.dir={folder}"])
    RunFolder.create(folder, composed.record)
    return folder


def go_on(folder: Path, lot: random.Random | None = None) -> str | None:
    """Run or resume; kill it at a moment drawn by ``lot``. Return what it was about when it was killed."""
    begun = time.time()
    float16 = RunFolder(folder).read_config()["trainer"]["precision"] == "auto"
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [sys.executable, "-m", "tests.float16" if float16 else "vitlab", str(folder)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        ) as process,
    ):
        if lot and wait_for_moment(folder, process, lot):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return describe_moment(folder, begun)
        process.wait()
        said.seek(0)
        assert process.returncode == 0, said.read().decode()
    return None


def wait_for_moment(folder: Path, process: subprocess.Popen[bytes], lot: random.Random) -> bool:
    """Wait for a moment drawn by lot, counted in checkpoints, and say whether the run has not ended by then.

    A sixth of the moments is in the first seconds, another after training.
    """
    saves, begun, seen = lot.choice([0, math.inf, *[lot.randint(1, 20)] * 4]), when_saved(folder), 0
    delay = lot.uniform(0, 0.2 if 0 < saves < math.inf else 2)  # seconds
    while process.poll() is None:
        if (now := when_saved(folder)) != begun:
            begun, seen = now, seen + 1
        if seen >= saves or (saves == math.inf and has_trained(folder)):
            time.sleep(delay)
            return process.poll() is None
        time.sleep(0.002)
    return False


def when_saved(folder: Path) -> float:
    """Return when the last checkpoint was written; 0 before the first."""
    last = folder / "checkpoints" / "last.ckpt"
    return last.stat().st_mtime if last.exists() else 0


def has_trained(folder: Path) -> bool:
    """Say whether training has come to its end, after which a run is tested and drawn."""
    found = summary(folder)
    return bool(found["metrics"]) or found["train"]["epochs"] == 3


def describe_moment(folder: Path, begun: float) -> str:
    """Say what a run that was started then was about when it was killed."""
    if any(file.stat().st_mtime > begun for file in folder.rglob("*.tmp")):
        return "writing"
    if has_trained(folder):
        return "testing, drawing"
    return "training" if when_saved(folder) > begun else "starting"


def differences(whole: Path, other: Path) -> Iterator[str]:
    """Yield what differs between a run that was never killed and one that was."""
    for name in ("last", "best"):
        if (whole / "checkpoints" / f"{name}.ckpt").exists():
            one, two = checkpoint(whole, name), checkpoint(other, name)
            for key in ("state_dict", RAW, "optimizer_states", "lr_schedulers"):
                if not equal(one.get(key), two.get(key)):
                    yield f"{key} of {name}.ckpt"
    rows = [read_metrics(RunFolder(folder)) for folder in (whole, other)]
    # Sums of an epoch that was interrupted are added in another order.
    if not close(*rows):
        yield "metrics.csv"
    if not close(*(read_series(folder) for folder in (whole, other))):
        yield "TensorBoard"
    if (whole / "steps.csv").exists():
        for name, read in (("steps.csv", csv_points), ("MLflow", mlflow_points), ("W&B", wandb_points)):
            if not close(read(whole), read(other)):
                yield name
    for key in ("status", "metrics", "tested", "per_class", "turned"):
        if not close(summary(whole)[key], summary(other)[key]):
            yield f"{key} in summary.json"


def equal(one: Any, other: Any) -> bool:
    """Say whether nested containers hold the same values, and tensors the same bits."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def close(one: Any, other: Any) -> bool:
    """Say whether nested containers hold the same, floats to 6 digits."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-6 * max(abs(one), abs(other), 1e-6)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(close, one, other))
    return bool(one == other)


def read_series(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return TensorBoard's scalars, (step, value) by name, as it shows them; speeds are left out."""
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "images_per_second" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def rampage(
    kills: int, seed: int, work: Path, names: Sequence[str] = tuple(VARIANTS)
) -> Iterator[dict[str, Any]]:
    """Kill until so many kills have been made, a variant after the other; yield a row a run."""
    lot, made, teacher = random.Random(seed), 0, work / "teacher"
    if "distillation" in names:
        go_on(make_run(teacher, [], work))
    whole: dict[str, Path] = {}
    for number in itertools.count():
        name = names[number % len(names)]
        if name not in whole:
            whole[name] = make_run(work / f"whole{number}", VARIANTS[name], teacher)
            go_on(whole[name])
        folder = make_run(work / f"killed{number}", VARIANTS[name], teacher)
        planned = min(lot.randint(1, MOST_KILLS), kills - made)
        killed = [go_on(folder, lot) for _ in range(planned)]
        moments = [moment for moment in killed if moment]
        go_on(folder)
        made += len(moments)
        yield {
            "variant": name,
            "kills": len(moments),
            "while": "; ".join(moments),
            "resumed_at": " ".join(map(str, summary(folder)["train"]["resumed_at"])),
            "differs": "; ".join(differences(whole[name], folder)),
        }
        if made >= kills:
            return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--out", type=Path, help="a CSV file for the table")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for row in rampage(given.kills, given.seed, Path(work), given.variants):
            print(f"{row['variant']}: {row['kills']} kills, {row['differs'] or 'equal'}", flush=True)
            rows.append(row)
            if given.out:
                with open(given.out, "w", newline="") as file:
                    writer = csv.DictWriter(file, list(row), lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
    wrong = [row for row in rows if row["differs"]]
    print(f"{sum(row['kills'] for row in rows)} kills of {len(rows)} runs, {len(wrong)} runs differ")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
