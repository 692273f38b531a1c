"""Which parameter is trained how: every one in exactly one group."""

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters of ``model`` into those with weight decay and those without.

    Decay is for matrices (and convolution kernels): norms, biases and what the model names in
    ``no_weight_decay()`` (positions, class token) go without, as in Dosovitskiy et al. 2021's code and
    in Loshchilov & Hutter's setting, where decay stands for a prior on the weights of linear maps.

    Returns:
        Optimizer groups with the extra keys ``name`` and ``names`` (the parameters' names).

    Raises:
        ValueError: the model names a parameter that it does not have.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    exempt: set[str] = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    if unknown := exempt - {name for name, _ in model.named_parameters()}:
        raise ValueError(f"{type(model).__name__}.no_weight_decay() names no parameter: {sorted(unknown)}")
    decay = [name for name, p in named.items() if p.ndim >= 2 and name not in exempt]
    rest = [name for name in named if name not in set(decay)]
    groups: list[dict[str, Any]] = [
        {"name": "decay", "names": decay, "weight_decay": weight_decay},
        {"name": "no_decay", "names": rest, "weight_decay": 0.0},
    ]
    return [group | {"params": [named[n] for n in group["names"]]} for group in groups if group["names"]]
