"""Which parameter is trained how: every one in exactly one group."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from vitlab.core.errors import UserError

# How the common implementations name a weight in which query, key and value are stacked: ours and timm's,
# torch's own.
STACKED_QKV = ("qkv.weight", "in_proj_weight")


def read_layers(model: nn.Module, needed_by: str) -> tuple[list[tuple[str, list[str]]], dict[str, int]]:
    """Return ``model.layers()``, stem to head, and by a parameter's name the place of its layer in there.

    Args:
        needed_by: the option that asks, for the message.

    Raises:
        UserError: the model has no ``layers()``.
        ValueError: its ``layers()`` claim a parameter not at all, or twice.
    """
    if not hasattr(model, "layers"):
        raise UserError(
            f"{needed_by} needs to know the order of a network's layers, and {type(model).__name__} does not "
            "say it: give it a method layers() (CONTRIBUTING.md, Add a model), or leave that option out."
        )
    layers: list[tuple[str, list[str]]] = model.layers()  # type: ignore[operator]
    numbers = {}
    for name, _ in model.named_parameters():
        claims = [number for number, (_, own) in enumerate(layers) if name.startswith(tuple(own))]
        if len(claims) != 1:
            by = ", ".join(layers[number][0] for number in claims) or "no layer"
            raise ValueError(
                f"{type(model).__name__}.layers() must claim every parameter once; {name} is claimed by {by}"
            )
        numbers[name] = claims[0]
    return layers, numbers


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    matrices_apart: bool = False,
    kernels: bool = False,
) -> list[dict[str, Any]]:
    """Put every trainable parameter of ``model`` into one group of those that are trained alike.

    Decay is for matrices (and convolution kernels): norms, biases and what the model names in
    ``no_weight_decay()`` (positions, class token) go without, as in Dosovitskiy et al. 2021's code.

    Args:
        lr: of the head, and without layer decay of all.
        layer_decay: the i-th of L layers gets ``lr * layer_decay ** (L - i)``, so that early layers keep
            more of what they have learned before (Clark et al. 2020, section 3.2 and appendix A; Bao et al.
            2021, appendix). 1: off.
        matrices_apart: matrices that decay and lie between the first layer and the last get groups of
            their own, ``matrices`` and ``qkv``: for `vitlab.optim.Muon`. With ``kernels`` those of
            convolutions, too, but for the first one, which sees pixels.

    Returns:
        Optimizer groups with the extra keys ``name`` (the kind, and with layer decay ``kind/layer``),
        ``names`` (of the parameters) and, in ``matrices``, ``qkv`` and ``kernels``, ``stacked``: how many
        matrices lie in one parameter, one above the other.

    Raises:
        UserError, ValueError: as `read_layers`; the model exempts a parameter that it does not have.
    """
    exempt: set[str] = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    if unknown := exempt - {name for name, _ in model.named_parameters()}:
        raise ValueError(f"{type(model).__name__}.no_weight_decay() names no parameter: {sorted(unknown)}")
    layered = layer_decay != 1
    layers, numbers = [("", [""])], dict[str, int]()
    if layered or matrices_apart:
        option = f"optimizer.layer_decay={layer_decay:g}" if layered else "optimizer=muon"
        layers, numbers = read_layers(model, option)
    last = len(layers) - 1
    convolutions = [name for name, parameter in model.named_parameters() if parameter.ndim == 4]

    def kind(name: str, parameter: nn.Parameter) -> str:
        if parameter.ndim < 2 or name in exempt:
            return "no_decay"
        if kernels and name in convolutions[1:] and numbers[name] != last:
            return "kernels"
        if not matrices_apart or parameter.ndim > 2 or numbers[name] in (0, last):
            return "decay"
        return "qkv" if name.endswith(STACKED_QKV) and len(parameter) % 3 == 0 else "matrices"

    kinds: dict[str, dict[str, Any]] = {
        "matrices": {"weight_decay": weight_decay, "stacked": 1},
        "qkv": {"weight_decay": weight_decay, "stacked": 3},
        "kernels": {"weight_decay": weight_decay, "stacked": 1},
        "decay": {"weight_decay": weight_decay},
        "no_decay": {"weight_decay": 0.0},
    }
    claimed = defaultdict[tuple[str, int], dict[str, nn.Parameter]](dict)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            claimed[kind(name, parameter), numbers[name] if layered else last][name] = parameter
    return [
        {
            "name": f"{which}/{layers[place][0]}" if layered else which,
            "names": [*claimed[which, place]],
            "params": [*claimed[which, place].values()],
            "lr": lr * layer_decay ** (last - place),
            **options,
        }
        for which, options in kinds.items()
        for place in range(last + 1)
        if (which, place) in claimed
    ]


def make_optimizer(
    model: nn.Module,
    *,
    kind: Callable[..., Optimizer],
    layer_decay: float,
    lr: float,
    weight_decay: float,
    options: Mapping[str, Any],
) -> Optimizer:
    """Group the trainable parameters of ``model`` and hang an optimizer on them.

    Args:
        kind: parameter groups, lr, weight_decay and ``options`` → optimizer: one of `vitlab.optim`, or a
            class of `torch.optim`.
        layer_decay, lr, weight_decay: see `parameter_groups`.

    Raises:
        UserError: the optimizer refuses its options or the parameters; or see `parameter_groups`.
    """
    own = dict(options)
    groups = parameter_groups(
        model,
        lr=lr,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        matrices_apart=getattr(kind, "matrices_apart", False),
        kernels=own.pop("kernels", False),
    )
    try:
        return kind(groups, lr=lr, weight_decay=weight_decay, **own)
    except (TypeError, ValueError) as error:
        raise UserError(f"the optimizer {kind.__name__} cannot be built as configured: {error}") from error
