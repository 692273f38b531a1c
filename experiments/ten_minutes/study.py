"""The runs of this study, and its table from their folders.

python experiments/ten_minutes/study.py run data=image_folder data.root=DIR   # what is not finished yet
python experiments/ten_minutes/study.py show                                  # results.csv, and the table

The two arms of a seed run at the same time, each bound to one core of its own: what the machine's speed does
to one it does to the other.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUNS = Path("outputs/ten_minutes")
SEEDS = (0, 1, 2)
MINUTES = 10
# Of cpu_quick, what one core can do in the time: chosen by its speed, once, before the first run. Compiling
# takes longer than it wins in ten minutes. cpu_quick had four blocks when this study was run.
CPU_QUICK = (  # noqa: SIM905
    "model=vit_convstem_tiny model.patch_size=8 model.depth=4 model.mlp_ratio=2.0 model.qkv_bias=false "
    "model.tokenizer.num_convs=4 model.tokenizer.full_size_convs=1 optimizer=muon optimizer.lr=2.0e-3 "
    "optimizer.betas=[0.9,0.99] scheduler.warmup_fraction=0.1 trainer=cpu"
).split()
LENGTH = ("compile=false", "trainer.max_epochs=3", "trainer.limit_train_batches=0.72")
QUIET = ("logger=none", "callbacks.figures=false")


def run(data: list[str]) -> None:
    for seed in SEEDS:
        ours, theirs = RUNS / "vitlab" / str(seed), RUNS / "tutorial" / str(seed)
        theirs.mkdir(parents=True, exist_ok=True)
        if (ours / "summary.json").exists():
            commands = [["train.py", f"resume={ours}"]]  # of a finished run: says so, and does nothing
        else:
            recipe = [*CPU_QUICK, *LENGTH, *QUIET, *data, f"seed={seed}"]
            commands = [["train.py", *recipe, f"hydra.run.dir={ours}"]]
        if not (theirs / "result.json").exists():
            tutorial = [
                "-m",
                "experiments.ten_minutes.tutorial",
                f"--minutes={MINUTES}",
                f"--out={theirs / 'result.json'}",
            ]
            commands.append([*tutorial, *data, f"seed={seed}"])
        jobs = [
            subprocess.Popen(
                [sys.executable, *command],
                env=os.environ | {"OMP_NUM_THREADS": "1", "VITLAB_CORES": "1"},
                preexec_fn=lambda core=core: os.sched_setaffinity(0, {core}),  # type: ignore[misc]
            )
            for core, command in zip(sorted(os.sched_getaffinity(0)), commands, strict=False)
        ]
        codes = [job.wait() for job in jobs]
        if any(codes):
            sys.exit("a run failed; the same command again does what is left")


def show() -> None:
    rows = []
    for seed in SEEDS:
        ours = RUNS / "vitlab" / str(seed) / "summary.json"
        if ours.exists() and (found := json.loads(ours.read_text()))["status"] == "finished":
            train, metrics = found["train"], found["metrics"]
            images = train["optimizer_steps"] * 128
            rows.append(["vitlab", seed, metrics, images, train["images_per_second"], train["wall_seconds"]])
        theirs = RUNS / "tutorial" / str(seed) / "result.json"
        if theirs.exists():
            found = json.loads(theirs.read_text())
            images = found["steps"] * 128
            rows.append(["tutorial", seed, found, images, found["images_per_second"], found["wall_seconds"]])
    with open(HERE / "results.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["arm", "seed", "test/accuracy", "images", "images_per_second", "wall_seconds"])
        for arm, seed, metrics, *rest in rows:
            table.writerow([arm, seed, metrics["test/accuracy"], *rest])
    for arm in ("vitlab", "tutorial"):
        found = [row for row in rows if row[0] == arm]
        for name, values in (
            ("test accuracy, %", [100 * row[2]["test/accuracy"] for row in found]),
            ("images trained on", [row[3] for row in found]),
            ("images/s", [row[4] for row in found]),
            ("seconds", [row[5] for row in found]),
        ):
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            print(f"{arm:10}{name:22}{statistics.mean(values):12.2f} ± {spread:.2f}  (n = {len(values)})")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", *data]:
            run(data)
        case ["show"]:
            show()
        case _:
            sys.exit(__doc__)
