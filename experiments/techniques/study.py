"""The runs of this study; compare.py makes its table, figures and page of their folders.

python experiments/techniques/study.py data=image_folder data.root=DIR    # what is not finished yet
python compare.py outputs/techniques --baseline base --out experiments/techniques/report
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vitlab.core.cpu_count import count_cores

RUNS = Path("outputs/techniques")
TEACHER_RUN = Path("outputs/techniques_teacher")
SEEDS = (0, 1, 2)
# 10,000 images to train on, three times: 468 steps of 64. Of the other 40,000, the same random 5,120 are the
# hold-out, looked at once, after the last epoch: nothing is selected. The test images are not looked at.
QUIET = ("trainer=cpu", "compile=false", "logger=none", "callbacks.figures=false")
DATA = ("data.val_size=40000", "trainer.limit_val_batches=80", "trainer.limit_test_batches=0")
BUDGET = (*QUIET, *DATA, "data.batch_size=64", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=3")
SIZE = "model.dim=96 model.depth=4 model.mlp_ratio=2"
CNN = "model=resnet18 model.width=16"
TEACHER = f"{CNN} optimizer=sgd optimizer.lr=0.05 trainer.max_epochs=6 trainer.check_val_every_n_epoch=6"
# Each changes one thing of the first.
ARMS = {
    "base": f"model=vit_tiny {SIZE}",
    "convstem": f"model=vit_convstem_tiny {SIZE}",
    "cls": f"model=vit_tiny {SIZE} model.pool=cls",
    "randaugment": f"model=vit_tiny {SIZE} augment=randaugment",
    "mixup_cutmix": f"model=vit_tiny {SIZE} augment=mixup_cutmix",
    "nowarmup": f"model=vit_tiny {SIZE} scheduler=cosine",
    "muon": f"model=vit_tiny {SIZE} optimizer=muon",
    "ema": f"model=vit_tiny {SIZE} callbacks.ema.decay=0.99",
    "distill": f"model=vit_tiny {SIZE} task=distill task.teacher={TEACHER_RUN}",
    "resnet": CNN,
}


def main(data: list[str]) -> None:
    """Run as many at a time as there are cores, each on one; all arms of a seed before the next seed."""

    def train(folder: Path, overrides: str) -> int:
        if (folder / "summary.json").is_file():
            command = [f"resume={folder}"]  # of a finished run: says so, and does nothing
        else:
            command = [*data, *BUDGET, *overrides.split(), f"hydra.run.dir={folder}"]
        alone = os.environ | {"OMP_NUM_THREADS": "1", "VITLAB_CORES": "1"}
        return subprocess.run([sys.executable, "train.py", *command], env=alone).returncode

    with ThreadPoolExecutor(count_cores()) as pool:
        teacher = pool.submit(train, TEACHER_RUN, TEACHER)
        jobs = [teacher]
        for seed in SEEDS:
            for arm, overrides in ARMS.items():
                if arm == "distill" and teacher.result():
                    continue
                jobs.append(pool.submit(train, RUNS / arm / str(seed), f"{overrides} seed={seed}"))
        failed = sum(job.result() != 0 for job in jobs)
    sys.exit(f"{failed} runs failed; the same command again does what is left" if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:]) if sys.argv[1:] else sys.exit(__doc__)
