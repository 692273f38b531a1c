"""On real CIFAR-10 images, where VITLAB_CIFAR10_FOLDER names a copy as class folders: it learns."""

import os
from pathlib import Path

import pytest

from tests.conftest import summary, verb

FOLDER = os.environ.get("VITLAB_CIFAR10_FOLDER")


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="VITLAB_CIFAR10_FOLDER names no images")
def test_a_few_hundred_steps_on_real_images_learn(tmp_path: Path) -> None:
    ended = verb(
        "experiment=cpu_5min",
        "data=image_folder",
        f"data.root={FOLDER}",
        "trainer.max_epochs=-1",
        "trainer.max_steps=300",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert ended.returncode == 0, ended.stderr
    found = summary(tmp_path / "run")
    # Chance is 0.1; 300 steps of 128 images reach 0.4 with room to spare.
    assert found["metrics"]["test/accuracy"] > 0.33
    assert found["metrics"]["val/accuracy"] == pytest.approx(found["metrics"]["test/accuracy"], abs=0.04)
