"""The arithmetic of a run."""

from typing import Any

import pytest

from vitlab.config.plan import make_plan
from vitlab.core.errors import UserError


def config(batch_size: int = 128, scheduler: dict[str, Any] | None = None, **trainer: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"max_epochs": 10, "max_steps": -1, "accumulate_grad_batches": 1}
    defaults |= {"limit_train_batches": None, "overfit_batches": 0.0, "fast_dev_run": False}
    warmup = {"warmup_epochs": None, "warmup_steps": None, "warmup_fraction": 0.05}
    return {
        "data": {"batch_size": batch_size},
        "trainer": defaults | trainer,
        "scheduler": warmup | (scheduler or {}),
    }


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        # the last, smaller batch of an epoch is dropped
        ({}, {"batches_per_epoch": 351, "total_steps": 3510, "warmup_steps": 176}),
        # the last step of an epoch may have fewer micro-batches
        ({"accumulate_grad_batches": 4}, {"total_steps": 880, "effective_batch": 512}),
        ({"max_steps": 1000}, {"total_steps": 1000, "epochs": 3, "warmup_steps": 50}),
        ({"max_steps": 1000, "max_epochs": -1}, {"total_steps": 1000, "epochs": 3}),
        ({"limit_train_batches": 5}, {"batches_per_epoch": 5}),
        ({"limit_train_batches": 0.5}, {"batches_per_epoch": 175}),
        ({"limit_train_batches": 1.0}, {"batches_per_epoch": 351}),
        ({"limit_train_batches": 1}, {"batches_per_epoch": 1}),
        ({"limit_train_batches": 9999}, {"batches_per_epoch": 351}),
        ({"overfit_batches": 0.1, "limit_train_batches": 1}, {"batches_per_epoch": 35}),
        ({"fast_dev_run": True, "limit_train_batches": 9}, {"batches_per_epoch": 1, "epochs": 1}),
        ({"scheduler": {"warmup_epochs": 2}}, {"warmup_steps": 702}),
        ({"scheduler": {"warmup_epochs": 0.5}}, {"warmup_steps": 176}),
        ({"scheduler": {"warmup_steps": 7}}, {"warmup_steps": 7}),
        ({"scheduler": {"warmup_steps": 0}}, {"warmup_steps": 0}),
    ],
)
def test_a_run_is_counted_in_batches_and_optimizer_steps(
    options: dict[str, Any], counts: dict[str, int]
) -> None:
    plan = make_plan(config(**options), 45_000)
    assert {name: getattr(plan, name) for name in counts} == counts


def test_a_warmup_longer_than_the_run_is_refused_only_when_asked_for() -> None:
    with pytest.raises(UserError, match=r"warmup_epochs=11 is 3861 .* has 3510"):
        make_plan(config(scheduler={"warmup_epochs": 11}), 45_000)
    assert make_plan(config(max_steps=1), 45_000).warmup_steps == 0


def test_no_batch_is_an_error_that_names_the_numbers() -> None:
    with pytest.raises(UserError, match=r"100 training images, data.batch_size=128"):
        make_plan(config(), 100)


def test_advice_brings_the_effective_batch_to_512() -> None:
    assert "accumulate_grad_batches=4" in (make_plan(config(), 45_000).advice() or "")
    assert make_plan(config(accumulate_grad_batches=4), 45_000).advice() is None


def test_every_duration_of_a_scheduler_becomes_steps() -> None:
    scheduler = {"milestone_epochs": [2, 4.5], "milestone_steps": None, "milestone_fraction": [0.5]}
    scheduler |= {"every_epochs": None, "final_ratio": 0.1, "_target_": "x"}
    scheduler |= {"decay_epochs": None, "decay_steps": None, "decay_fraction": 0.2}
    plan = make_plan(config(scheduler=scheduler, accumulate_grad_batches=3), 45_000)
    steps = {"warmup_steps": 58, "milestone_steps": [234, 526], "every_steps": None, "decay_steps": 234}
    assert plan.durations == steps
    assert make_plan(config(scheduler={"every_epochs": 2}), 45_000).durations["every_steps"] == 702


def test_durations_longer_than_the_run_are_refused_together_too() -> None:
    with pytest.raises(UserError, match=r"milestone_epochs=\[2, 11\] is 3861 .* has 3510"):
        make_plan(config(scheduler={"milestone_epochs": [2, 11]}), 45_000)
    with pytest.raises(UserError, match=r"warmup of 1755 and a decay of 1759 .* of 3510"):
        make_plan(config(scheduler={"warmup_fraction": 0.5, "decay_fraction": 0.501}), 45_000)
    plan = make_plan(config(scheduler={"decay_epochs": 11}, fast_dev_run=True), 45_000)
    assert plan.durations["decay_steps"] == 1
    odd = make_plan(config(scheduler={"warmup_fraction": 0.5, "decay_fraction": 0.5}, max_steps=7), 45_000)
    assert odd.durations == {"warmup_steps": 4, "decay_steps": 4}
