"""Checkpoint files: nothing half-written, nothing damaged passes for sound."""

import os
from pathlib import Path

import pytest

from vitlab.core.checkpoint import checksum_file, copy_checkpoint, publish, verify
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    return folder


def new_checkpoint(run: RunFolder, content: bytes) -> Path:
    temporary = run.checkpoints / ".new"
    temporary.write_bytes(content)
    return temporary


def test_a_flipped_byte_is_found(run: RunFolder) -> None:
    publish(new_checkpoint(run, b"weights"), run.last)
    verify(run.last)
    run.last.write_bytes(b"weighty")
    with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
        verify(run.last)


def test_a_kill_between_checksum_and_rename_leaves_a_sound_checkpoint(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(new_checkpoint(run, b"one"), run.last)
    temporary = new_checkpoint(run, b"two")

    def killed(source: Path, target: Path) -> None:
        if Path(target) == run.last:
            raise KeyboardInterrupt
        real(source, target)

    real = os.replace
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(temporary, run.last)
    monkeypatch.undo()
    assert run.last.read_bytes() == b"one"
    verify(run.last)
    publish(temporary, run.last)
    verify(run.last)
    assert len(checksum_file(run.last).read_text().split()) == 2


def test_best_and_last_may_share_one_file_without_sharing_their_fate(run: RunFolder) -> None:
    temporary = new_checkpoint(run, b"epoch 1")
    copy_checkpoint(temporary, run.best)
    publish(temporary, run.last)
    publish(new_checkpoint(run, b"epoch 2"), run.last)
    assert (run.best.read_bytes(), run.last.read_bytes()) == (b"epoch 1", b"epoch 2")
    verify(run.best)
    verify(run.last)
