"""A compiled network trains as the eager one does."""

import sys
from pathlib import Path

import pytest

from tests.conftest import TINY, summary, verb
from vitlab.core.hardware import has_bf16, has_compiler
from vitlab.core.metrics_csv import read_metrics
from vitlab.core.run_folder import RunFolder

OPTIONS = [o for o in TINY if not o.startswith(("model", "compile", "trainer.precision"))]
OPTIONS += ["augment=none", "data.image_size=32", "trainer.max_epochs=3", "optimizer.lr=1e-4"]
OPTIONS += ["model.dim=48", "model.depth=2", "model.heads=3"]
PRECISIONS = [
    "32",
    pytest.param("bf16-mixed", marks=pytest.mark.skipif(not has_bf16("cpu"), reason="no bf16")),
]
KEYS = ("train/loss", "val/loss", "train/label_loss", "train/teacher_loss")


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler("cpu"), reason="no C++ compiler")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", ["vit_tiny", "vit_convstem_tiny", "vit_distilled_tiny"])
def test_compiled_losses_are_the_eager_ones(
    model: str, precision: str, tmp_path: Path, teacher: Path
) -> None:
    options = [*OPTIONS, f"model={model}", f"trainer.precision={precision}"]
    if model == "vit_distilled_tiny":
        options += ["task=distill", f"task.teacher={teacher}"]
    losses = []
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        ended = verb(*options, f"compile={compiled}", f"hydra.run.dir={folder}")
        assert ended.returncode == 0, ended.stderr
        assert summary(folder)["compiled"] is (compiled == "true")
        rows = read_metrics(RunFolder(folder))
        losses.append([row[key] for row in rows for key in KEYS if key in row])
    # A NaN is equal to nothing. bfloat16 has three digits, and 24 steps build on each other.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4 if precision == "32" else 1e-2), sys.platform
