"""The arithmetic of a run."""

from typing import Any

import pytest

from vitlab.config.plan import make_plan
from vitlab.core.errors import UserError


def config(batch_size: int = 128, scheduler: dict[str, Any] | None = None, **trainer: Any) -> dict[str, Any]:
    defaults = {
        "max_epochs": 10,
        "max_steps": -1,
        "accumulate_grad_batches": 1,
        "limit_train_batches": None,
        "overfit_batches": 0.0,
        "fast_dev_run": False,
    }
    warmup = {"warmup_epochs": None, "warmup_steps": None, "warmup_fraction": 0.05}
    return {
        "data": {"batch_size": batch_size},
        "trainer": defaults | trainer,
        "scheduler": warmup | (scheduler or {}),
    }


def test_steps_drop_the_last_smaller_batch() -> None:
    plan = make_plan(config(), 45_000)
    assert (plan.batches_per_epoch, plan.total_steps, plan.warmup_steps) == (351, 3510, 176)


def test_accumulation_steps_on_the_last_batch_of_an_epoch() -> None:
    plan = make_plan(config(accumulate_grad_batches=4), 45_000)
    assert (plan.total_steps, plan.effective_batch) == (880, 512)


def test_max_steps_shortens_the_run_and_its_schedule() -> None:
    plan = make_plan(config(max_steps=1000), 45_000)
    assert (plan.total_steps, plan.epochs, plan.warmup_steps) == (1000, 3, 50)
    plan = make_plan(config(max_steps=1000, max_epochs=-1), 45_000)
    assert (plan.total_steps, plan.epochs) == (1000, 3)


@pytest.mark.parametrize(("limit", "batches"), [(5, 5), (0.5, 175), (1.0, 351), (1, 1), (9999, 351)])
def test_limit_train_batches_counts_or_divides(limit: float, batches: int) -> None:
    assert make_plan(config(limit_train_batches=limit), 45_000).batches_per_epoch == batches


def test_warmup_in_epochs_or_steps() -> None:
    assert make_plan(config(scheduler={"warmup_epochs": 2}), 45_000).warmup_steps == 702
    assert make_plan(config(scheduler={"warmup_epochs": 0.5}), 45_000).warmup_steps == 176
    assert make_plan(config(scheduler={"warmup_steps": 7}), 45_000).warmup_steps == 7
    assert make_plan(config(scheduler={"warmup_steps": 0}), 45_000).warmup_steps == 0


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
    scheduler = {
        "milestone_epochs": [2, 4.5],
        "milestone_steps": None,
        "milestone_fraction": [0.5],
        "every_epochs": None,
        "decay_epochs": None,
        "decay_steps": None,
        "decay_fraction": 0.2,
        "final_ratio": 0.1,
        "_target_": "x",
    }
    plan = make_plan(config(scheduler=scheduler, accumulate_grad_batches=3), 45_000)
    assert plan.durations == {
        "warmup_steps": 58,
        "milestone_steps": [234, 526],
        "every_steps": None,
        "decay_steps": 234,
    }
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
