"""What the networks of other libraries have in common here."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.core.errors import UserError
from vitlab.models.pretrained import Loaded


class ForeignNet(nn.Module):
    """A network of another library behind our contract: images ``(B, C, H, W)`` to logits ``(B, K)``.

    Attributes:
        net: the network.
        loaded: what became of its pretrained weights; None if it has none.
    """

    # Last parts of the names of parameters that weight decay leaves alone.
    spared: tuple[str, ...] = ()

    def __init__(self, net: nn.Module, image_size: tuple[int, int], loaded: Loaded | None) -> None:
        super().__init__()
        self.image_size = image_size
        self.loaded = loaded
        # See tokenizers.ConvStem: for convolutions the other layout is slower, and compiled in bf16 on
        # the CPU it can go wrong.
        self.net = net.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.contiguous(memory_format=torch.channels_last))  # (B, num_classes)

    def groups(self) -> list[list[str]]:
        """Names of ``net``'s parameters by layer: its children, and those of its sequences but the last."""
        names = [name for name, _ in self.net.named_parameters()]
        last = names[-1].partition(".")[0]
        found: dict[str, list[str]] = {}
        for name in names:
            top, _, rest = name.partition(".")
            sequence = isinstance(getattr(self.net, top), nn.Sequential | nn.ModuleList) and top != last
            found.setdefault(f"{top}.{rest.partition('.')[0]}" if sequence else top, []).append(name)
        return list(found.values())

    def layers(self) -> list[tuple[str, list[str]]]:
        """Layers in order, stem to head: (name, parameter-name prefixes)."""
        groups = self.groups()
        names = ["stem", *(f"layer_{i}" for i in range(1, len(groups) - 1)), "head"]
        # A whole name can be the beginning of another (gamma, gamma_xca); the shorter then claims
        # both.
        return [
            (
                layer,
                [
                    f"net.{name}"
                    for name in group
                    if not any(name != other and name.startswith(other) for other in group)
                ],
            )
            for layer, group in zip(names[-len(groups) :], groups, strict=True)
        ]

    def no_weight_decay(self) -> set[str]:
        """Positions, tokens and tables of distances: points, not maps."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in self.spared}


def check_arguments(
    pretrained: bool, checkpoint_path: str | None, kwargs: Mapping[str, Any], own: Mapping[str, str]
) -> None:
    """Refuse what is said twice.

    Args:
        own: what the library calls the things that have a key of their own here → that key.
    """
    if pretrained and checkpoint_path:
        raise UserError("model.pretrained=true and model.checkpoint_path both name weights; give only one.")
    for key in own.keys() & kwargs.keys():
        raise UserError(f"model.kwargs.{key} stands for model.{own[key]}; set that one.")


@contextmanager
def building(library: str, name: str, arguments: Mapping[str, Any], own: Mapping[str, str]) -> Iterator[None]:
    """Put the errors of another library's constructor in terms of the config."""
    try:
        yield
    except TypeError as error:
        options = ", ".join(
            f"model.{own[key]}" if key in own else f"model.kwargs.{key}"
            for key in arguments
            if f"'{key}'" in str(error)
        )
        raise UserError(
            f"{library}'s {name} does not take {options or 'these options'} ({error}); "
            "leave it out, or set it to null."
        ) from error
    except Exception as error:  # whatever an architecture's own checks raise
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise UserError(f"{library} cannot build {name} with {dict(arguments)}: {reason}") from error
