"""torch's optimizers, with ``fused: auto`` resolved to what the parameters' device can do."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW

from vitlab.core.errors import UserError

# The devices for which torch 2.11 to 2.15 implement fused Adam, AdamW and SGD.
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def adamw(params: Iterable[Any], *, fused: bool | str, **options: Any) -> AdamW:
    """AdamW: decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    Args:
        params: parameter groups, as `vitlab.optim.parameter_groups` makes them.
        fused: one kernel for all parameters; ``"auto"`` where the device has it.
        **options: ``lr``, ``weight_decay``, ``betas``, ``eps`` as in `torch.optim.AdamW`.
    """
    return _build(AdamW, params, fused, options)


def adam(params: Iterable[Any], *, fused: bool | str, **options: Any) -> Adam:
    """Adam (Kingma & Ba 2015, algorithm 1); its weight decay is an L2 penalty. Arguments as in `adamw`."""
    return _build(Adam, params, fused, options)


def sgd(params: Iterable[Any], *, fused: bool | str, **options: Any) -> SGD:
    """Stochastic gradient descent with momentum. Arguments as in `adamw`, with ``momentum``, ``nesterov``.

    Raises:
        UserError: Nesterov's step without momentum.
    """
    if options["nesterov"] and not options["momentum"]:
        raise UserError(
            "optimizer.nesterov=true needs a momentum above 0: set optimizer.momentum or "
            "optimizer.nesterov=false."
        )
    return _build(SGD, params, fused, options)


def resolve_fused(fused: bool | str, groups: Iterable[Any]) -> bool:
    """Return whether to fuse: as asked, and for ``"auto"`` where the parameters' device can."""
    if fused != "auto":
        return bool(fused)
    tensors = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
    return all(p.device.type in FUSED_DEVICES and torch.is_floating_point(p) for p in tensors)


def _build(kind: Any, params: Iterable[Any], fused: bool | str, options: dict[str, Any]) -> Any:
    groups = list(params)
    options = {k: tuple(v) if k == "betas" else v for k, v in options.items()}
    return kind(groups, fused=resolve_fused(fused, groups), **options)
