"""Accuracy against minutes of two CPU cores, and against floating-point operations, on CIFAR-10 (JPEG copy).

    python -m experiments.frontier.study run data=image_folder data.root=DIR    # one after the other, timed
    python -m experiments.frontier.study pairs data=image_folder data.root=DIR  # two at a time, a core each
    python -m experiments.frontier.study tutorial FILE.json …                   # what ten_minutes made
    python -m experiments.frontier.study show                                   # a table, and frontier.png

The first two train what points.csv does not have; ``--only=NAME`` (of ARMS) leaves the others out. What a run
learns does not depend on what else the machine does, its seconds do: ``pairs`` notes none.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitlab.compare.statistics import pareto
from vitlab.core.plotting import GREY, new_figure, save_figure, style_axes
from vitlab.core.provenance import find_commit

HERE = Path(__file__).parent
RUNS = Path("outputs/frontier")
POINTS = HERE / "points.csv"
COLUMNS = ("arm", "seed", "val/accuracy", "test/accuracy", "tflops", "images_per_second", "seconds", "commit")
FAMILIES = {"cpu_": "#1f77b4", "ResNet": "#d95f02", "tutorial": "#7a5195"}
TICKS = {"seconds": (1, 5, 15, 30), "tflops": (15, 50, 150, 500)}  # of the figure; minutes
QUIET = ("logger=none", "callbacks.figures=false")
# Of the tutorial's network, an image, forward; see experiments/ten_minutes.
TUTORIAL_FLOPS = 363e6
TUTORIAL_BATCH = 128


class Arm(NamedTuple):
    """What is trained: the words of train.py."""

    words: str
    seeds: range


RESNET = (
    "model=resnet18 optimizer=muon optimizer.kernels=true optimizer.lr=4.0e-3 optimizer.weight_decay=0.3 "
    "optimizer.betas=[0.9,0.99] scheduler.warmup_fraction=0.1 trainer=cpu compile=false model.width=16"
)
ARMS = {
    "cpu_5min, 2 epochs": Arm("experiment=cpu_5min trainer.max_epochs=2", range(5)),
    "cpu_5min": Arm("experiment=cpu_5min", range(5)),
    "cpu_30min, 18 epochs": Arm("experiment=cpu_30min trainer.max_epochs=18", range(3)),
    "cpu_30min": Arm("experiment=cpu_30min", range(5)),
    "ResNet, 2 epochs": Arm(f"{RESNET} trainer.max_epochs=2", range(3)),
    "ResNet, 8 epochs": Arm(f"{RESNET} trainer.max_epochs=8", range(3)),
}


def measured() -> list[dict[str, str]]:
    if not POINTS.exists():
        return []
    with open(POINTS, newline="") as file:
        return list(csv.DictReader(file))


def missing(only: str) -> Iterator[tuple[str, int]]:
    known = {(row["arm"], int(row["seed"])) for row in measured()}
    for name, arm in ARMS.items():
        if only in ("", name):
            yield from ((name, seed) for seed in arm.seeds if (name, seed) not in known)


def start(name: str, seed: int, data: Sequence[str], threads: int) -> tuple[Path, subprocess.Popen[bytes]]:
    folder = RUNS / name.replace(", ", "-").replace(" ", "-") / str(seed)
    words = [*ARMS[name].words.split(), *QUIET, *data, f"seed={seed}", f"hydra.run.dir={folder}"]
    if (folder / "config.yaml").exists():
        words = [f"resume={folder}"]
    cores = {"OMP_NUM_THREADS": str(threads), "VITLAB_CORES": str(threads)}
    return folder, subprocess.Popen([sys.executable, "train.py", *words], env=os.environ | cores)


def add(name: str, seed: int, folder: Path, *, timed: bool) -> None:
    found = json.loads((folder / "summary.json").read_text())
    train, metrics = found["train"], found["metrics"]
    images = train["epochs"] * found["data"]["train"]
    note = {
        "arm": name,
        "seed": seed,
        "val/accuracy": metrics["val/accuracy"],
        "test/accuracy": metrics["test/accuracy"],
        "tflops": round(3 * images * found["model"]["flops_per_image"] / 1e12, 1),
        "images_per_second": round(train["images_per_second"]) if timed and not train["resumed_at"] else "",
        "seconds": round(train["wall_seconds"]) if timed and not train["resumed_at"] else "",
        "commit": (find_commit() or "")[:7],
    }
    write([*measured(), note])


def write(rows: Sequence[dict[str, Any]]) -> None:
    order = {name: place for place, name in enumerate(ARMS)}
    with open(POINTS, "w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(rows, key=lambda row: (order.get(row["arm"], len(order)), int(row["seed"]))))


def run(data: Sequence[str], only: str, at_a_time: int) -> None:
    waiting = [*missing(only)]
    while waiting:
        jobs = [(job, start(*job, data, 2 // at_a_time)) for job in waiting[:at_a_time]]
        waiting = waiting[at_a_time:]
        for (name, seed), (folder, process) in jobs:
            if process.wait():
                sys.exit(f"{folder}: failed; the same command again does what is left")
            add(name, seed, folder, timed=at_a_time == 1)


def add_tutorial(files: Sequence[str]) -> None:
    """Note what `experiments.ten_minutes.tutorial` wrote, for each number of its images an arm."""
    rows = measured()
    for file in files:
        for found in json.loads(Path(file).read_text()):
            images = found["steps"] * TUTORIAL_BATCH
            rows.append(
                {
                    "arm": f"tutorial, {images:,} images",
                    "seed": found["seed"],
                    "val/accuracy": "",
                    "test/accuracy": found["test/accuracy"],
                    "tflops": round(3 * images * TUTORIAL_FLOPS / 1e12, 1),
                    "images_per_second": round(found["images_per_second"]),
                    "seconds": round(found["wall_seconds"]),
                    "commit": (find_commit() or "")[:7],
                }
            )
    write(rows)


def show() -> None:
    figure = new_figure(width=11, height=4.2)
    panels = dict(zip(("seconds", "tflops"), figure.subplots(1, 2, sharey=True), strict=True))
    rows, points = measured(), []
    for name in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == name]
        tests = [100 * float(row["test/accuracy"]) for row in own]
        mean, spread = statistics.mean(tests), statistics.stdev(tests) if len(tests) > 1 else 0.0
        timed = [float(row["seconds"]) for row in own if row["seconds"]]
        cost = {"seconds": statistics.mean(timed) if timed else None, "tflops": float(own[0]["tflops"])}
        points.append((name, mean, cost))
        said = f" ± {spread:.2f}" if len(tests) > 1 else ""
        at = f"{cost['seconds']:.0f} s (of {len(timed)})" if cost["seconds"] else "not timed"
        print(f"{name:26}{mean:6.2f}{said} %  n = {len(tests)}  {cost['tflops']:.0f} TFLOPs  {at}")
        colour = next((c for family, c in FAMILIES.items() if name.startswith(family)), GREY)
        for measure, axes in panels.items():
            if cost[measure]:
                x = cost[measure] / (60 if measure == "seconds" else 1)
                axes.errorbar(x, mean, spread, fmt="o", color=colour, capsize=3)
                axes.annotate(name, (x, mean), (4, -10), textcoords="offset points", fontsize=7, color=colour)
    for measure, axes in panels.items():
        known = [(cost[measure], mean) for _, mean, cost in points if cost[measure]]
        front = [known[index] for index in pareto(known)]
        scale = 60 if measure == "seconds" else 1
        axes.plot([x / scale for x, _ in front], [y for _, y in front], color=GREY, zorder=0)
        axes.set_xscale("log")
        axes.set_xticks(TICKS[measure], [f"{tick:g}" for tick in TICKS[measure]])
        axes.minorticks_off()
        style_axes(axes)
    panels["seconds"].set(xlabel="minutes of two CPU cores, all included", ylabel="test accuracy, %")
    panels["tflops"].set(xlabel="TFLOPs of training")
    figure.suptitle(
        "CIFAR-10 (JPEG copy): mean and standard deviation over seeds; grey: the Pareto front", fontsize=10
    )
    save_figure(figure, HERE / "frontier.png")


if __name__ == "__main__":
    only = next((a.partition("=")[2] for a in sys.argv if a.startswith("--only=")), "")
    match [a for a in sys.argv[1:] if not a.startswith("--only=")]:
        case ["run", *data]:
            run(data, only, at_a_time=1)
        case ["pairs", *data]:
            run(data, only, at_a_time=2)
        case ["tutorial", *files]:
            add_tutorial(files)
        case ["show"]:
            show()
        case _:
            sys.exit(__doc__)
