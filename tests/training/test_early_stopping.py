"""Where validation turned, and the end of a run that has not become better for a while."""

from pathlib import Path

import pytest

from tests.conftest import Train, same_weights, summary
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder
from vitlab.training.callbacks import Checkpointing
from vitlab.training.callbacks.record import find_turns
from vitlab.training.run import run

# So small a rate that the accuracy stays what it is: no epoch is better than the first.
STILL = ("optimizer.lr=1e-12", "trainer.max_epochs=8", "callbacks.early_stopping.patience=2")


def epochs(folder: Path) -> list[int]:
    return [row["epoch"] for row in read_metrics(RunFolder(folder))]


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


def test_every_run_says_where_it_turned(finished: Path, train: Train) -> None:
    assert summary(finished)["turned"]["accuracy_epoch"] == 1
    assert summary(train("data.val_size=0", "trainer.max_epochs=1"))["turned"]["loss_epoch"] is None


def test_a_run_that_stands_still_ends(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(*STILL)
    assert epochs(folder) == [1, 2, 3]
    assert summary(folder)["status"] == "finished"
    assert "note: ended early" in capsys.readouterr().out


def test_a_run_that_ended_after_it_had_stopped_stays_stopped(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(*STILL, name="whole")
    real = Checkpointing.on_train_epoch_end

    def die(self: Checkpointing, *given: object) -> None:
        real(self, *given)  # type: ignore[arg-type]
        if given[0].should_stop:  # type: ignore[attr-defined]
            raise RuntimeError("as if killed, with the checkpoint of the last epoch written")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointing, "on_train_epoch_end", die)
        with pytest.raises(RuntimeError, match="as if killed"):
            train(*STILL, name="killed")
    killed = whole.with_name("killed")
    run(RunFolder(killed))
    assert epochs(killed) == epochs(whole) == [1, 2, 3]
    assert same_weights(whole, killed)
