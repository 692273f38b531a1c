"""torch's optimizers, by the options of ``conf/optimizer``."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch.optim import SGD, Adam, AdamW

from vitlab.core.errors import UserError

# The devices for which torch 2.11 to 2.15 implement fused Adam, AdamW and SGD: where ``fused: auto`` is true.
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def adamw(params: Iterable[Any], *, betas: Sequence[float], **options: Any) -> AdamW:
    """AdamW: decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    Args:
        params: parameter groups, as `vitlab.optim.parameter_groups` makes them.
        betas: a list, as YAML has it.
        **options: ``lr``, ``weight_decay``, ``eps``, ``fused`` as in `torch.optim.AdamW`.
    """
    return AdamW(params, betas=tuple(betas), **options)  # type: ignore[arg-type]


def adam(params: Iterable[Any], *, betas: Sequence[float], **options: Any) -> Adam:
    """Adam (Kingma & Ba 2015, algorithm 1); its weight decay is an L2 penalty. Arguments as in `adamw`."""
    return Adam(params, betas=tuple(betas), **options)  # type: ignore[arg-type]


def sgd(params: Iterable[Any], *, momentum: float, nesterov: bool, **options: Any) -> SGD:
    """Stochastic gradient descent with momentum. Options as in `torch.optim.SGD`.

    Raises:
        UserError: Nesterov's step without momentum.
    """
    if nesterov and not momentum:
        raise UserError(
            "optimizer.nesterov=true needs a momentum above 0: set optimizer.momentum or "
            "optimizer.nesterov=false."
        )
    return SGD(params, momentum=momentum, nesterov=nesterov, **options)
