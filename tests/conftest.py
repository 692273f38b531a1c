"""What the tests share: a run small enough to train in a second, and ways to end it badly."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train as train_verb
from vitlab.core.checkpoint import RAW
from vitlab.core.signals import Interrupted
from vitlab.data import datasets
from vitlab.data.loader import TrainLoader

Train = Callable[..., Path]
ROOT = Path(__file__).parents[1]
# Before a test imports them; vitlab's trackers do the same.
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}

# Eight batches an epoch of a network that has every part: about a second on a CPU. Of the six test batches
# the last has one image.
TINY = (  # noqa: SIM905
    "data=shapes data.num_train=80 data.num_test=41 data.val_size=16 data.batch_size=8 data.image_size=16 "
    "model=vit_tiny model.dim=16 model.depth=2 model.heads=2 model.dropout=0.1 trainer=cpu "
    "trainer.precision=32 trainer.max_epochs=2 compile=false callbacks.figures=false logger=none"
).split()


def slow(*values: Any) -> Any:
    """A case for ``pytest.mark.parametrize`` that only ``make test-slow`` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(1)  # networks this small only wait for each other


@contextlib.contextmanager
def logging_restored() -> Iterator[None]:
    """Take away the handlers that Hydra's verbose mode leaves, with the stream of that moment."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    with logging_restored():
        yield


def train_in(folder: Path, *overrides: str, base: Sequence[str] | None = None) -> Path:
    """Train in this process as ``python train.py`` does and return the run folder."""
    # TINY is looked up here and not in the signature: a test may put another in its place.
    given = [*(base or TINY), f"hydra.run.dir={folder}", *overrides]
    train_verb.train(list({o.split("=", 1)[0]: o for o in given}.values()))
    return folder


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """`train_in` a folder of the test's own."""
    return lambda *overrides, name="run", base=None: train_in(tmp_path / name, *overrides, base=base)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of TINY, which no test changes. Its first epoch is better than its second."""
    return train_in(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run, to change."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def fresh(train: Train, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Make a run folder without training in it."""

    def make(*overrides: str, name: str = "stopped") -> Path:
        with monkeypatch.context() as patch:
            patch.setattr("vitlab.training.run.run", lambda *given: None)
            return train(*overrides, name=name)

    return make


@pytest.fixture
def stopped(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train in this process, which gets a signal as the loader hands out the n-th batch."""

    def call(number: int, *overrides: str, signum: int = signal.SIGINT, **options: Any) -> Path:
        real, count = TrainLoader.__iter__, 0

        def counting(self: TrainLoader) -> Iterator[Any]:
            nonlocal count
            for batch in real(self):
                count += 1
                if count == number:
                    os.kill(os.getpid(), signum)
                yield batch

        with monkeypatch.context() as patch:
            patch.setattr(TrainLoader, "__iter__", counting)
            with pytest.raises(Interrupted) as stop:
                train(*overrides, name="stopped", **options)
        assert stop.value.exit_code == 128 + signum
        return tmp_path / "stopped"

    return call


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk such as NFS without a lock daemon."""

    def refuse(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """A job of SLURM whose ``scontrol`` keeps what it was called with, and fails where it is to."""
    program, calls = tmp_path / "bin" / "scontrol", tmp_path / "calls"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\n[ -z "$FAILS" ] || {{ echo no job >&2; exit 1; }}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    return lambda: calls.read_text() if calls.exists() else ""


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


def answer_without_torch(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a verb as a user does, and check that it never imported torch."""
    code = (
        f"import sys, runpy\ntry: runpy.run_path({name!r}, run_name='__main__')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stderr.strip().endswith("False"), "torch was imported"
    return ended


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def same_weights(one: Path, other: Path, name: str = "last") -> bool:
    """Say whether two runs ended with the same weights, averaged and raw, bit for bit."""
    a, b = (checkpoint(folder, name) for folder in (one, other))
    return all(equal(a.get(key, {}), b.get(key, {})) for key in ("state_dict", RAW))


def on_test_split(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return what a loaded model says of its test images, logits (N, K), and their labels (N,)."""
    images, labels = (torch.from_numpy(a) for a in datasets.build(model.config["data"]).load("test"))
    with torch.no_grad():
        return model(images), labels


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Return as soon as ``condition`` holds; fail where it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def on_two(*options: str) -> list[str]:
    """Return what is typed to train on two processes what ``options`` train on one."""
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    return [*(o for o in options if o != "trainer=cpu"), *ddp]


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
