"""Schedules are functions of the optimizer step; every file of conf/scheduler keeps the contract."""

import math
from functools import partial
from typing import Any

import pytest
import torch

from vitlab.config import CONF, compose, preflight, to_plain
from vitlab.config.plan import Plan, make_plan
from vitlab.core.errors import UserError
from vitlab.optim.schedulers import (
    constant,
    cosine,
    lambda_lr,
    linear,
    one_cycle,
    step,
    warmup_cosine,
    warmup_stable_decay,
)
from vitlab.training.build import _schedule

NAMES = sorted(file.stem for file in CONF.glob("scheduler/*.yaml"))


def test_warmup_rises_in_equal_steps_and_reaches_the_peak() -> None:
    rates = [warmup_cosine(s, 100, warmup_steps=9, final_ratio=0.0) for s in range(10)]
    assert rates == pytest.approx([(s + 1) / 10 for s in range(10)])


def test_cosine_falls_from_one_to_the_floor() -> None:
    assert cosine(0, 100, final_ratio=0.1) == 1.0
    assert cosine(50, 100, final_ratio=0.1) == pytest.approx(0.55)
    assert cosine(100, 100, final_ratio=0.1) == pytest.approx(0.1)
    assert cosine(120, 100, final_ratio=0.1) == pytest.approx(0.1), "past the end the rate stays"


def test_warmup_cosine_after_warmup_is_half_a_cosine() -> None:
    value = warmup_cosine(30, 110, warmup_steps=10, final_ratio=0.0)
    assert value == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.2)))


def test_constant_is_constant() -> None:
    assert {constant(s, 10) for s in range(10)} == {1.0}


def test_linear_falls_in_equal_steps() -> None:
    rates = [linear(s, 14, warmup_steps=4, final_ratio=0.5) for s in range(15)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4:] == pytest.approx([1 - 0.05 * s for s in range(11)])


def test_step_is_torchs_with_milestones_or_every_so_often() -> None:
    options = {"warmup_steps": 0, "final_ratio": 0.0, "gamma": 0.5}
    for every, scheduler in (
        (None, partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[3, 7])),
        (4, partial(torch.optim.lr_scheduler.StepLR, step_size=4)),
    ):
        theirs = torch_rates(partial(scheduler, gamma=0.5), 12)
        rates = [step(s, 12, milestone_steps=[3, 7], every_steps=every, **options) for s in range(12)]
        assert rates == pytest.approx(theirs)
    unordered = {"milestone_steps": [7, 3], "every_steps": None}
    assert step(5, 12, **options, **unordered) == 0.5
    assert step(8, 12, **options | {"final_ratio": 0.4}, **unordered) == 0.4
    assert step(1, 12, **options | {"warmup_steps": 3}, **unordered) == pytest.approx(0.5)


def torch_rates(scheduler: Any, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = scheduler(optimizer)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_a_milestone_each_less_than_a_step_is_one_each_step() -> None:
    rates = [
        step(s, 3, warmup_steps=0, milestone_steps=[3], every_steps=0, gamma=0.5, final_ratio=0.0)
        for s in range(3)
    ]
    assert rates == [1, 0.5, 0.25]


@pytest.mark.parametrize("share", [0.3, 0.1, 0.5])
def test_one_cycle_is_torchs(share: float) -> None:
    cycle = partial(
        torch.optim.lr_scheduler.OneCycleLR,
        max_lr=1.0,
        total_steps=41,
        pct_start=share * 40 / 41,  # torch allows parts of steps
        div_factor=20,
        final_div_factor=50,
        cycle_momentum=False,
    )
    options = {"warmup_steps": round(share * 40), "initial_ratio": 0.05, "final_ratio": 0.001}
    ours = [one_cycle(s, 41, **options) for s in range(41)]
    assert ours == pytest.approx(torch_rates(cycle, 41))
    assert (ours[0], max(ours), ours[-1]) == pytest.approx((0.05, 1.0, 0.001))


def test_stable_until_the_decay() -> None:
    options = {"warmup_steps": 5, "decay_steps": 20, "final_ratio": 0.1}
    for shape, half in (("sqrt", 1 - math.sqrt(0.5)), ("linear", 0.5)):
        rates = [warmup_stable_decay(s, 100, shape=shape, **options) for s in range(101)]
        assert rates[:5] == pytest.approx([(s + 1) / 6 for s in range(5)])
        assert set(rates[5:81]) == {1.0}
        assert rates[81] < 1
        assert rates[90] == pytest.approx(0.1 + 0.9 * half)
        assert rates[100] == pytest.approx(0.1)


def test_lambda_lr_applies_the_schedule_to_every_group() -> None:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups)
    scheduler = lambda_lr(optimizer, lambda step, total: 1 - step / total, 4)
    seen = []
    for _ in range(4):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert seen == [pytest.approx([f, 0.1 * f]) for f in (1.0, 0.75, 0.5, 0.25)]


