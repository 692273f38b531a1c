"""Where validation turned, and the end of a run that has not become better for a while."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY, same_weights, started, summary
from vitlab.training.callbacks.record import find_turns

Train = Callable[..., Path]
# So small a rate that the accuracy stays what it is: no epoch is better than the first.
STILL = ("optimizer.lr=1e-12", "trainer.max_epochs=8", "callbacks.early_stopping.patience=2")


def epochs(folder: Path) -> list[int]:
    with open(folder / "metrics.csv", newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def test_the_epochs_at_which_validation_was_best_are_told_apart() -> None:
    rows = [
        {"epoch": 1, "val/loss": 2.0, "val/accuracy": 0.3},
        {"epoch": 2},
        {"epoch": 3, "val/loss": 1.5, "val/accuracy": 0.4},
        {"epoch": 4, "val/loss": 1.6, "val/accuracy": 0.5},
        {"epoch": 5, "val/loss": 1.7, "val/accuracy": 0.5},
    ]
    assert find_turns(rows) == {"loss_epoch": 3, "accuracy_epoch": 4}
    assert find_turns([{"epoch": 1}]) == {"loss_epoch": None, "accuracy_epoch": None}


def test_every_run_says_where_it_turned(train: Train) -> None:
    turned = summary(train())["turned"]
    assert {*turned} == {"loss_epoch", "accuracy_epoch"}
    assert turned["accuracy_epoch"] in (1, 2)
    assert summary(train("data.val_size=0", name="all"))["turned"]["loss_epoch"] is None


def test_a_run_that_stands_still_ends(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(*STILL)
    assert epochs(folder) == [1, 2, 3]
    assert summary(folder)["status"] == "finished"
    assert "note: ended early" in capsys.readouterr().out


def test_a_run_that_was_killed_when_it_had_stopped_stays_stopped(train: Train, tmp_path: Path) -> None:
    whole = train(*STILL, name="whole")
    killed = tmp_path / "killed"
    with started(*TINY, *STILL, f"hydra.run.dir={killed}") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 3/8"):
                break
        while not (killed / "checkpoints" / "last.ckpt").exists():
            pass
        process.kill()
    import sys

    with pytest.MonkeyPatch.context() as patch:
        import train as verb

        patch.setattr(sys, "argv", ["train.py", f"resume={killed}"])
        verb.main()
    assert epochs(killed) == epochs(whole)
    assert same_weights(whole, killed)
