"""One small trained run, which the tests of what comes after training share."""

import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run on built-in images."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        import train as verb

        patch.setattr(sys, "argv", ["train.py", *TINY, f"hydra.run.dir={folder}"])
        verb.main()
    return folder
