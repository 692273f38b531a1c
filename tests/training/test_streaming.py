"""Runs that stream their images train as runs that hold them, and stop and go on as those do."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, Train, same_weights, slow, summary, wait_for
from tests.data.helpers import image_tree
from tests.training.test_resume import DRIVER
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.training.run import run

# The signal goes to every process in front, as from a terminal or a scheduler.
GROUP_DRIVER = DRIVER.replace("os.kill(os.getpid(), signum)", "os.killpg(0, signum)")
STREAMED = ("data.in_memory=false", "data.num_workers=2", "augment=basic")


@pytest.fixture
def on_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let `train` and `fresh` run on 96 files: 80 to train on, of which 16 are held out, and 16."""

    def use(cache: bool) -> None:
        root = image_tree(tmp_path / "set", {"train/a": 40, "train/b": 40, "test/a": 8, "test/b": 8})
        options = [o for o in TINY if not o.startswith(("data=", "data.num_train", "data.num_test"))]
        options += [f"data.root={root}", f"data.cache={tmp_path / 'cache' if cache else 'null'}"]
        monkeypatch.setattr("tests.conftest.TINY", ["data=image_folder", *options])

    return use


@pytest.mark.parametrize("kind", ["shapes", "files", "cached files"])
def test_streamed_and_in_memory_end_with_the_same_weights(
    train: Train, on_files: Callable[..., None], kind: str
) -> None:
    if kind != "shapes":
        on_files(cache=kind == "cached files")
    held = train("data.in_memory=true", "augment=basic", name="held")
    streamed = train(*STREAMED, name="streamed")
    assert same_weights(held, streamed)
    assert summary(held)["metrics"] == summary(streamed)["metrics"]
    log = (held / "train.log").read_text()
    assert "in memory on cpu (" in log
    assert f"{'shapes' if kind == 'shapes' else 'set'}  64 train" in log
    log = (streamed / "train.log").read_text()
    assert "streamed by 2 worker(s) (" in log
    assert ("; decoded in " in log) == (kind == "cached files")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), slow(signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_stops_at_the_next_step_with_a_checkpoint(
    train: Train, fresh: Train, on_files: Callable[..., None], signum: signal.Signals, code: int
) -> None:
    on_files(cache=signum == signal.SIGTERM)
    whole, stopped = train(*STREAMED, name="whole"), fresh(*STREAMED)
    process = subprocess.Popen(
        [sys.executable, "-c", GROUP_DRIVER, str(stopped), "4", str(int(signum))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    assert err == "", "no word of a worker"
    assert out.count("stopping at the next optimizer step") == 1
    wait_for(lambda: not _group_lives(process.pid), 10)  # no worker is left
    run(RunFolder(stopped))
    assert summary(stopped)["train"]["resumed_at"] == [4]
    assert same_weights(whole, stopped)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_broken_file_ends_the_run_with_its_name(
    fresh: Train, on_files: Callable[..., None], tmp_path: Path
) -> None:
    on_files(cache=False)
    folder = fresh(*STREAMED, "data.normalization=half")
    (tmp_path / "set/train/a/007.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"file cannot be read(.|\n)*007\.png") as error:
        run(RunFolder(folder))
    assert "Traceback" not in str(error.value)
    assert summary(folder)["status"] == "failed"
