"""Learning-rate schedules: (optimizer step, total optimizer steps) → multiplier of the peak rate.

Steps are counted in optimizer steps, so a curve does not change with gradient accumulation or the
number of processes. Each schedule is a plain function; `lambda_lr` hangs it on an optimizer.
"""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(step: int, total_steps: int, *, warmup_steps: int, final_ratio: float) -> float:
    """Rise linearly over ``warmup_steps``, then fall along half a cosine to ``final_ratio``.

    The first step has rate 1 / (warmup_steps + 1), not 0: a step with rate 0 would be wasted.
    Source: Goyal et al. 2017, section 2.2 (warmup); Loshchilov & Hutter 2017, equation 5 (cosine).
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def cosine(step: int, total_steps: int, *, final_ratio: float) -> float:
    """Fall along half a cosine from the first step (Loshchilov & Hutter 2017, equation 5)."""
    return warmup_cosine(step, total_steps, warmup_steps=0, final_ratio=final_ratio)


def constant(step: int, total_steps: int) -> float:
    """Keep the rate."""
    return 1.0


def lambda_lr(optimizer: Optimizer, schedule: Callable[[int, int], float], total_steps: int) -> LambdaLR:
    """Multiply every group's rate by ``schedule(optimizer step, total_steps)``; call ``step()`` a step."""
    return LambdaLR(optimizer, lambda step: schedule(step, total_steps))
