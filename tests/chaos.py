"""Kill runs at random moments, resume them until they end, and hold them against runs that were never killed.

    python -m tests.chaos --kills 200 --seed 0 --out kills.csv

A kill is SIGKILL to the process that trains, at a moment drawn by lot: while it starts, in a step, while a
checkpoint or a row is written, while it validates, tests or draws. What resumes may be killed again. At last
weights, averaged and raw, and the optimizer's state are to be equal bit for bit; metrics.csv, TensorBoard and
the test's results are to have neither a gap nor anything twice.
"""

import argparse
import csv
import itertools
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
from vitlab.config import combinations
from vitlab.core.checkpoint import RAW
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder

BASE = [*TINY, "trainer.max_epochs=3", "callbacks.checkpoint.every_minutes=1e-6", "logger=tensorboard"]
# What may vary, under the name that the table has for it. TEACHER is a finished run.
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
    "validation within epochs": ["trainer.val_check_interval=3"],
    "diagnostics": ["callbacks=diagnostics", "callbacks.diagnostics.every_epochs=1"],
    "early stopping": ["callbacks.early_stopping.patience=1"],
    "distillation": ["task=distill", "task.teacher=TEACHER"],
    "figures": ["callbacks.figures=true"],
    "no hold-out": ["data.val_size=0"],
}
MOST_KILLS = 3  # of one run


def make_run(folder: Path, options: Sequence[str], teacher: Path) -> Path:
    """Make a run folder that has not begun."""
    given = [o.replace("TEACHER", str(teacher)) for o in (*BASE, *options)]
    given = list({o.split("=", 1)[0]: o for o in given}.values())
    (composed,) = combinations([*given, f"hydra.run.dir={folder}"])
    RunFolder.create(folder, composed.record)
    return folder


def go_on(folder: Path, seconds: float | None = None) -> bool:
    """Run or resume; kill it after so many seconds. Return whether it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vitlab", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode == 0, said.decode()
    return False


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
    whole: dict[str, tuple[Path, float]] = {}
    for number in itertools.count():
        name = names[number % len(names)]
        if name not in whole:
            folder = make_run(work / f"whole{number}", VARIANTS[name], teacher)
            begun = time.monotonic()
            go_on(folder)
            whole[name] = folder, time.monotonic() - begun
        reference, seconds = whole[name]
        folder = make_run(work / f"killed{number}", VARIANTS[name], teacher)
        planned = min(lot.randint(1, MOST_KILLS), kills - made)
        # The second half of its time: the first is spent importing torch.
        done = sum(go_on(folder, lot.uniform(0.5, 1) * seconds) for _ in range(planned))
        go_on(folder)
        made += done
        yield {
            "variant": name,
            "kills": done,
            "resumed_at": " ".join(map(str, summary(folder)["train"]["resumed_at"])),
            "differs": "; ".join(differences(reference, folder)),
        }
        if made >= kills:
            return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a CSV file for the table")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for row in rampage(given.kills, given.seed, Path(work)):
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
