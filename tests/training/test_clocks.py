"""A wall clock that jumps back, in a run or between two sessions of it, changes no result and no duration."""

import itertools
import time
from pathlib import Path

import pytest

from tests.chaos import read_series
from tests.conftest import Train, checkpoint, same_weights, summary
from vitlab.core.run_folder import RunFolder
from vitlab.training.run import run as run_folder

SAVED = ("logger=tensorboard", "callbacks.checkpoint.every_minutes=1e-6")
HOUR = 3600.0


def test_a_clock_that_runs_backwards(finished: Path, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(time.time(), -HOUR)
    monkeypatch.setattr(time, "time", lambda: next(now))
    run = train(*SAVED)
    assert same_weights(finished, run)
    assert checkpoint(run, "previous")["global_step"] == 15, "every_minutes is measured by another clock"
    trained = summary(run)["train"]
    assert 0 < trained["wall_seconds"] < HOUR
    assert trained["images_per_second"] > 0


def test_a_clock_set_back_before_a_resume(
    stopped: Train, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(*SAVED)
    run = stopped(12, *SAVED)
    before = summary(run)["train"]["wall_seconds"]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 24 * HOUR)
    run_folder(RunFolder(run))
    assert same_weights(whole, run)
    assert read_series(run) == read_series(whole)
    assert 0 < before < summary(run)["train"]["wall_seconds"] < HOUR