def curve(name: str, *overrides: str, images: int = 45_000) -> tuple[list[float], Plan, dict[str, Any]]:
    config = to_plain(compose([f"scheduler={name}", *overrides]))
    plan = make_plan(config, images)
    schedule = _schedule(config["scheduler"], plan)
    return [schedule(s, plan.total_steps) for s in range(plan.total_steps + 1)], plan, config["scheduler"]


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    rates, plan, scheduler = curve(name)
    assert all(math.isfinite(rate) and 0 <= rate <= 1 for rate in rates)
    assert max(rates) == 1.0
    assert rates[0] > 0
    if plan.warmup_steps > 1:
        rise = rates[: plan.warmup_steps]
        assert rise == sorted(rise)
        assert len(set(rise)) == len(rise)
        assert rise[-1] > 0.99
    if "final_ratio" in scheduler and name != "step":
        assert rates[-1] == pytest.approx(scheduler["final_ratio"])
        floor = curve(name, "scheduler.final_ratio=0.25")[0]
        assert (min(floor[plan.warmup_steps :]), floor[-1]) == pytest.approx((0.25, 0.25))
    rest = rates[plan.warmup_steps :]
    assert rest == sorted(rest, reverse=True), "after the warmup it never rises"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", ["max_steps=1", "fast_dev_run=true", "max_steps=3"])
def test_the_shortest_runs_have_a_rate(name: str, length: str) -> None:
    rates, _, _ = curve(name, f"trainer.{length}")
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[0] > 0


@pytest.mark.parametrize("name", NAMES)
def test_accumulation_does_not_change_the_curve(name: str) -> None:
    """A step that begins at the same image has the same rate, but for the length of a step."""
    durations = {"warmup_epochs": 2, "decay_epochs": 4, "milestone_epochs": "[5,8]"}
    given = to_plain(compose([f"scheduler={name}"]))["scheduler"]
    overrides = [f"scheduler.{key}={value}" for key, value in durations.items() if key in given]
    overrides.append("trainer.max_epochs=10")
    one, plan, _ = curve(name, *overrides, images=128 * 400)
    four, shorter, _ = curve(name, "trainer.accumulate_grad_batches=4", *overrides, images=128 * 400)
    assert plan.total_steps == 4 * shorter.total_steps
    assert four == pytest.approx(one[::4], abs=0.01)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("=step scheduler.milestone_epochs=[5,30]", "milestone_epochs=[5, 30] is 10530 optimizer"),
        ("=step scheduler.every_epochs=21", "every_epochs=21 is 7371 optimizer steps"),
        (
            "=step scheduler.every_epochs=2 scheduler.milestone_steps=[10]",
            "scheduler.every_epochs=2 and scheduler.milestone_steps=[10] are both given",
        ),
        (
            "=warmup_stable_decay scheduler.decay_epochs=1 scheduler.decay_steps=1",
            "scheduler.decay_epochs=1 and scheduler.decay_steps=1 are both given",
        ),
        (
            "=warmup_stable_decay scheduler.warmup_epochs=11 scheduler.decay_epochs=10",
            "a warmup of 3861 and a decay of 3510 optimizer steps are more than the whole run of 7020",
        ),
        (
            "=warmup_cosine scheduler.warmup_steps=9 scheduler.warmup_fraction=0.1",
            "scheduler.warmup_fraction=0.1 has no effect beside scheduler.warmup_steps=9: leave it out",
        ),
        (
            "=step scheduler.every_epochs=9 scheduler.milestone_fraction=[0.1]",
            "scheduler.milestone_fraction=[0.1] has no effect beside scheduler.every_epochs=9",
        ),
        ("=warmup_stable_decay scheduler.shape=sqr", "expected sqrt or linear"),
        ("=step scheduler.milestone_epochs=5", "expected null, or a list"),
        (
            "=step scheduler.milestone_epochs=[30] data=image_folder data.root=x",
            "milestone_epochs=[30] is longer than the whole run of 20 epochs",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_torch(overrides: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        preflight([*f"scheduler{overrides}".split(), "trainer.max_epochs=20", "data.val_size=5000"])
    assert said in " ".join(str(error.value).split())
