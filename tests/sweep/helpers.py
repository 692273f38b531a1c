"""What the tests of sweeps and searches share."""

import time
from collections.abc import Callable

from tests.conftest import TINY
from vitlab.config.arguments import parse_arguments
from vitlab.sweep import run_sweep

PLAIN = ["sweep=optuna", *TINY]
RATE = "optimizer.lr=tag(log,interval(1e-4,4e-3))"


def run_search(*typed: str) -> None:
    """Run what ``python train.py -m …`` runs, without the results of a grid."""
    run_sweep(parse_arguments(["-m", *typed]), lambda folder: None)


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
