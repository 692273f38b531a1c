"""What docs/cluster.md promises of sweeps on SLURM."""

import json
import os
import re
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.cluster.slurm import LONG, Slurm, epochs, poll
from tests.conftest import TINY, same_weights, summary

# Three jobs that train the same: what a job keeps on the disk, and how often, changes no weight.
SAME = [*LONG, "callbacks.checkpoint.every_minutes=5,6,7"]
JOBS = [f"checkpoint.every_minutes-{minutes}" for minutes in (5, 6, 7)]
LAUNCHER = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"]
NO_GPU = "hydra.launcher.gpus_per_node=null"


def sweep(*typed: str) -> list[str]:
    return ["python", "train.py", "-m", *typed]


def number_of_array(folder: Path) -> str:
    """Return the number of the jobs that a sweep has queued last, once it has."""
    found = folder / ".submitit"
    poll(lambda: list(found.glob("*/*submitted.pkl")))
    return str(max(int(path.name.partition("_")[0]) for path in found.iterdir() if path.is_dir()))


def shares(folder: Path) -> dict[str, dict[str, str]]:
    """Return the environments of a sweep's jobs that train now, by the names of the jobs."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().split("\0")
            pairs = (process / "environ").read_text().split("\0")
        except OSError:  # it has ended
            continue
        if command[1:3] == ["-m", "vitlab"] and command[3].startswith(str(folder)):
            found[Path(command[3]).name] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return found


def test_jobs_share_allocations_and_each_has_its_part(slurm: Slurm, tmp_path: Path) -> None:
    typed = [*TINY, "seed=1,2,3", f"hydra.sweep.dir={tmp_path}", *LAUNCHER]
    typed += ["hydra.launcher.gpus_per_node=2", "hydra.launcher.cpus_per_task=2"]
    seen: dict[str, dict[str, str]] = {}
    with slurm.popen(*sweep(*typed, "sweep.jobs_per_allocation=2")) as process:
        while process.poll() is None:
            seen |= shares(tmp_path)
        printed = process.stdout.read() if process.stdout else ""
    assert process.returncode == 0, printed
    assert "[3/3]" in printed
    assert [summary(tmp_path / f"seed-{seed}")["status"] for seed in (1, 2, 3)] == ["finished"] * 3
    together = defaultdict(list)
    for name, env in seen.items():
        assert env["VITLAB_CORES"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
        assert "SLURM_NTASKS" not in env, "or Lightning would take it for a rank"
        together[env["SLURM_JOB_ID"]].append((name, env["CUDA_VISIBLE_DEVICES"]))
    first, second = sorted(together.values(), key=len, reverse=True)
    assert sorted(gpu for _, gpu in first) == ["0", "1"]
    assert len(second) == 1
    allocations = len(list((tmp_path / ".submitit").glob("*/*submitted.pkl")))
    assert allocations == 2
    assert "is already finished: 3 jobs" in slurm.call(*sweep(*typed, "sweep.jobs_per_allocation=2"))
    assert len(list((tmp_path / ".submitit").glob("*/*submitted.pkl"))) == allocations


def test_a_sweep_loses_nothing_and_repeats_nothing(slurm: Slurm, tmp_path: Path, undisturbed: Path) -> None:
    typed = sweep(*SAME, f"hydra.sweep.dir={tmp_path}", *LAUNCHER, NO_GPU)
    with slurm.popen(*typed) as process:
        number = number_of_array(tmp_path)
        folders = [tmp_path / name for name in JOBS]
        dies, cancelled, warned = (f"{number}_{task}" for task in range(3))
        poll(lambda: all(epochs(folder) >= 2 for folder in folders))
        node = slurm.show(dies)["NodeList"]
        slurm.call("scancel", "--signal=USR2", warned)  # as submitit's --signal, when the time is nearly up
        slurm.call("scancel", cancelled)
        poll(lambda: cancelled not in slurm.queue())
        slurm.power_off(node)
        for job in (dies, warned):
            slurm.start_now(job)
        printed, _ = process.communicate(timeout=400)
    slurm.repair(node)  # not before: SLURM's own belated orders to end would reach the jobs' second lives
    assert process.returncode == 1, printed
    assert "error: 1 of 3 jobs did not run to their end; resume with:" in printed
    assert [summary(folder)["status"] for folder in folders] == ["finished", "interrupted", "finished"]
    assert len(summary(folders[2])["train"]["resumed_at"]) == 1, "SIGUSR2 has left a checkpoint"
    before = [(folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns for folder in folders]
    slurm.call(*typed)
    after = [(folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns for folder in folders]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert all(same_weights(undisturbed, folder) for folder in folders)


def test_ctrl_c_empties_the_queue_and_leaves_a_checkpoint(slurm: Slurm, tmp_path: Path) -> None:
    one = "hydra.launcher.array_parallelism=1"
    typed = sweep(*SAME, "trainer.max_epochs=2000", f"hydra.sweep.dir={tmp_path}", *LAUNCHER, NO_GPU, one)
    with slurm.popen(*typed) as process:
        poll(lambda: epochs(tmp_path / JOBS[0]) >= 2)
        assert len(slurm.queue()) == 3
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    poll(lambda: not slurm.queue(), 30)
    assert summary(tmp_path / JOBS[0])["status"] == "interrupted"
    assert f"sweep.resume={tmp_path}" in printed


def test_what_slurm_refuses_is_said(slurm: Slurm, tmp_path: Path) -> None:
    typed = sweep(
        *TINY, "seed=1,2", f"hydra.sweep.dir={tmp_path}", *LAUNCHER, "hydra.launcher.partition=none"
    )
    with slurm.popen(*typed) as process:
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    last = printed.strip().splitlines()[-1]
    assert last.startswith("error: the sweep cannot be queued as hydra.launcher says: ")
    assert "invalid partition" in last
    assert "Traceback" not in printed


def test_tasks_of_one_allocation_work_on_one_sweep(slurm: Slurm, scripts: Any, undisturbed: Path) -> None:
    script = scripts("packed.sh")
    small = ("--ntasks=2", "--cpus-per-task=1", "--mem=1G", "--gpus-per-task=1")
    job = slurm.submit(script, small, *SAME)
    folder = script.parent / job
    poll(lambda: sum(epochs(folder / name) >= 2 for name in JOBS) == 2)
    gpus = {env["CUDA_VISIBLE_DEVICES"] for env in shares(folder).values()}
    assert gpus == {"0", "1"}, "two jobs at a time, and each has a GPU of its own"
    slurm.call("scancel", "--signal=USR1", job)
    slurm.start_now(job)
    finish_sweep(slurm, script, job)
    assert all(same_weights(undisturbed, folder / name) for name in JOBS)
    assert sorted(len(summary(folder / name)["train"]["resumed_at"]) for name in JOBS) == [0, 1, 1]
    states = [entry["state"] for entry in json.loads((folder / "sweep.json").read_text())["jobs"]]
    assert states == ["finished"] * 3
    assert re.search(r"^1: ", slurm.log(script, job), re.M), "both tasks speak, by their numbers"


def finish_sweep(slurm: Slurm, script: Path, job: str) -> None:
    ended = slurm.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    assert ended["JobState"] == "COMPLETED", slurm.log(script, job)
