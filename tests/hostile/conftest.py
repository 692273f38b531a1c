"""Files that a person is handed: nothing in them runs, memory is bounded, nothing outside changes."""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.hostile.helpers import Answers
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import Summary

ROOM = 2**30  # bytes of addresses that may be taken beside those that are there; threads and libraries too


@pytest.fixture(autouse=True)
def guarded(tmp_path: Path) -> Iterator[None]:
    """Nothing beside the run folder changes, and memory has an end."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("kept")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["precious"]
    assert (tmp_path / "outside" / "precious").read_text() == "kept"
    assert not (tmp_path / "owned").exists()


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Answers:
    return Answers(monkeypatch, capsys)


@pytest.fixture
def unfinished(copied: Path) -> Path:
    """A run whose training is done, but for its test."""
    Summary(RunFolder(copied).summary).update(status="interrupted")
    return copied


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    return tmp_path / "image.png"
