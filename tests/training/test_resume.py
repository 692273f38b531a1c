"""A run that was killed or interrupted, and resumed, ends as if it had never stopped, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, TINY, checkpoint, same_weights, slow, summary, verb
from vitlab.core.errors import UserError
from vitlab.core.hardware import has_compiler
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import Interrupted
from vitlab.training.run import run

Train = Callable[..., Path]

# Dies by SIGKILL, or is sent a signal, when the loader hands out its n-th batch.
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


@pytest.fixture
def fresh(train: Train, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make a run folder without training in it."""

    def make(*overrides: str, name: str = "stopped") -> Path:
        with monkeypatch.context() as patch:
            patch.setattr("vitlab.training.run.run", lambda *given: None)
            return train(*overrides, name=name)

    return make


def rows(folder: Path) -> list[dict[str, float]]:
    return read_metrics(RunFolder(folder))


# Every save point counts: with so small an interval there is a checkpoint after each optimizer step, so
# the kill at batch n leaves the state of step n - 1. Two epochs of eight batches; 9 is the first batch
# of the second.
@pytest.mark.parametrize("batch", [slow(1), slow(4), 9, slow(14)])
def test_after_kill_9_the_same_weights(train: Train, fresh: Train, batch: int) -> None:
    options = ("callbacks.checkpoint.every_minutes=1e-6",)
    whole, stopped = train(*options, name="whole"), fresh(*options)
    assert end_at(stopped, batch, signal.SIGKILL).returncode == -signal.SIGKILL
    run(RunFolder(stopped))
    assert summary(stopped)["train"]["resumed_at"] == [batch - 1]
    assert same_weights(whole, stopped)
    assert same_weights(whole, stopped, "best")
    assert rows(whole) == [pytest.approx(row, rel=1e-6) for row in rows(stopped)]
    for key in ("status", "metrics", "tested", "per_class"):
        assert summary(whole)[key] == summary(stopped)[key]


@pytest.mark.parametrize("batch", [slow(4), 9])
def test_the_average_and_the_raw_weights_go_on(train: Train, fresh: Train, batch: int) -> None:
    options = ("callbacks.checkpoint.every_minutes=1e-6", "callbacks.ema.decay=0.7")
    whole, stopped = train(*options, name="whole"), fresh(*options)
    end_at(stopped, batch, signal.SIGKILL)
    run(RunFolder(stopped))
    assert summary(stopped)["train"]["resumed_at"] == [batch - 1]
    for name in ("last", "best"):
        assert same_weights(whole, stopped, name)
        a, b = (checkpoint(folder, name)["raw_state_dict"] for folder in (whole, stopped))
        assert all(torch.equal(a[key], b[key]) for key in a)
    for key in ("metrics", "tested", "per_class"):
        assert summary(whole)[key] == summary(stopped)[key]


@pytest.mark.slow
def test_killed_twice_under_accumulation_between_checkpoints(train: Train, fresh: Train) -> None:
    options = ("trainer.accumulate_grad_batches=3", "trainer.max_epochs=3", "augment=basic")
    whole, stopped = train(*options, name="whole"), fresh(*options)
    end_at(stopped, 12, signal.SIGKILL)  # back to the end of the first epoch
    end_at(stopped, 7, signal.SIGKILL)
    run(RunFolder(stopped))
    assert summary(stopped)["train"]["resumed_at"] == [3, 3]
    assert same_weights(whole, stopped)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("trainer.max_steps=11", "trainer.max_epochs=-1"), ("data.val_size=0",)])
def test_kinds_of_run_end(train: Train, fresh: Train, options: tuple[str, ...]) -> None:
    options += ("callbacks.checkpoint.every_minutes=1e-6",)
    whole, stopped = train(*options, name="whole"), fresh(*options)
    end_at(stopped, 10, signal.SIGKILL)
    run(RunFolder(stopped))
    assert same_weights(whole, stopped)
    assert rows(whole) == [pytest.approx(row, rel=1e-6) for row in rows(stopped)]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), slow(signal.SIGTERM, 143)])
def test_a_signal_stops_at_the_next_step_with_a_checkpoint(
    train: Train, fresh: Train, signum: signal.Signals, code: int
) -> None:
    whole, stopped = train(name="whole"), fresh()
    ended = end_at(stopped, 4, signum)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"python train.py resume={stopped}" in ended.stdout
    assert summary(stopped)["status"] == "interrupted"
    assert checkpoint(stopped)["global_step"] == 4
    run(RunFolder(stopped))
    assert summary(stopped)["train"]["resumed_at"] == [4]
    assert same_weights(whole, stopped)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), slow(signal.SIGTERM, 143)])
@pytest.mark.parametrize(("batch", "step"), [(4, 2), slow(8, 3)])
def test_a_signal_under_accumulation_waits_for_the_optimizer_step_or_the_epoch(
    fresh: Train, signum: signal.Signals, code: int, batch: int, step: int
) -> None:
    stopped = fresh("trainer.accumulate_grad_batches=3")
    assert end_at(stopped, batch, signum).returncode == code
    assert checkpoint(stopped)["global_step"] == step
    assert summary(stopped)["status"] == "interrupted"


def test_killed_before_the_test_tests_without_training_again(
    train: Train, fresh: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning

    def killed(*args: object, **kwargs: object) -> None:
        raise Interrupted(signal.SIGTERM)

    whole, stopped = train(name="whole"), fresh()
    with monkeypatch.context() as patch:
        patch.setattr(lightning.Trainer, "test", killed)
        with pytest.raises(Interrupted):
            run(RunFolder(stopped))
    assert summary(stopped)["status"] == "interrupted"
    run(RunFolder(stopped))
    assert summary(stopped)["metrics"] == summary(whole)["metrics"]
    assert same_weights(whole, stopped)


def test_a_finished_run_is_left_alone(train: Train) -> None:
    folder = train()
    before = (
        (folder / "summary.json").read_bytes(),
        (folder / "checkpoints/last.ckpt").stat().st_mtime_ns,
    )
    run(RunFolder(folder))
    after = (
        (folder / "summary.json").read_bytes(),
        (folder / "checkpoints/last.ckpt").stat().st_mtime_ns,
    )
    assert before == after


def test_a_damaged_checkpoint_is_refused_and_kept(fresh: Train) -> None:
    stopped = fresh()
    end_at(stopped, 10, signal.SIGKILL)
    last = stopped / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.ckpt is damaged.*best\.ckpt"):
        run(RunFolder(stopped))
    assert last.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short"])
def test_what_is_not_a_checkpoint_is_said_plainly(fresh: Train, content: bytes) -> None:
    stopped = fresh()
    (stopped / "checkpoints").mkdir()
    (stopped / "checkpoints" / "last.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        run(RunFolder(stopped))


def test_resume_takes_nothing_beside_it_and_a_folder_that_exists(fresh: Train) -> None:
    stopped = fresh()
    refused = verb(f"resume={stopped}", "optimizer.lr=1")
    assert refused.returncode == 1
    assert "optimizer.lr=1" in refused.stderr
    missing = verb(f"resume={stopped}x")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ")
    assert str(stopped) in missing.stderr, "the nearest run is named"


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
def test_ctrl_c_at_the_terminal_and_resume_by_the_printed_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [*TINY, f"hydra.run.dir={folder}", "trainer.max_epochs=2000"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to every process in front
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"resume={folder}" in out
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
