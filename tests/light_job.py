"""A job that trains nothing and needs no torch: to see what workers make of many jobs in a short time.

    python -m tests.light_job train sweep.resume=DIR     as python train.py does, with such jobs
    python -m tests.light_job FOLDER                     one of them

It holds its folder, resumes, stops by signals and ends with its worker in the ways a run does, by the same
functions. In place of weights it has a hash that every step changes: two in one folder, a step too many or
too few, or an older checkpoint over a newer one, and it comes out as another.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

from vitlab.core import claim
from vitlab.core.claim import end_if_lost
from vitlab.core.files import write_json
from vitlab.core.processes import end_with_parent
from vitlab.core.run_folder import RunFolder, State
from vitlab.core.signals import PARENT, StopSignal
from vitlab.core.summary import Summary

STEPS = 20
SECONDS = "LIGHT_JOB_SECONDS"  # set: of a step, in place of 0.1
SHORT = "LIGHT_JOB_SHORT"  # set: workers that are gone are missed soon
STALE = 6  # seconds, then


def train(folder: RunFolder) -> int:
    """Do the steps that are left, and return the exit status."""
    end_with_parent(folder)
    stop = StopSignal()
    stop.install()
    with folder.lock():
        folder.remove_leftovers()
        summary = Summary(folder.summary)
        if summary.data.get("status") == State.FINISHED:
            return 0
        config = folder.read_config()
        if "train" not in summary.data:
            summary.begin(config["seed"], config["overrides"], {}, None)
        seed, rate = config["seed"], config["optimizer"]["lr"]
        state, done = str(seed), 0
        if folder.last.exists():
            state, done = json.loads(folder.last.read_text())
            summary.data["train"]["resumed_at"].append(done)
        folder.checkpoints.mkdir(exist_ok=True)
        summary.update(status="running")
        for step in range(done, STEPS):
            time.sleep(float(os.environ.get(SECONDS, "0.1")))
            state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
            end_if_lost(folder.path)
            write_json(folder.last, [state, step + 1])
            summary.update(train={"optimizer_steps": step + 1})
            if stop.received:
                summary.update(status="interrupted")
                return 128 + stop.received
        # By the rate trials of a search differ: best at 1e-3.
        metrics = {"val/accuracy": seed / 1000 + 0.1 / (1 + abs(math.log10(rate / 1e-3)))}
        if config["trainer"]["limit_test_batches"] != 0:
            metrics["test/accuracy"] = 0.5
            with open(folder.path / "tests", "a") as tests:
                tests.write("tested\n")
        summary.update(status="finished", metrics=metrics)
    return 0


def start(folder: RunFolder, *, shown: bool = True, **env: str) -> subprocess.Popen[bytes]:
    """Start such a job as `vitlab.core.processes.start` does a run."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.light_job", str(folder.path)],
        env=os.environ | {PARENT: str(os.getpid())} | env,
        start_new_session=True,
    )


def main() -> int:
    if sys.argv[1] != "train":
        return train(RunFolder(Path(sys.argv[1])))
    import train as verb
    from vitlab.core.cli import finish
    from vitlab.sweep import worker

    if SHORT in os.environ:
        claim.BEAT, claim.STALE = 1, STALE
    worker.start = start
    del sys.argv[1]
    return finish(verb.main)


if __name__ == "__main__":
    sys.exit(main())
