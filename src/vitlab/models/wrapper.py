"""The networks of other libraries behind our contract: what timm's and torchvision's share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitlab.core.errors import UserError
from vitlab.models.layers import Size, pair
from vitlab.models.pretrained import Loaded


class LibraryModel(nn.Module):
    """A network of another library: images ``(B, channels, H, W)`` to logits ``(B, num_classes)``.

    Args:
        name: of the architecture, as the library calls it; with ``.tag`` for one of several sets of weights.
        pretrained: start from the library's weights, from the cache on this disk or downloaded into it.
        checkpoint_path: weights of this architecture on this disk: a file (.safetensors, or what
            ``torch.load`` reads), the folder it lies in, or a run folder of ours. A head for another number
            of classes is left out and stays new. None: no file.
        num_classes: K.
        image_size: pixels; told to the architectures that are built for one size, others take any.
        channels: of the images.
        drop_path: the largest rate of stochastic depth. None: the architecture's own.
        kwargs: anything else that the library's constructor takes.

    Raises:
        UserError: an unknown name, an option that the architecture lacks, weights that cannot be had or do
            not fit.

    Attributes:
        net: the network.
        loaded: what became of its pretrained weights; None if it has none.
    """

    # What the library calls the arguments that have a key of their own here → that key.
    own_keys: ClassVar[Mapping[str, str]] = {}
    # Last parts of the names of parameters that weight decay leaves alone.
    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        name: str,
        pretrained: bool,
        checkpoint_path: str | None,
        num_classes: int,
        image_size: Size,
        channels: int,
        drop_path: float | None,
        kwargs: Mapping[str, Any],
    ) -> None:
        super().__init__()
        assert not (pretrained and checkpoint_path)
        for key in self.own_keys.keys() & kwargs.keys():
            raise UserError(
                f"model.kwargs.{key} has a key of its own, model.{self.own_keys[key]}: set that one."
            )
        self.image_size = pair("model.image_size", image_size)
        source = self.find(name, kwargs)
        path = Path(checkpoint_path).expanduser() if checkpoint_path else None
        if pretrained:  # before the network is built: this is what fails
            path = self.fetch(name, source, kwargs)
        net = self.create(name, source, {"num_classes": num_classes, **kwargs}, channels, drop_path)
        self.loaded = self.load(net, source, path, fetched=pretrained) if path else None
        self.net = net.to(memory_format=torch.channels_last)  # see `layers.ChannelsLast`

    @staticmethod
    def find(name: str, kwargs: Mapping[str, Any]) -> Any:
        """Return what the library knows of ``name``; unknown: a UserError."""
        raise NotImplementedError

    def fetch(self, name: str, source: Any, kwargs: Mapping[str, Any]) -> Path:
        """Return the file with the library's weights; a UserError if it cannot be had."""
        raise NotImplementedError

    def create(
        self, name: str, source: Any, arguments: dict[str, Any], channels: int, drop_path: float | None
    ) -> nn.Module:
        """Build the network, with weights drawn at random."""
        raise NotImplementedError

    def load(self, net: nn.Module, source: Any, path: Path, *, fetched: bool) -> Loaded:
        """Fill the network from a file, which was ``fetched`` or is the user's own."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Classify images ``(B, channels, H, W)``: logits ``(B, num_classes)``."""
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
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in self.no_decay}


@contextmanager
def building(library: str, name: str, arguments: Mapping[str, Any], own: Mapping[str, str]) -> Iterator[None]:
    """Put the errors of another library's constructor in terms of the config, with ``own`` its `own_keys`."""
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
