"""Several processes train one run as one process does; a sweep runs every job once."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import (
    ROOT,
    TINY,
    Train,
    checkpoint,
    on_two,
    same_weights,
    slow,
    started,
    summary,
    verb,
    wait_for,
)
from vitlab.core.checkpoint import RAW
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder

# 41 test images on two processes: an odd one out.
OPTIONS = [*TINY, "augment=none", "model.dropout=0", "data.val_size=17"]


AVERAGED = (
    *("callbacks.ema.decay=0.9", "trainer.accumulate_grad_batches=3", "trainer.gradient_clip_val=0.1"),
    *("optimizer=sgd", "optimizer.lr=0.1"),
)
STREAMED = ("data.in_memory=false", "data.num_workers=1")


@pytest.mark.parametrize(("options", "of_two"), [((), ()), slow(AVERAGED, ()), slow((), STREAMED)])
def test_two_processes_train_as_one(
    train: Train, tmp_path: Path, options: tuple[str, ...], of_two: tuple[str, ...]
) -> None:
    one, two = train(*OPTIONS, *options, name="one"), tmp_path / "two"
    ended = verb(*on_two(*OPTIONS), *options, *of_two, f"hydra.run.dir={two}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("epoch 2/2") == 1, "one process speaks"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    for key in ("epoch", "step", "learning_rate", "train/loss", "val/loss", "val/accuracy"):
        a, b = ([row[key] for row in read_metrics(RunFolder(f))] for f in (one, two))
        assert a == pytest.approx(b, rel=1e-4), key
    for key, value in summary(one)["metrics"].items():
        assert summary(two)["metrics"][key] == pytest.approx(value, rel=1e-4), key
    for part in ("state_dict", RAW) if options == AVERAGED else ():  # Adam would divide rounding by itself
        expected, found = (checkpoint(folder)[part] for folder in (one, two))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    # accuracy = right / counted, so the count shows in the fraction.
    right = summary(two)["metrics"]["test/accuracy"] * 41
    assert right == pytest.approx(round(right), abs=1e-5)


@pytest.mark.slow
def test_two_processes_killed_and_resumed(tmp_path: Path) -> None:
    """Kill rank 0 in the first epoch, see the other go too, resume, and end with the same weights."""
    options = [*on_two(*OPTIONS), "callbacks.checkpoint.every_minutes=1e-6", "trainer.max_epochs=6"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert verb(*options, f"hydra.run.dir={whole}").returncode == 0
    with started(*options, f"hydra.run.dir={stopped}") as process:
        wait_for((stopped / "checkpoints" / "last.ckpt").exists)
        process.kill()
        wait_for(lambda: not _processes_on(stopped), 20)  # no rank outlives the first
    assert verb(f"resume={stopped}").returncode == 0
    assert len(summary(stopped)["train"]["resumed_at"]) == 1
    assert same_weights(whole, stopped)


def _processes_on(folder: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "-m vitlab" in line and str(folder) in line]


@pytest.mark.slow
def test_a_sweep_on_two_processes_runs_each_job_once_in_its_own_folder(tmp_path: Path, teacher: Path) -> None:
    student = ["model=vit_distilled_tiny" if o == "model=vit_tiny" else o for o in on_two(*OPTIONS)]
    options = ["task=distill", f"task.teacher={teacher}", "task.kind=hard,soft", "trainer.max_epochs=1"]
    ended = verb("-m", *student, *options, f"hydra.sweep.dir={tmp_path}/sweep")
    assert ended.returncode == 0, ended.stderr
    runs = sorted(p.parent for p in tmp_path.rglob("config.yaml"))
    assert [run.name for run in runs] == ["kind-hard", "kind-soft"]
    assert len(re.findall(r"^epoch 1/1", ended.stdout, re.MULTILINE)) == 2
    assert [RunFolder(run).read_config()["task"]["kind"] for run in runs] == ["hard", "soft"]
    assert all(summary(run)["status"] == "finished" for run in runs)


def test_a_failing_job_does_not_stop_the_others(tmp_path: Path) -> None:
    options = ["optimizer=sgd", "optimizer.lr=999,0.01", "trainer.gradient_clip_val=null"]
    ended = verb("-m", *OPTIONS, *options, "trainer.max_epochs=5", f"hydra.sweep.dir={tmp_path}")
    assert ended.returncode == 1
    states = [summary(tmp_path / job)["status"] for job in ("lr-999", "lr-0.01")]
    assert states == ["failed", "finished"]
    assert "diverged" in ended.stderr
    assert ended.stderr.strip().splitlines()[-1].startswith("error: 1 of 2 jobs failed")
    assert "Traceback" not in ended.stderr


def test_a_sweep_of_bad_combinations_is_refused_before_the_first_job(tmp_path: Path) -> None:
    ended = verb("-m", *OPTIONS, "model.patch_size=3,5", f"hydra.sweep.dir={tmp_path}/sweep")
    assert ended.returncode == 1
    assert "patch_size=5" in ended.stderr
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_ctrl_c_ends_the_whole_sweep_with_a_checkpoint(tmp_path: Path) -> None:
    options = ["seed=1,2", "trainer.max_epochs=2000", f"hydra.sweep.dir={tmp_path}"]
    with started("-m", *OPTIONS, *options) as process:
        wait_for((tmp_path / "seed-1" / "metrics.csv").exists)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"resume={tmp_path}/seed-1" in out
    assert f"sweep.resume={tmp_path}" in out
    assert summary(tmp_path / "seed-1")["status"] == "interrupted"
    assert RunFolder(tmp_path / "seed-2").state() == "waiting", "no further job starts"


@pytest.mark.slow
def test_torchrun_may_start_the_ranks(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [sys.executable, *torchrun, "train.py", *on_two(*OPTIONS), f"hydra.run.dir={tmp_path}/run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert summary(tmp_path / "run")["status"] == "finished"
    assert ended.stdout.count("epoch 2/2") == 1
