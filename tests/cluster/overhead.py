"""What a job of a sweep costs beside its training, by launcher: ``python -m tests.cluster.overhead``.

Sweeps of two and of six tiny jobs, two at a time: what four more jobs take, divided by two, is the time from
one job's start to the next one's. The launchers take turns.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.cluster.slurm import Slurm, why_not
from tests.conftest import ROOT, TINY

QUEUE = ["hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1", "hydra.launcher.gpus_per_node=null"]
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "Ray": ["hydra/launcher=ray", "hydra.launcher.num_cpus=1"],  # on this machine's two cores
    "SLURM": [*QUEUE, "hydra.launcher.cpus_per_task=1", "hydra.launcher.array_parallelism=2"],
    "SLURM, two jobs to an allocation": [
        *QUEUE,
        "hydra.launcher.cpus_per_task=2",
        "hydra.launcher.array_parallelism=1",
        "sweep.jobs_per_allocation=2",
    ],
}


def measure(slurm: Slurm, folder: Path, launcher: list[str], jobs: int) -> float:
    """Return the seconds that a sweep of so many jobs takes."""
    seeds = ",".join(str(seed) for seed in range(1, jobs + 1))
    typed = [*TINY, f"seed={seeds}", f"hydra.sweep.dir={folder}", *launcher]
    begun = time.monotonic()
    subprocess.run(
        ["python", "train.py", "-m", *typed], cwd=ROOT, env=slurm.env, check=True, stdout=subprocess.DEVNULL
    )
    return time.monotonic() - begun


def main(rounds: int) -> None:
    """Print a line for each launcher."""
    if reason := why_not():
        sys.exit(reason)
    found: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
    with tempfile.TemporaryDirectory() as place:
        slurm = Slurm(Path(place) / "slurm")
        try:
            slurm.start()
            for turn in range(rounds):
                for name, launcher in LAUNCHERS.items():
                    folder = Path(place) / f"{turn}-{len(name)}"
                    two, six = (measure(slurm, folder / str(jobs), launcher, jobs) for jobs in (2, 6))
                    found[name].append((six - two) / 2)
                    print(f"{name}: two jobs {two:.1f} s, six {six:.1f} s", flush=True)
        finally:
            slurm.stop()
    for name, seconds in found.items():
        spread = f"{min(seconds):.1f}–{max(seconds):.1f}, n = {len(seconds)}"
        print(f"{name}: {statistics.median(seconds):.1f} s for each two jobs ({spread})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
