"""callbacks=diagnostics as a user runs it: what it writes, and that the training does not notice."""

import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import TINY, Train, checkpoint, same_weights, summary
from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import Summary
from vitlab.training.callbacks.diagnostics import read_rows
from vitlab.training.run import run

ON = ("callbacks=diagnostics", "callbacks.diagnostics.every_epochs=2", "trainer.max_epochs=3")


def rows(folder: Path) -> list[dict[str, object]]:
    return [*read_rows(RunFolder(folder))]


def test_the_network_is_measured_at_the_start_in_between_and_at_the_end(train: Train) -> None:
    folder = train(*ON, "logger=tensorboard")
    found = rows(folder)
    assert {row["epoch"] for row in found} == {0, 2, 3}
    assert {row["measure"] for row in found} == {
        *("entropy", "distance", "largest_score", "near_zero", "dead", "residual_norm", "feature_norm"),
        *("gradient_norm", "clipped_share", "update_ratio", "class_accuracy"),
    }
    heads = [row for row in found if row["measure"] == "entropy" and row["epoch"] == 3]
    assert [(row["layer"], row["head"]) for row in heads] == [
        (f"block_{block}", head) for block in range(2) for head in range(2)
    ]
    layers = [row["layer"] for row in found if row["measure"] == "update_ratio" and row["epoch"] == 2]
    assert layers == ["stem", "block_0", "block_1", "head"]
    for name in ("diagnostics", "attention_over_training", "positions"):
        assert (folder / "figures" / f"{name}.png").exists()
    assert all("usual" in alarm["message"] for alarm in summary(folder)["alarms"])
    events = EventAccumulator(str(folder))
    events.Reload()
    assert "diagnostics/entropy/block_0" in events.Tags()["scalars"]
    assert len(events.Images("attention")) == 3


def test_the_training_is_bit_for_bit_the_one_without(train: Train) -> None:
    one = train(*ON, "callbacks.ema.decay=0.9", name="with")
    other = train("trainer.max_epochs=3", "callbacks.ema.decay=0.9", name="without")
    assert same_weights(one, other)
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()


def test_each_part_is_a_switch(train: Train) -> None:
    off = [
        f"callbacks.diagnostics.{part}=false" for part in ("attention", "activations", "positions", "classes")
    ]
    folder = train(*ON, *off)
    assert {row["measure"] for row in rows(folder)} == {"gradient_norm", "clipped_share", "update_ratio"}
    assert {path.name for path in (folder / "figures").iterdir()} == {"diagnostics.png"}


def test_a_convolutional_network_has_gradients_and_classes(train: Train) -> None:
    base = [override for override in TINY if not override.startswith("model")]
    folder = train(*ON, "model=resnet18", "model.width=4", base=base)
    assert {row["measure"] for row in rows(folder)} == {
        *("gradient_norm", "clipped_share", "update_ratio", "class_accuracy")
    }


def test_class_accuracies_average_to_the_accuracy(train: Train) -> None:
    folder = train(*ON, "data.val_size=20")  # two images a class
    shares = [
        row["value"] for row in rows(folder) if row["measure"] == "class_accuracy" and row["epoch"] == 3
    ]
    assert len(shares) == 10
    last = (folder / "metrics.csv").read_text().splitlines()
    accuracy = float(last[-1].split(",")[last[0].split(",").index("val/accuracy")])
    assert sum(shares) / 10 == pytest.approx(accuracy)  # type: ignore[arg-type]


def test_a_run_that_was_stopped_resumes_with_the_same_diagnostics(train: Train, stopped: Train) -> None:
    whole = train(*ON, name="whole")
    halves = stopped(12, *ON)  # in the second of three epochs
    run(RunFolder(halves))
    assert rows(halves) == rows(whole)
    maps = [
        next(
            state["maps"] for name, state in checkpoint(folder)["callbacks"].items() if "Diagnostics" in name
        )
        for folder in (whole, halves)
    ]
    assert maps[0].keys() == maps[1].keys() == {0, 2, 3}
    assert all(torch.equal(maps[0][epoch], maps[1][epoch]) for epoch in maps[0])


@pytest.mark.parametrize(
    ("step", "lost"),
    [(8, ("checkpoints/last.ckpt", "checkpoints/best.ckpt")), (0, ("checkpoints", "metrics.csv"))],
)
def test_epochs_that_are_trained_again_have_their_rows_once(
    train: Train, step: int, lost: tuple[str, ...]
) -> None:
    folder = train("callbacks=diagnostics", "callbacks.diagnostics.every_epochs=1")
    whole = rows(folder)
    Summary(RunFolder(folder).summary).update(status="running")  # killed, and set back to an older state
    for name in lost:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    run(RunFolder(folder))
    assert summary(folder)["train"]["resumed_at"] == [step]
    assert rows(folder) == whole


def test_alarms_stand_in_the_summary_and_on_the_screen(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitlab.training.alarms.COLLAPSED", 2.0)  # every head has
    folder = train(*ON, "trainer.gradient_clip_val=null")
    alarms = summary(folder)["alarms"]
    assert [(alarm["kind"], alarm["layer"], alarm["epoch"]) for alarm in alarms] == [
        ("entropy collapse", "block_0", 2),
        ("entropy collapse", "block_1", 2),
    ]
    assert capsys.readouterr().out.count("alarm: ") == 2  # each once, though epoch 3 finds them again
