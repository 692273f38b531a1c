"""What the tests of evaluate.py share."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import evaluate as verb


def evaluate(*arguments: object) -> None:
    """Call the verb in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        verb.main()


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "evaluation.json").read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [*csv.DictReader(file)]


def save_images(
    folder: Path, classes: list[str], split: str = "test", number: int = 6, seed: int = 0
) -> Path:
    """Write images of noise into ``folder/split/<class>/``."""
    generator = np.random.default_rng(seed)
    for name in classes:
        (folder / split / name).mkdir(parents=True)
        for place in range(number):
            pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / name / f"{place}.png")
    return folder
