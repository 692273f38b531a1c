"""A run whose config.yaml somebody edits by hand, and then resumes."""

import functools
import json
import operator
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.config.helpers import changed
from tests.conftest import TINY, Train, checkpoint, same_weights, summary
from tests.data.helpers import image_tree
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder
from vitlab.training.run import run

DELETED = object()


def edit(folder: Path, values: dict[str, Any]) -> None:
    """Give dotted keys of a run's config.yaml other values."""
    config = changed(RunFolder(folder).read_config(), values)
    for key, value in values.items():
        if value is DELETED:
            *nodes, last = key.split(".")
            del functools.reduce(operator.getitem, nodes, config)[last]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def unfinished(copied: Path) -> Path:
    """A run that has its last checkpoint and not yet its test."""
    (copied / "summary.json").unlink()
    return copied


DECISIVE: list[tuple[str, Any, str]] = [
    ("seed", 1, "seed: 0 → 1"),
    ("matmul_precision", "highest", "matmul_precision: high → highest"),
    ("model.depth", 3, "model.depth: 2 → 3"),
    ("model.attention._target_", "vitlab.models.attention.LocalityAttention", "model.attention._target_: "),
    ("optimizer.lr", 0.5, "optimizer.lr: 0.001 → 0.5"),
    ("optimizer.layer_decay", 0.5, "optimizer.layer_decay: 1.0 → 0.5"),
    ("optimizer.nesterov", True, "optimizer.nesterov: missing → true"),
    ("scheduler.warmup_epochs", 1, "scheduler.warmup_epochs: null → 1"),
    ("task.freeze", "first_1", "task.freeze: none → first_1"),
    ("task.label_smoothing", 0.2, "task.label_smoothing: 0.1 → 0.2"),
    ("augment.ops", ["flip"], "augment.ops: [crop, flip] → [flip]"),
    ("augment.crop.padding", 2, "augment.crop.padding: 4 → 2"),
    ("data.batch_size", 16, "data.batch_size: 8 → 16"),
    ("data.val_size", 8, "data.val_size: 16 → 8"),
    ("data.split_seed", 1, "data.split_seed: 0 → 1"),
    ("data.num_train", 90, "data.num_train: 80 → 90"),
    ("trainer.max_epochs", 3, "trainer.max_epochs: 2 → 3"),
    ("trainer.accumulate_grad_batches", 2, "trainer.accumulate_grad_batches: 1 → 2"),
    ("trainer.gradient_clip_val", None, "trainer.gradient_clip_val: 1.0 → null"),
    ("callbacks.ema.decay", 0.9, "callbacks.ema.decay: null → 0.9"),
    ("model.dim", DELETED, "model.dim: 16 → missing"),
    ("trainer.precision", DELETED, "trainer.precision: 32 → missing"),
]


def test_what_decides_the_result_is_refused(unfinished: Path) -> None:
    before = (unfinished / "config.yaml").read_text()
    edit(unfinished, {key: value for key, value, _ in DECISIVE})
    with pytest.raises(UserError) as refused:
        run(RunFolder(unfinished))
    message = str(refused.value)
    assert message.startswith(f"{RunFolder(unfinished).config} was changed after ")
    assert [said for _, _, said in DECISIVE if said not in message] == []
    assert message.count(" → ") == len(DECISIVE)
    (unfinished / "config.yaml").write_text(before)
    assert run(RunFolder(unfinished))["status"] == "finished"


def test_what_cannot_matter_any_more_may_change(unfinished: Path, finished: Path) -> None:
    edit(
        unfinished,
        {
            "study": "renamed",
            "data.root": "elsewhere",
            "data.in_memory": False,
            "data.num_workers": 1,
            "callbacks.figures": True,
            "callbacks.checkpoint.every_minutes": 1.0,
            "logger.tensorboard": True,
            "trainer.log_every_n_steps": 3,
            "trainer.enable_progress_bar": False,
            "trainer.detect_anomaly": True,
            "trainer.limit_test_batches": 2,
            "swept": ["seed"],
        },
    )
    assert run(RunFolder(unfinished))["status"] == "finished"
    assert summary(unfinished)["train"]["resumed_at"] == [16]
    assert summary(unfinished)["metrics"]["val/accuracy"] == summary(finished)["metrics"]["val/accuracy"]
    assert same_weights(unfinished, finished)
    assert "continues on other terms" not in (unfinished / "train.log").read_text()


def test_a_class_that_has_come_to_the_images_is_named(train: Train, tmp_path: Path) -> None:
    root = image_tree(tmp_path / "images", {"train/cat": 10, "train/dog": 10, "test/cat": 2, "test/dog": 2})
    images = [
        "data=image_folder",
        f"data.root={root}",
        "data.batch_size=8",
        "data.val_size=2",
        "data.cache=null",
    ]
    folder = train("trainer.max_epochs=1", base=[*(o for o in TINY if not o.startswith("data")), *images])
    recorded = checkpoint(folder)["vitlab"]["images"]
    assert summary(folder)["data"]["fingerprint"] == recorded, "by which a claim knows its data"
    (folder / "summary.json").unlink()
    image_tree(root, {"train/eel": 3, "test/eel": 1})
    with pytest.raises(UserError, match=r"\(expected cat, dog; found cat, dog, eel\)"):
        run(RunFolder(folder))


def test_another_machine_is_noted(unfinished: Path) -> None:
    edit(unfinished, {"compile": "auto"})
    assert run(RunFolder(unfinished))["status"] == "finished"
    assert "note: this run continues on other terms than it began (compile: false → auto)" in " ".join(
        (unfinished / "train.log").read_text().split()
    )


BUILT_FROM = (
    *("seed", "choices", "trainer", "trainer.accelerator", "trainer.max_epochs", "model.depth"),
    *("optimizer.lr", "scheduler.final_ratio", "data.batch_size", "matmul_precision"),
    *("augment.crop.padding", "task.label_smoothing", "callbacks.ema"),
)


def test_a_key_that_was_deleted_before_the_first_checkpoint_is_named(copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    (copied / "metrics.csv").unlink()
    unfinished = json.dumps(summary(copied) | {"status": "interrupted"})
    before = (copied / "config.yaml").read_text()
    for key in BUILT_FROM:
        (copied / "summary.json").write_text(unfinished)
        (copied / "config.yaml").write_text(before)
        edit(copied, {key: DELETED})
        with pytest.raises(UserError) as refused:
            run(RunFolder(copied))
        assert str(refused.value).startswith(f"{RunFolder(copied).config} has no {key}")
    # One that came later has a default, for runs from before.
    (copied / "config.yaml").write_text(before)
    edit(copied, {"data.in_memory": DELETED})
    assert run(RunFolder(copied))["status"] == "finished"
    assert "free; auto)" in (copied / "train.log").read_text()
