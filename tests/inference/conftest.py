"""A run for the tests of evaluate.py."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def trained(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run, to write into."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take most of the time; `evaluated`, made before, has them."""
    monkeypatch.setattr("vitlab.inference.evaluate.draw", lambda *given: None)
