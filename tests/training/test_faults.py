"""Faults injected for real: what was saved is kept, one sentence says what to do, and the run goes on."""

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, Train, checkpoint, on_two, slow, started, summary, wait_for
from tests.training.test_resume import assert_alike, end_at, flip
from vitlab.core.checkpoint import verify
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.training.run import run

OFTEN = "callbacks.checkpoint.every_minutes=1e-6"  # a checkpoint after each optimizer step


@pytest.fixture
def killed(fresh: Train) -> Path:
    """A run that was killed in its twelfth batch: last.ckpt is of step 11, previous.ckpt of step 10."""
    folder = fresh(OFTEN)
    assert end_at(folder, 12, signal.SIGKILL).returncode == -signal.SIGKILL
    return folder


def spoil(path: Path) -> None:
    path.write_bytes(flip(path.read_bytes()))


def put_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def put_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/vitlab/nowhere")


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


# generations of checkpoints


def test_last_and_the_one_before_it_are_files_of_their_own(killed: Path) -> None:
    last, previous = (killed / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    assert last.stat().st_ino != previous.stat().st_ino
    assert [checkpoint(killed, name)["global_step"] for name in ("last", "previous")] == [11, 10]
    verify(last)
    verify(previous)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (spoil, "damaged: its SHA-256"),
        (Path.unlink, "is missing"),
        slow(lambda path: path.write_bytes(b""), "damaged"),
        slow(put_folder, "is not a file"),
        slow(put_link, "is not a file"),
        slow(put_fifo, "is not a file"),
    ],
)
def test_without_a_sound_last_checkpoint_a_run_goes_on_from_the_one_before(
    finished: Path,
    killed: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    said: str,
) -> None:
    damage(killed / "checkpoints" / "last.ckpt")
    run(RunFolder(killed))
    out = capsys.readouterr().out
    assert said in out
    assert "previous.ckpt, at optimizer step 10" in out
    assert summary(killed)["train"]["resumed_at"] == [10]
    assert_alike(finished, killed)
    if damage is spoil:
        assert (killed / "checkpoints" / "last.ckpt.damaged").exists()  # nothing is thrown away


def test_a_checkpoint_that_lies_elsewhere_is_read_and_never_written_through(
    finished: Path, killed: Path, tmp_path: Path
) -> None:
    last, elsewhere = killed / "checkpoints" / "last.ckpt", tmp_path / "elsewhere.ckpt"
    last.rename(elsewhere)
    before = elsewhere.read_bytes()
    last.symlink_to(elsewhere)
    run(RunFolder(killed))
    assert summary(killed)["train"]["resumed_at"] == [11]
    assert_alike(finished, killed)
    assert not last.is_symlink()
    assert elsewhere.read_bytes() == before


def test_the_best_checkpoint_serves_where_it_is_the_newest_that_can_be_read(
    finished: Path, fresh: Train
) -> None:
    folder = fresh()
    end_at(folder, 12, signal.SIGKILL)  # best and last are of the first epoch, step 8
    for name in ("last", "previous"):
        (folder / "checkpoints" / f"{name}.ckpt").unlink(missing_ok=True)
    run(RunFolder(folder))
    assert summary(folder)["train"]["resumed_at"] == [8]
    assert_alike(finished, folder)


def test_a_run_that_has_only_a_best_checkpoint_from_within_an_epoch_starts_over(
    train: Train, fresh: Train
) -> None:
    options = ("trainer.val_check_interval=3",)
    whole, folder = train(*options, name="whole"), fresh(*options)
    end_at(folder, 6, signal.SIGKILL)  # the one checkpoint is of a validation in the first epoch
    assert not (folder / "checkpoints" / "last.ckpt").exists()
    run(RunFolder(folder))
    assert summary(folder)["train"]["resumed_at"] == [0]
    assert_alike(whole, folder)


def test_a_run_whose_checkpoints_are_all_gone_or_damaged_does_not_start_over(killed: Path) -> None:
    files = sorted((killed / "checkpoints").glob("*.ckpt"))
    for path in files:
        spoil(path)
    with pytest.raises(UserError, match=r"no checkpoint of this run can be read(.|\n)*delete .*checkpoints"):
        run(RunFolder(killed))
    assert sorted((killed / "checkpoints").glob("*.ckpt")) == files


def test_a_run_of_several_epochs_without_any_checkpoint_does_not_start_over(copied: Path) -> None:
    (copied / "summary.json").unlink()
    for path in (copied / "checkpoints").iterdir():
        path.unlink()
    before = (copied / "metrics.csv").read_text()
    with pytest.raises(UserError, match=r"tells of 2 epochs.*delete .*metrics\.csv"):
        run(RunFolder(copied))
    assert (copied / "metrics.csv").read_text() == before


# signals


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGUSR1])
def test_a_closed_terminal_and_slurms_warning_leave_a_checkpoint(
    finished: Path, stopped: Train, signum: signal.Signals
) -> None:
    before = signal.signal(signum, signal.SIG_DFL)  # though the tests may run under nohup
    try:
        folder = stopped(4, signum=signum)
    finally:
        signal.signal(signum, before)
    assert summary(folder)["status"] == "interrupted"
    assert checkpoint(folder)["global_step"] == 4
    run(RunFolder(folder))
    assert_alike(finished, folder)


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [*TINY, f"hydra.run.dir={folder}", "trainer.max_epochs=2000", "data.in_memory=false"]
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # though the tests may run under nohup
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "train.py", *arguments])
    wait_for(lambda: not os.read(terminal, 65536) or (folder / "metrics.csv").exists())
    os.close(terminal)  # the kernel hangs up
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) != 0
    assert summary(folder)["status"] == "interrupted"
    assert checkpoint(folder)["global_step"] >= 8


@pytest.mark.slow
def test_under_nohup_a_closed_terminal_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = subprocess.Popen(
        ["nohup", sys.executable, str(ROOT / "train.py"), *TINY, f"hydra.run.dir={folder}"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for((folder / "metrics.csv").exists)
    ended.send_signal(signal.SIGHUP)
    assert ended.wait(120) == 0
    assert summary(folder)["status"] == "finished"


# a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("only root may mount a file system")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_one_sentence_and_it_goes_on_when_there_is_room(
    finished: Path, fresh: Train, small_disk: Path
) -> None:
    folder = fresh(OFTEN, name=f"{small_disk.name}/run")
    size = (finished / "checkpoints" / "last.ckpt").stat().st_size
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - int(2.6 * size)))  # two fit, and no third
    ended = end_at(folder, 10**6, signal.SIGKILL)  # to its end
    assert ended.returncode == 1
    assert "error: the disk is full" in ended.stderr
    assert "MB are free" in ended.stderr
    assert f"resume={folder}" in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    assert summary(folder)["status"] == "failed"
    assert not list((folder / "checkpoints").glob(".*"))
    verify(folder / "checkpoints" / "last.ckpt")
    ballast.unlink()
    run(RunFolder(folder))
    assert_alike(finished, folder)


# ranks


@pytest.mark.slow
def test_a_rank_that_dies_is_named_in_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(*on_two(*TINY), f"hydra.run.dir={folder}", "trainer.max_epochs=2000") as process:
        wait_for((folder / "metrics.csv").exists)
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid), "-f", "vitlab"], capture_output=True, text=True
        )
        os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: rank 1 of 2 was killed by signal 9 (SIGKILL)" in out
    assert f"resume={folder}" in out
    assert "Traceback" not in out
    assert summary(folder)["status"] == "failed"
