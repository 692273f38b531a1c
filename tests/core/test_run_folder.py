"""The run folder: nothing half-written, nothing overwritten, nothing damaged passes for sound."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitlab.core import run_folder as module
from vitlab.core.errors import UserError
from vitlab.core.run_folder import (
    RunFolder,
    Summary,
    checksum_file,
    copy_checkpoint,
    publish,
    verify,
    write_atomic,
)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {"seed": 1})
    assert run.read_config() == {"seed": 1}
    with pytest.raises(UserError, match="resume="):
        RunFolder.create(tmp_path / "run", {"seed": 2})
    assert run.read_config() == {"seed": 1}


def test_find_takes_the_folder_or_a_file_in_it_and_suggests_a_neighbour(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "study" / "run1", {})
    run.checkpoints.mkdir()
    for path in (run.path, run.config, run.checkpoints, run.last):
        assert RunFolder.find(path).path == run.path
    with pytest.raises(UserError, match=r"does not exist .did you mean .*run1"):
        RunFolder.find(tmp_path / "study" / "run2")
    with pytest.raises(UserError, match=r"holds 1 runs.*run1"):
        RunFolder.find(tmp_path / "study")


@pytest.mark.parametrize("content", [b"", b"[1]", b"a: [", b"\xff\xfe\x00"])
def test_an_unreadable_config_is_said_plainly(tmp_path: Path, content: bytes) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    run.config.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        run.read_config()


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    other = (
        "import sys; from vitlab.core.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).lock(): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", other, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=f"process {process.pid} "), run.lock():
            pass
        process.kill()  # a lock goes with its process, even by kill -9
    with run.lock():
        pass


def new_checkpoint(run: RunFolder, content: bytes) -> Path:
    run.checkpoints.mkdir(exist_ok=True)
    temporary = run.checkpoints / ".new"
    temporary.write_bytes(content)
    return temporary


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    publish(new_checkpoint(run, b"weights"), run.last)
    assert run.checkpoint() == run.last
    run.last.write_bytes(b"weighty")
    with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
        run.checkpoint()


def test_a_kill_between_checksum_and_rename_leaves_a_sound_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    publish(new_checkpoint(run, b"one"), run.last)
    temporary = new_checkpoint(run, b"two")

    def killed(source: Path, target: Path) -> None:
        if Path(target) == run.last:
            raise KeyboardInterrupt
        real(source, target)

    real = os.replace
    monkeypatch.setattr(module.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(temporary, run.last)
    monkeypatch.undo()
    assert run.last.read_bytes() == b"one"
    verify(run.last)
    publish(temporary, run.last)
    verify(run.last)
    assert len(checksum_file(run.last).read_text().split()) == 2


def test_best_and_last_may_share_one_file_without_sharing_their_fate(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    temporary = new_checkpoint(run, b"epoch 1")
    copy_checkpoint(temporary, run.best)
    publish(temporary, run.last)
    publish(new_checkpoint(run, b"epoch 2"), run.last)
    assert (run.best.read_bytes(), run.last.read_bytes()) == (b"epoch 1", b"epoch 2")
    verify(run.best)
    verify(run.last)


def test_summary_merges_and_survives_a_damaged_file(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    Summary(run).update(status="running", train={"epochs": 1})
    Summary(run).update(train={"steps": 5})
    assert json.loads(run.summary.read_text()) == {
        "status": "running",
        "train": {"epochs": 1, "steps": 5},
    }
    with pytest.raises(ValueError, match="JSON"):
        Summary(run).update(loss=float("nan"))
    run.summary.write_text("{")
    Summary(run).update(status="failed")
    assert json.loads(run.summary.read_text()) == {"status": "failed"}


def test_a_folder_that_is_moved_under_its_run_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {"seed": 1})
    summary = Summary(run)
    summary.update(status="running")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"run was moved or deleted .* resume=<there> goes on"):
        summary.update(status="failed")
