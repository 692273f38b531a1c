"""What a measurement of this study runs in its process: `study.py` starts it and reads what it leaves.

python -m experiments.gpu.measures benchmark|resume|memory FOLDER [key=value …]
"""

import copy
import gc
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vitlab.benchmark.baselines import AUTOCAST, endless_input, train_plainly
from vitlab.benchmark.checks import check_benchmark
from vitlab.benchmark.measure import Benchmark, measure
from vitlab.benchmark.timing import spread, timed
from vitlab.config import combinations
from vitlab.core.cli import finish
from vitlab.core.files import write_json
from vitlab.core.processes import end_with_parent
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import PARENT
from vitlab.training.run import run

SIDE = {"cuda": 8192, "cpu": 512}  # of the square matrices whose product is taken for the device's peak
LOT = 8  # draws the moment of the kill: after the twelfth checkpoint, one of which every step writes


class Layers(Benchmark):
    """``benchmark.py`` with the peak measured in the same process, and the step also without compilation."""

    def __init__(self, folder: Path, config: dict[str, Any], console: Console) -> None:
        super().__init__(folder, config, console)
        self.eager_net = copy.deepcopy(self.net)  # a copy is not compiled
        products = self.products()
        peak = max(timed(products, 20, self.stop).rate for _ in range(5))
        self.options["peak_flops"] = self.record["peak_flops"] = peak

    def products(self) -> Iterator[int]:
        """Multiply matrices in the job's precision; each ``next`` returns the FLOPs of a product."""
        side = SIDE[self.device.type]
        kind = AUTOCAST.get(self.job.precision, torch.float32)
        one, other = torch.randn(2, side, side, device=self.device, dtype=kind)
        while True:
            torch.mm(one, other)
            yield 2 * side**3

    def step(self) -> None:
        """Measure training on one fixed batch: as a run does, in a plain loop, and in the same one eager."""
        batch = next(endless_input(self.job))
        eager = self.candidate(
            "eager",
            train_plainly(self.job, self.eager_net, itertools.repeat(batch)),
            f"the plain loop, {self.job.precision}, not compiled",
            flops=3 * self.job.flops,
            precision=self.job.precision,
        )
        plain = self.plain(itertools.repeat(batch))
        self.measure("step", [self.vitlab(batch), plain, eager])
        pairs = zip(plain.samples, eager.samples, strict=True)
        self.record["compiled_over_eager"] = spread([ours.rate / other.rate for ours, other in pairs])


def benchmark(folder: Path, overrides: Sequence[str]) -> None:
    """Leave what ``benchmark.py`` leaves."""
    (composed,) = combinations([*overrides, f"hydra.run.dir={folder}"], root="benchmark")
    check_benchmark(composed.plain)
    folder.mkdir()
    measure(folder, composed.record, Layers)


def resume(folder: Path, overrides: Sequence[str]) -> None:
    """Kill a run with SIGKILL, resume it, hold it against one that was never killed: kills.json."""
    from tests import chaos  # needs pytest, as nothing else here does

    os.environ[PARENT] = str(os.getpid())  # the runs are children of this process
    chaos.VARIANTS["resume"] = [*overrides]
    write_json(folder / "kills.json", list(chaos.rampage(1, LOT, folder, ["resume"])))


def memory(folder: Path, overrides: Sequence[str]) -> None:
    """Train in each run folder that lies in ``folder``; their summaries then hold the peaks."""
    for path in sorted(folder.glob("*/config.yaml")):
        if torch.cuda.is_available():
            gc.collect()  # the run before: a trainer and its callbacks refer to each other
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            run(RunFolder(path.parent))
        except Exception as error:  # its summary says so; the others may fit
            print(f"{path.parent.name}: {error}", file=sys.stderr)


def main() -> None:
    what, folder, *overrides = sys.argv[1:]
    end_with_parent()
    {"benchmark": benchmark, "resume": resume, "memory": memory}[what](Path(folder), overrides)


if __name__ == "__main__":
    sys.exit(finish(main))
