"""``python -m tests.float16 RUN_FOLDER`` is ``python -m vitlab RUN_FOLDER`` where a CPU trains in float16."""

import sys
from typing import Any

import pytest
from lightning.pytorch.plugins import MixedPrecision

from vitlab.__main__ import main
from vitlab.core.cli import finish
from vitlab.training.grad_scaler import CountingScaler

HUGE = 2.0**30  # a scale that is far too big at first


def float16_plugin(kind: str) -> MixedPrecision:
    return MixedPrecision("16-mixed", kind, CountingScaler(kind, init_scale=HUGE))


PATCHES: dict[str, Any] = {
    "vitlab.core.hardware.resolve_precision": lambda asked, kind: "16-mixed",
    "vitlab.training.trainer.float16_plugin": float16_plugin,
}


def pretend(patch: pytest.MonkeyPatch) -> None:
    """Let a CPU train in float16."""
    for name, value in PATCHES.items():
        patch.setattr(name, value)


if __name__ == "__main__":
    pretend(pytest.MonkeyPatch())
    sys.exit(finish(main))
