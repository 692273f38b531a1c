"""Schedules: (optimizer step, total optimizer steps) → multiplier of the peak learning rate.

What YAML gives as NAME_epochs, NAME_steps or NAME_fraction arrives here as NAME_steps (`vitlab.config.plan`).
A warmup of W steps rises linearly (Goyal et al. 2017, section 2.2) from 1 / (W + 1): 0 would waste a step.
"""

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(step: int, total_steps: int, *, warmup_steps: int, final_ratio: float) -> float:
    """Rise over ``warmup_steps``, then fall along half a cosine (Loshchilov & Hutter 2017, equation 5)."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return _half_cosine(1.0, final_ratio, _share(step, warmup_steps, total_steps))


def cosine(step: int, total_steps: int, *, final_ratio: float) -> float:
    """Fall along half a cosine from the first step."""
    return warmup_cosine(step, total_steps, warmup_steps=0, final_ratio=final_ratio)


def constant(step: int, total_steps: int) -> float:
    """Keep the rate."""
    return 1.0


def linear(step: int, total_steps: int, *, warmup_steps: int, final_ratio: float) -> float:
    """Rise over ``warmup_steps``, then fall in a straight line to ``final_ratio``.

    Source: Devlin et al. 2019 (BERT), appendix A.2; Defazio et al. 2023, "When, Why and How Much?", find it
    as good as the cosine or better.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 1 - (1 - final_ratio) * _share(step, warmup_steps, total_steps)


def step(
    step: int,
    total_steps: int,
    *,
    warmup_steps: int,
    milestone_steps: Sequence[int],
    every_steps: int | None,
    gamma: float,
    final_ratio: float,
) -> float:
    """Rise over ``warmup_steps``; multiply the rate by ``gamma`` at every milestone.

    Source: He et al. 2016, section 4.2: a tenth at half of the run and again at three quarters.

    Args:
        milestone_steps: counted from the beginning of the run, warmup included.
        every_steps: a milestone each so many steps, instead. None: ``milestone_steps`` counts.
        final_ratio: the rate never falls below it.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if every_steps is None:
        passed = sum(step >= place for place in milestone_steps)
    else:
        passed = step // max(1, every_steps)  # less than a step was asked for
    return max(final_ratio, gamma**passed)


def one_cycle(
    step: int, total_steps: int, *, warmup_steps: int, initial_ratio: float, final_ratio: float
) -> float:
    """Rise from ``initial_ratio`` along half a cosine over ``warmup_steps``, then fall to ``final_ratio``.

    Source: Smith & Topin 2019, "Super-Convergence", section 3, in the smooth shape of
    ``torch.optim.lr_scheduler.OneCycleLR``: the last step of the warmup has the peak rate, the last step
    of the run ``final_ratio``. The momentum, which they let fall and rise against the rate, stays as
    the optimizer has it.
    """
    peak = max(0, warmup_steps - 1)
    if step < peak:
        return _half_cosine(initial_ratio, 1.0, step / peak)
    return _half_cosine(1.0, final_ratio, _share(step, peak, total_steps - 1))


# Of the decay that is over at x = 1: what is left of the rate above the floor.
SHAPES: dict[str, Callable[[float], float]] = {
    "sqrt": lambda x: 1 - math.sqrt(x),
    "linear": lambda x: 1 - x,
}


def warmup_stable_decay(
    step: int, total_steps: int, *, warmup_steps: int, decay_steps: int, shape: str, final_ratio: float
) -> float:
    """Rise over ``warmup_steps``, stay, and fall to ``final_ratio`` in the last ``decay_steps``.

    Source: Hu et al. 2024, "MiniCPM", section 4.2; the shapes of the decay from Hägele et al. 2024,
    section 3: ``sqrt`` is their 1 - sqrt, which they find the better one.
    """
    decay = SHAPES[shape]
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    decay_from = max(warmup_steps, total_steps - decay_steps)
    if step < decay_from:
        return 1.0
    return final_ratio + (1 - final_ratio) * decay(_share(step, decay_from, total_steps))


def _share(step: int, start: int, end: int) -> float:
    """Return how much of the way from ``start`` to ``end`` is done, 0..1; past the end it stays 1."""
    return min(1.0, (step - start) / max(1, end - start))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def lambda_lr(optimizer: Optimizer, schedule: Callable[[int, int], float], total_steps: int) -> LambdaLR:
    """Multiply every group's rate by ``schedule(optimizer step, total_steps)``; call ``step()`` a step."""
    return LambdaLR(optimizer, lambda step: schedule(step, total_steps))
