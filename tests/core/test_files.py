"""Writing files: a reader sees the old one or the new one."""

import os
from pathlib import Path

import pytest

from vitlab.core.errors import UserError
from vitlab.core.files import make_folder, write_atomic


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


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/folder"])
def test_a_folder_that_cannot_be_made_is_answered_with_a_sentence(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="nothing can be written to the folder"):
        make_folder(tmp_path / place)
    assert make_folder(tmp_path / "a" / "b").is_dir()
