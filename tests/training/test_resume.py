"""A run that was killed or interrupted, and resumed, ends as if it had never stopped, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning
import pytest

from tests.conftest import (
    ROOT,
    TINY,
    Train,
    checkpoint,
    same_weights,
    slow,
    started,
    summary,
    wait_for,
)
from vitlab.core.hardware import has_compiler
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import Interrupted
from vitlab.training.run import run

# Gets a signal when the loader hands out its n-th batch.
DRIVER = """
import os, sys
from vitlab.data import loader
from vitlab.core.run_folder import RunFolder
from vitlab.core.cli import finish
import torch
torch.set_num_threads(1)
count, signum = 0, int(sys.argv[3])
real = loader.TrainLoader.__iter__
def counting(self):
    global count
    for batch in real(self):
        count += 1
        if count == int(sys.argv[2]):
            os.kill(os.getpid(), signum)
        yield batch
loader.TrainLoader.__iter__ = counting
from vitlab.training.run import run
sys.exit(finish(lambda: run(RunFolder(sys.argv[1]))))
"""


def end_at(folder: Path, batch: int, signum: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Go on with ``folder`` in another process until its n-th batch, and end it there."""
    arguments = [sys.executable, "-c", DRIVER, str(folder), str(batch), str(int(signum))]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, cwd=ROOT)


def assert_alike(whole: Path, resumed: Path) -> None:
    """Hold what a run leaves that resumed against what one leaves that never stopped."""
    for name in ("last", "best"):
        if (whole / "checkpoints" / f"{name}.ckpt").exists():
            assert same_weights(whole, resumed, name)
    rows = [read_metrics(RunFolder(folder)) for folder in (whole, resumed)]
    assert rows[0] == [pytest.approx(row, rel=1e-6) for row in rows[1]]
    for key in ("status", "metrics", "tested", "per_class"):
        assert summary(whole)[key] == summary(resumed)[key]


EMA = ("callbacks.ema.decay=0.7",)
KINDS = [("trainer.max_steps=11", "trainer.max_epochs=-1"), ("data.val_size=0",)]


# Every save point counts: with so small an interval there is a checkpoint after each optimizer step, so
# the kill at batch n leaves the state of step n - 1. Two epochs of eight batches; 9 is the first batch
# of the second.
@pytest.mark.parametrize(
    ("batch", "options"),
    [
        *(slow(1, ()), slow(4, ()), (9, ()), slow(14, ())),
        *(slow(4, EMA), (9, EMA)),
        *(slow(10, options) for options in KINDS),
    ],
)
def test_after_kill_9_the_same_weights(
    train: Train, fresh: Train, batch: int, options: tuple[str, ...]
) -> None:
    options += ("callbacks.checkpoint.every_minutes=1e-6",)
    whole, stopped = train(*options, name="whole"), fresh(*options)
    assert end_at(stopped, batch, signal.SIGKILL).returncode == -signal.SIGKILL
    run(RunFolder(stopped))
    assert summary(stopped)["train"]["resumed_at"] == [batch - 1]
    assert_alike(whole, stopped)


@pytest.mark.slow
def test_killed_twice_under_accumulation_between_checkpoints(train: Train, fresh: Train) -> None:
    options = ("trainer.accumulate_grad_batches=3", "trainer.max_epochs=3", "augment=basic")
    whole, stopped = train(*options, name="whole"), fresh(*options)
    end_at(stopped, 12, signal.SIGKILL)  # back to the end of the first epoch
    end_at(stopped, 7, signal.SIGKILL)
    run(RunFolder(stopped))
    assert summary(stopped)["train"]["resumed_at"] == [3, 3]
    assert_alike(whole, stopped)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_the_next_step_with_a_checkpoint(
    finished: Path, stopped: Train, signum: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stopped(4, signum=signum)
    assert f"python train.py resume={folder}" in capsys.readouterr().out
    assert summary(folder)["status"] == "interrupted"
    assert checkpoint(folder)["global_step"] == 4
    run(RunFolder(folder))
    assert summary(folder)["train"]["resumed_at"] == [4]
    assert_alike(finished, folder)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("batch", "step"), [(4, 2), (8, 3)])
def test_a_signal_under_accumulation_waits_for_the_optimizer_step_or_the_epoch(
    stopped: Train, signum: signal.Signals, batch: int, step: int
) -> None:
    folder = stopped(batch, "trainer.accumulate_grad_batches=3", signum=signum)
    assert checkpoint(folder)["global_step"] == step
    assert summary(folder)["status"] == "interrupted"


@pytest.mark.parametrize("options", [(), (*EMA, "data.val_size=0", "optimizer.lr=0.01")])
def test_killed_before_the_test_tests_without_training_again(
    train: Train, fresh: Train, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    def killed(*args: object, **kwargs: object) -> None:
        raise Interrupted(signal.SIGTERM)

    whole, folder = train(*options, name="whole"), fresh(*options)
    with monkeypatch.context() as patch:
        patch.setattr(lightning.Trainer, "test", killed)
        with pytest.raises(Interrupted):
            run(RunFolder(folder))
    assert summary(folder)["status"] == "interrupted"
    run(RunFolder(folder))
    assert summary(folder)["train"]["resumed_at"] == [summary(whole)["train"]["optimizer_steps"]]
    assert_alike(whole, folder)


def test_a_finished_run_is_left_alone(copied: Path) -> None:
    paths = copied / "summary.json", copied / "checkpoints/last.ckpt"
    before = [path.stat().st_mtime_ns for path in paths]
    run(RunFolder(copied))
    assert [path.stat().st_mtime_ns for path in paths] == before


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler("cpu"), reason="no C++ compiler")
def test_compiled_and_augmented_the_same_weights(train: Train, fresh: Train) -> None:
    options = ("compile=true", "augment=basic", "callbacks.checkpoint.every_minutes=1e-6")
    whole, stopped = fresh(*options, name="whole"), fresh(*options)
    end_at(whole, 10**6, signal.SIGKILL)  # in another process as well, and never ended
    end_at(stopped, 6, signal.SIGKILL)
    end_at(stopped, 10**6, signal.SIGKILL)
    assert summary(whole)["compiled"]
    assert summary(stopped)["train"]["resumed_at"] == [5]
    assert same_weights(whole, stopped)


@pytest.mark.slow
@pytest.mark.parametrize("presses", [1, 2])  # the second stops at once
def test_ctrl_c_at_the_terminal_and_resume_by_the_printed_line(tmp_path: Path, presses: int) -> None:
    folder = tmp_path / "run"
    with started(*TINY, f"hydra.run.dir={folder}", "trainer.max_epochs=2000") as process:
        wait_for((folder / "metrics.csv").exists)
        for _ in range(presses):
            os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to every process in front
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert summary(folder)["status"] in ("interrupted", "running")[:presses]
    assert f"resume={folder}" in out or presses == 2
