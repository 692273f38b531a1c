"""A disk that fills up, turns read-only or breaks: one sentence, nothing lost, and the run goes on."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos import close, read_series
from tests.conftest import Train, slow, summary
from tests.training.test_resume import assert_alike
from vitlab.core.checkpoint import verify
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.data.loader import TrainLoader
from vitlab.training.run import run

OFTEN = "callbacks.checkpoint.every_minutes=1e-6"  # a checkpoint after each optimizer step
Mount = Callable[..., None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mount as one does on a command line; all is unmounted again."""
    mounted: list[Path] = []

    def call(*options: str | Path) -> None:
        if subprocess.run(["mount", *options], capture_output=True).returncode:
            pytest.skip("only root may mount a file system")
        mounted.append(Path(options[-1]))

    yield call
    for path in reversed(mounted):
        subprocess.run(["umount", "-l", path], capture_output=True)


def read_only(mount: Mount, folder: Path) -> None:
    """Let nothing be written below a folder any more; what is open for writing stays so."""
    mount("--bind", folder, folder)
    mount("-o", "remount,ro,bind", folder)


def at_batch(patch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Act as the loader hands out its n-th batch."""
    real, count = TrainLoader.__iter__, 0

    def counting(self: TrainLoader) -> Iterator[object]:
        nonlocal count
        for batch in real(self):
            count += 1
            if count == number:
                act()
            yield batch

    patch.setattr(TrainLoader, "__iter__", counting)


def refused(folder: Path, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Run into what the disk refuses; it is to be said in one sentence, which tells how to resume."""
    with pytest.raises(UserError, match=f"{said}(.|\n)*resume={folder}"):
        run(RunFolder(folder))
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err


def test_a_disk_that_turns_read_only_ends_a_run_which_goes_on_when_it_is_mended(
    finished: Path,
    fresh: Train,
    mount: Mount,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = fresh(OFTEN)
    with monkeypatch.context() as patch:
        at_batch(patch, 12, lambda: read_only(mount, folder))
        refused(folder, "the disk can only be read", capfd)
    subprocess.run(["umount", folder], check=True)
    verify(folder / "checkpoints" / "last.ckpt")
    run(RunFolder(folder))
    assert summary(folder)["train"]["resumed_at"] == [11]
    assert_alike(finished, folder)


def test_a_disk_that_fills_up_under_tensorboard_ends_a_run_whose_curves_then_have_no_gap(
    train: Train,
    fresh: Train,
    mount: Mount,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = ("logger=tensorboard", "trainer.log_every_n_steps=1")
    whole = train(*options, name="whole")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", disk)
    folder, ballast = fresh(*options, name="disk/run"), disk / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    with monkeypatch.context() as patch:
        at_batch(patch, 10, fill)
        refused(folder, r"the disk is full.*MB are free", capfd)
    assert not list(folder.glob(".*.tmp"))
    ballast.unlink()
    run(RunFolder(folder))
    assert_alike(whole, folder)
    assert close(read_series(whole), read_series(folder))


# In two epochs of eight steps with a checkpoint after each a run syncs some 180 files and folders.
@pytest.mark.parametrize(
    ("code", "number"),
    [
        (errno.EIO, 60),
        *(slow(errno.EIO, 3), slow(errno.ESTALE, 20), slow(errno.EDQUOT, 110), slow(errno.EROFS, 137)),
    ],
)
def test_whatever_the_disk_refuses_once_a_run_says_it_and_goes_on(
    finished: Path,
    fresh: Train,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    code: int,
    number: int,
) -> None:
    folder, real, count = fresh(OFTEN), os.fsync, 0

    def failing(handle: int) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise OSError(code, os.strerror(code))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        refused(folder, "the (network )?disk", capfd)
    assert summary(folder)["status"] == "failed"
    assert not [*folder.glob(".*.tmp"), *folder.glob("checkpoints/.*.tmp")]
    run(RunFolder(folder))
    assert_alike(finished, folder)


def test_figures_that_cannot_be_written_are_a_note(
    fresh: Train, mount: Mount, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = fresh("callbacks.figures=true", "trainer.max_epochs=1")
    (folder / "figures").mkdir()
    read_only(mount, folder / "figures")
    run(RunFolder(folder))
    out, err = capfd.readouterr()
    assert out.count("note: figures could not be written: the disk can only be read") == 2
    assert "Traceback" not in out + err
    assert summary(folder)["status"] == "finished"
