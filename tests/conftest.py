"""What the tests share: a run small enough to train in a second, and ways to end it badly."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]

# Eight batches an epoch of a network that has every part: about a second on a CPU.
TINY = (  # noqa: SIM905
    "data=shapes data.num_train=80 data.num_test=40 data.val_size=16 data.batch_size=8 data.image_size=16 "
    "model=vit_tiny model.dim=16 model.depth=2 model.heads=2 model.dropout=0.1 trainer=cpu "
    "trainer.precision=32 trainer.max_epochs=2 compile=false callbacks.figures=false logger=none"
).split()


def slow(*values: Any) -> Any:
    """A case for ``pytest.mark.parametrize`` that only ``make test-slow`` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(1)  # networks this small only wait for each other


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train in this process as ``python train.py`` does and return the run folder."""
    monkeypatch.syspath_prepend(str(ROOT))
    import train as verb

    def call(*overrides: str, name: str = "run", base: Sequence[str] | None = None) -> Path:
        folder = tmp_path / name
        # TINY is looked up here and not in the signature: a test may put another in its place.
        arguments = {o.split("=", 1)[0]: o for o in [*(base or TINY), f"hydra.run.dir={folder}", *overrides]}
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments.values()])
        verb.main()
        return folder

    return call


def verb(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``python train.py`` as a user does."""
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd or ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def same_weights(one: Path, other: Path, name: str = "last") -> bool:
    """Say whether two runs ended with the same weights, bit for bit."""
    a, b = (checkpoint(folder, name)["state_dict"] for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@contextlib.contextmanager
def started(*arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``python train.py`` in the background, in a process group of its own."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
