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


@pytest.mark.parametrize("links", [True, False])
def test_of_two_that_write_a_new_file_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:  # as on exFAT and on many network disks
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file"
    write_atomic(path, b"one", new=True)
    with pytest.raises(FileExistsError):
        write_atomic(path, b"other", new=True)
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/folder"])
def test_a_folder_that_cannot_be_made_is_answered_with_a_sentence(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="nothing can be written to the folder"):
        make_folder(tmp_path / place)
    assert make_folder(tmp_path / "a" / "b").is_dir()
