"""What the tests of sweeps and searches share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import TINY
from vitlab.config.arguments import parse_arguments
from vitlab.sweep import run_sweep

PLAIN = ["sweep=optuna", *TINY]
Calls = Callable[..., list[str]]
Searched = Callable[..., list[dict[str, Any]]]
SHORT = ["-m", *(o for o in TINY if not o.startswith("model.depth")), "hydra.sweep.dir=sweep"]
RATE = "optimizer.lr=tag(log,interval(1e-4,4e-3))"


def run_search(*typed: str) -> None:
    """Run what ``python train.py -m …`` runs, without the results of a grid."""
    run_sweep(parse_arguments(["-m", *typed]), lambda folder: None)


def states(folder: Path) -> dict[str, str]:
    return {job["label"]: job["state"] for job in json.loads((folder / "sweep.json").read_text())["jobs"]}


def list_jobs(folder: Path) -> list[dict[str, Any]]:
    """Return what sweep.json says of the jobs or trials."""
    return json.loads((folder / "sweep.json").read_text())["jobs"]
