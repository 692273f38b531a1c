"""Schedules are functions of the optimizer step."""

import math

import pytest
import torch

from vitlab.optim.schedulers import constant, cosine, lambda_lr, warmup_cosine


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


def test_warmup_as_long_as_the_run_is_defined() -> None:
    rates = [warmup_cosine(s, 5, warmup_steps=5, final_ratio=0.0) for s in range(6)]
    assert rates == sorted(rates)
    assert all(0 < r <= 1 for r in rates)


def test_constant_is_constant() -> None:
    assert {constant(s, 10) for s in range(10)} == {1.0}


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
