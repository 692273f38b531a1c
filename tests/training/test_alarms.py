"""Alarms, on rows whose fault is known."""

from typing import Any

import pytest

from vitlab.training.alarms import Alarms


def series(measure: str, *values: float, layer: str = "block_0") -> list[dict[str, Any]]:
    """Return rows of a measure at the epochs 0, 1, 2 …"""
    return [
        {"epoch": epoch, "step": 10 * epoch, "measure": measure, "layer": layer, "head": "", "value": value}
        for epoch, value in enumerate(values)
    ]


HEALTHY = [
    *series("entropy", 0.99, 0.97, 0.8, 0.7),
    *series("dead", 0, 0.01, 0.02, 0.02),
    *series("residual_norm", 10, 30, 60, 80),
    *series("feature_norm", 3, 30, 40, 35, layer=""),
    *series("clipped_share", 1, 1, 1, 0.3, layer=""),
    *series("gradient_norm", 50, 9, 2, 2, layer=""),
]


def test_a_healthy_run_has_none() -> None:
    assert Alarms(warmup_epochs=1, clip=1.0).look(HEALTHY) == []


@pytest.mark.parametrize(
    ("rows", "kind", "epoch", "layer"),
    [
        (series("entropy", 0.99, 0.99, 0.985, 0.99), "uniform attention", 2, ""),
        (series("entropy", 0.99, 0.6, 0.01, 0.01), "entropy collapse", 2, "block_0"),
        (series("dead", 0, 0.1, 0.1, 0.5), "dead units", 3, "block_0"),
        (series("gradient_norm", 40, 40, 30, 9, layer=""), "clipped steps", 2, ""),
        (series("residual_norm", 1, 10, 11, 80), "residual stream jumps", 3, "block_0"),
        (series("feature_norm", 1, 40, 30, 20, 10, layer=""), "feature falls", 4, ""),
    ],
)
def test_a_fault_is_seen_once_when_it_begins(rows: Any, kind: str, epoch: int, layer: str) -> None:
    (alarm,) = Alarms(warmup_epochs=1, clip=1.0).look(rows)
    assert (alarm["kind"], alarm["epoch"], alarm["layer"]) == (kind, epoch, layer)
    assert alarm["value"] == rows[epoch]["value"]
    one_by_one = Alarms(warmup_epochs=1, clip=1.0)
    assert [alarm for row in rows for alarm in one_by_one.look([row])] == [alarm], "as it is measured"
    assert f"epoch {epoch}" in alarm["message"]
    assert layer in alarm["message"]
    assert "usual" in alarm["message"]


def test_one_head_that_tells_tokens_apart_is_enough() -> None:
    rows = [*series("entropy", 1, 1, 1), *series("entropy", 1, 0.9, 0.9, layer="block_1")]
    assert Alarms(warmup_epochs=0).look(rows) == []


def test_each_layer_has_its_own() -> None:
    rows = [*series("dead", 0, 0.9), *series("dead", 0, 0.9, layer="block_1")]
    assert [alarm["layer"] for alarm in Alarms(0).look(rows)] == ["block_0", "block_1"]


def test_what_happens_in_the_warmup_is_no_alarm() -> None:
    rows = [*series("entropy", 1, 1, 1, 0.8), *series("gradient_norm", 99, 99, 99, 2, layer="")]
    assert Alarms(warmup_epochs=2, clip=1.0).look(rows) == []
