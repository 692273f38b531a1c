"""Which layers are not trained: ``task.freeze``."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from vitlab.core.errors import UserError
from vitlab.optim.groups import read_layers


def freeze(model: nn.Module, what: str) -> tuple[str, ...]:
    """Take the gradients from the first layers of ``model``.

    Args:
        what: ``none``; ``first_N``: the first N entries of ``model.layers()``, of which the stem is one;
            ``head_only``: all entries but the last, so that a linear probe is left.

    Returns:
        The name prefixes of what is frozen, for `freeze_eval`.

    Raises:
        UserError: nothing would be left to train, or the model does not say the order of its layers.
    """
    if what == "none":
        return ()
    option = f"task.freeze={what}"
    layers, numbers = read_layers(model, option)
    most = len(layers) - 1
    count = most if what == "head_only" else int(what.removeprefix("first_"))
    if not 0 < count <= most:
        raise UserError(
            f"{option} would leave nothing to train, or freeze nothing: {type(model).__name__} has "
            f"{len(layers)} layers, {layers[0][0]} to {layers[-1][0]}, the stem and the head included. "
            + (f"Choose first_1 to first_{most}, or head_only." if most else "Choose none.")
        )
    for name, parameter in model.named_parameters():
        if numbers[name] < count:
            parameter.requires_grad_(False)
    return tuple(prefix for _, prefixes in layers[:count] for prefix in prefixes)


def freeze_eval(model: nn.Module, frozen: tuple[str, ...]) -> None:
    """Put what `freeze` froze into eval mode: no dropout, no drop path, no new BatchNorm statistics.

    That is every module below a frozen prefix, and every other one whose parameters are all frozen.
    """
    for name, module in model.named_modules() if frozen else ():
        parameters = list(module.parameters())
        below = f"{name}.".startswith(frozen)
        if below or (parameters and not any(parameter.requires_grad for parameter in parameters)):
            module.eval()


def freeze_notes(what: str, model: Mapping[str, Any]) -> Iterator[str]:
    """Yield whether layers are frozen that have learned nothing yet.

    Args:
        what: as in `freeze`.
        model: the node of the config.
    """
    if what != "none" and not (model.get("pretrained") or model.get("checkpoint_path")):
        how = "model.pretrained=true or " * ("pretrained" in model) + "model.checkpoint_path"
        yield (
            f"task.freeze={what} keeps layers as they were drawn at random: start from weights that have "
            f"learned something ({how})."
        )
