"""The networks of other libraries behind our contract: what timm's and torchvision's share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitlab.core.errors import UserError
from vitlab.models.layers import Size, pair
from vitlab.models.pretrained import Loaded

# What both libraries and we call by the same name.
SHARED_KEYS = {key: key for key in ("pretrained", "checkpoint_path", "num_classes", "image_size")}


class LibraryModel(nn.Module):
    """A network of another library: images ``(B, channels, H, W)`` to logits ``(B, num_classes)``.

    Args (``conf/model/timm_vit_b16.yaml`` explains the others):
        name: of the architecture, as the library calls it; with ``.tag`` for one of several sets of weights.
        checkpoint_path: weights of this architecture on this disk: a file (.safetensors, or what
            ``torch.load`` reads), the folder it lies in, or a run folder of ours. None: no file.
        image_size: pixels; told to the architectures that are built for one size, others take any.

    Raises:
        UserError: an unknown name or option, weights that cannot be had or do not fit.
    """

    library: ClassVar[str]
    own_keys: ClassVar[Mapping[str, str]]  # the library's name of an argument → our key for it

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
        for key, ours in self.own_keys.items():
            if key in kwargs:
                raise UserError(f"model.kwargs.{key} has a key of its own, model.{ours}: set that one.")
        self.name, self.image_size = name, pair("model.image_size", image_size)
        self.source = self.find(name, kwargs)  # what the library knows of the name
        path = Path(checkpoint_path).expanduser() if checkpoint_path else None
        if pretrained:  # before the network is built: this is what fails
            path = self.fetch(kwargs.get("cache_dir"))
        net = self.create({"num_classes": num_classes, **kwargs}, channels, drop_path)
        self.loaded = self.load(net, path, fetched=pretrained) if path else None
        self.net = net.to(memory_format=torch.channels_last)  # see `layers.ChannelsLast`

    @staticmethod
    def find(name: str, kwargs: Mapping[str, Any]) -> Any:
        """Return what the library knows of ``name``; unknown: a UserError."""
        raise NotImplementedError

    def fetch(self, cache_dir: str | None) -> Path:
        """Return the file with the library's weights; a UserError if it cannot be had."""
        raise NotImplementedError

    def create(self, arguments: dict[str, Any], channels: int, drop_path: float | None) -> nn.Module:
        """Build the network, with weights drawn at random."""
        raise NotImplementedError

    def load(self, net: nn.Module, path: Path, *, fetched: bool) -> Loaded:
        """Fill the network from a file, which was ``fetched`` or is the user's own."""
        raise NotImplementedError

    def construct(self, constructor: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
        """Call the library's constructor; a UserError puts what it raises in terms of the config."""
        try:
            return constructor(**arguments)
        except TypeError as error:
            options = ", ".join(
                f"model.{self.own_keys[key]}" if key in self.own_keys else f"model.kwargs.{key}"
                for key in arguments
                if f"'{key}'" in str(error)
            )
            raise UserError(
                f"{self.library}'s {self.name} does not take {options or 'these options'} ({error}); "
                "leave it out, or set it to null."
            ) from error
        except Exception as error:  # whatever an architecture's own checks raise
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            said = f"{self.library} cannot build {self.name} with {dict(arguments)}: {reason}"
            raise UserError(said) from error

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
        """The `groups`, in order: stem, layer_1, layer_2 … head."""
        groups = self.groups()
        names = ["stem", *(f"layer_{i}" for i in range(1, len(groups) - 1)), "head"]
        layers = []
        for layer, group in zip(names[-len(groups) :], groups, strict=True):
            # A whole name can be the beginning of another (gamma, gamma_xca), and then claims both.
            claims = [n for n in group if not any(n != other and n.startswith(other) for other in group)]
            layers.append((layer, [f"net.{name}" for name in claims]))
        return layers
