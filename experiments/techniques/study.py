"""The runs of this study, and its table and figure from their folders.

python experiments/techniques/study.py run data=image_folder data.root=DIR   # what is not finished yet
python experiments/techniques/study.py show                                  # results.csv and techniques.png
"""

import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

from matplotlib import pyplot as plt

HERE = Path(__file__).parent
RUNS = Path("outputs/techniques")
SEEDS = (0, 1, 2)
# 468 steps of 128 images, a hold-out of 5,000, no look at the test images.
BUDGET = [
    *(
        "trainer=cpu",
        "compile=false",
        "logger=none",
        "callbacks.figures=false",
        "trainer.limit_test_batches=0",
    ),
    *("trainer.max_epochs=3", "trainer.limit_train_batches=156"),
]
SMALL = "model=vit_tiny model.depth=4 model.mlp_ratio=2"
TEACHER = "model=resnet18 model.width=24 optimizer=sgd optimizer.lr=0.05 trainer.max_epochs=5"
BASE = "base"
# Each changes one thing of the first.
ARMS = {
    BASE: SMALL,
    "convstem": "model=vit_convstem_tiny model.depth=4 model.mlp_ratio=2",
    "cct": f"{SMALL} model/tokenizer=cct",
    "cls": f"{SMALL} model.pool=cls",
    "sequence": f"{SMALL} model.pool=sequence",
    "noaug": f"{SMALL} augment=none",
    "randaugment": f"{SMALL} augment=randaugment",
    "mixup_cutmix": f"{SMALL} augment=mixup_cutmix",
    "nowarmup": f"{SMALL} scheduler=cosine",
    "muon": f"{SMALL} optimizer=muon",
    "ema": f"{SMALL} callbacks.ema.decay=0.99",
    "distill": f"{SMALL} task=distill task.teacher={RUNS}/teacher",
    "spt_lsa": f"{SMALL} model/tokenizer=spt model/attention=lsa",
    "mimetic": f"{SMALL} model.init=mimetic",
    "rotary": f"{SMALL} model.position=rotary",
    "resnet": "model=resnet18 model.width=24",
}


def run(data: list[str]) -> None:
    quiet = [o for o in BUDGET if not o.startswith(("trainer.max_epochs", "trainer.limit_train"))]
    train(RUNS / "teacher", [*data, *quiet, *TEACHER.split()])
    for seed in SEEDS:
        for arm, overrides in ARMS.items():
            train(RUNS / arm / str(seed), [*data, *BUDGET, *overrides.split(), f"seed={seed}"])


def train(folder: Path, overrides: list[str]) -> None:
    if (folder / "summary.json").is_file():
        overrides = [f"resume={folder}"]  # of a finished run: says so, and does nothing
    else:
        overrides = [*overrides, f"hydra.run.dir={folder}"]
    subprocess.run([sys.executable, "train.py", *overrides], check=True)


def show() -> None:
    found: dict[str, dict[int, float]] = {}
    with open(HERE / "results.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["arm", "seed", "val/accuracy", "train/accuracy", "parameters", "flops", "commit"])
        for arm in ARMS:
            for seed in SEEDS:
                folder = RUNS / arm / str(seed)
                if not (folder / "metrics.csv").is_file():
                    continue
                summary = json.loads((folder / "summary.json").read_text())
                if summary["status"] != "finished":
                    continue
                with open(folder / "metrics.csv", newline="") as metrics:
                    *_, last = csv.DictReader(metrics)  # and not the best: nothing is selected
                found.setdefault(arm, {})[seed] = float(last["val/accuracy"])
                model = summary["model"]
                table.writerow(
                    [
                        *(arm, seed, last["val/accuracy"], last["train/accuracy"]),
                        *(model["parameters"], model["flops_per_image"], summary["commit"]),
                    ]
                )
    rows = []
    for arm, values in found.items():
        differences = [100 * (values[s] - found[BASE][s]) for s in values if s in found[BASE]]
        rows.append((statistics.mean(differences), arm, [100 * v for v in values.values()], differences))
    rows.sort()
    for mean, arm, values, differences in reversed(rows):
        print(
            f"| {arm} | {len(values)} | {spread(values)} | {mean:+.1f} ({min(differences):+.1f} to "
            f"{max(differences):+.1f}) |"
        )
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for place, (mean, _, _, differences) in enumerate(rows):
        axes.plot(differences, [place] * len(differences), "o", color="tab:blue", alpha=0.45)
        axes.plot(mean, place, "|", color="black", markersize=16, markeredgewidth=2)
    axes.axvline(0, color="gray", linewidth=1)
    axes.set_yticks(range(len(rows)), [arm for _, arm, _, _ in rows])
    axes.set_xlabel("points of hold-out accuracy over the base with the same seed (dots: seeds, bar: mean)")
    axes.set_title("CIFAR-10 (JPEG copy), 468 steps of 128: what one change does")
    figure.savefig(HERE / "techniques.png", dpi=110)


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", *data]:
            run(data)
        case ["show"]:
            show()
        case _:
            sys.exit(__doc__)
