"""Any image classifier of timm, with weights from its hub, from a local file, or new."""

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import group_parameters, resolve_pretrained_cfg
from torch import nn

from vitlab.core.errors import UserError
from vitlab.core.suggest import suggest
from vitlab.models.hub import fetch_from_hub, fetch_from_url
from vitlab.models.layers import Size, pair
from vitlab.models.pretrained import Images, Loaded, Weights, load_pretrained
from vitlab.models.wrapper import ForeignNet, building, check_arguments

# What timm calls the things that have a key of their own here.
OWN_KEYS = {
    "pretrained": "pretrained",
    "checkpoint_path": "checkpoint_path",
    "num_classes": "num_classes",
    "img_size": "image_size",
    "in_chans": "channels",
    "drop_path_rate": "drop_path",
}
# What timm's modules call the function that translates a file of weights for their networks.
FILTERS = ("checkpoint_filter_fn", "pretrained_filter_fn", "_filter_torchvision_pretrained", "_filter_fn")


class TimmModel(ForeignNet):
    """Images ``(B, channels, H, W)`` to logits ``(B, num_classes)``, by timm's network ``name``.

    Args:
        name: of an architecture, or architecture.tag for one of several sets of weights
            (``timm.list_pretrained()``).
        pretrained: take timm's weights, from the hub's cache on this disk or from the hub.
        checkpoint_path: weights of this architecture on this disk: a file (.safetensors, or what
            ``torch.load`` reads), the folder it lies in, or a run folder of ours. A head for
            another number of classes is left out and stays new. None: no file.
        image_size: pixels; told to the architectures that are built for one size (ViT, Swin),
            others take any. Positions and patch kernels of the weights are resized by timm to what
            the network needs (Dosovitskiy et al. 2021, section 3.2; Beyer et al. 2023, section 3.4).
        drop_path: stochastic depth. None: the architecture's own.
        kwargs: anything else that ``timm.create_model`` takes.

    Raises:
        UserError: an unknown name, an option that the architecture lacks, weights that cannot be
            had or do not fit.
    """

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
        check_arguments(pretrained, checkpoint_path, kwargs, OWN_KEYS)
        overlay = {key: kwargs[key] for key in ("pretrained_cfg", "pretrained_cfg_overlay") if key in kwargs}
        config = find(name, **overlay)
        size = pair("model.image_size", image_size)
        arguments = {"num_classes": num_classes, "in_chans": channels, **kwargs}
        if config.fixed_input_size:
            arguments["img_size"] = size
        if drop_path is not None:
            arguments["drop_path_rate"] = drop_path
        path = Path(checkpoint_path).expanduser() if checkpoint_path else None
        if pretrained:  # before the network is built: this is what fails
            path = fetch(name, config, kwargs.get("cache_dir"))
        with building("timm", name, arguments, OWN_KEYS):
            net = timm.create_model(name, **arguments)
        super().__init__(net, size, load(net, path, fetched=pretrained) if path else None)

    def groups(self) -> list[list[str]]:
        """timm's own groups for layer decay, where the architecture has them."""
        matcher = getattr(self.net, "group_matcher", None)
        if matcher is None:
            return super().groups()
        return list(group_parameters(self.net, matcher(coarse=False)).values())

    def no_weight_decay(self) -> set[str]:
        """What timm spares in this architecture: positions, class token, tables of distances."""
        spared: set[str] = getattr(self.net, "no_weight_decay", set)()
        return {f"net.{name}" for name in spared} & {name for name, _ in self.named_parameters()}


def find(name: str, **overlay: Any) -> Any:
    """Look up what timm knows of ``architecture`` or ``architecture.tag``; unknown: a UserError."""
    architecture, _, tag = name.partition(".")
    listing = "list_pretrained" if tag and timm.is_model(architecture) else "list_models"
    choices = getattr(timm, listing)()
    if name not in choices:
        raise UserError(
            f"timm has no model called {name!r}{suggest(name, choices)}; "
            f"model.name must be one of timm.{listing}()."
        )
    return resolve_pretrained_cfg(name, **overlay)


def fetch(name: str, config: Any, cache_dir: str | None) -> Path:
    """Return the file with timm's weights of ``name``.

    Raises:
        UserError: there are none, or they cannot be had.
    """
    if config.file:
        return Path(config.file)
    if config.hf_hub_id:
        # The original of a custom_load is in a format of its own.
        address = config.url if not config.custom_load else None
        return fetch_from_hub(name, config.hf_hub_id, config.hf_hub_filename, cache_dir, address)
    if config.url:
        return fetch_from_url(name, config.url, cache_dir)
    raise UserError(
        f"timm has no pretrained weights of {name}; set model.pretrained=false, or choose a "
        "model.name from timm.list_pretrained()."
    )


def load(net: nn.Module, path: Path, *, fetched: bool) -> Loaded:
    """Fill a timm network from a file, resized and renamed by timm's own function for the architecture."""
    config: Any = net.pretrained_cfg
    module = sys.modules[type(net).__module__]
    translate = next((getattr(module, name) for name in FILTERS if hasattr(module, name)), None)

    def convert(weights: Weights, size: tuple[int, int] | None) -> Weights:
        if translate is None:
            return weights
        takes = inspect.signature(translate).parameters
        # DeiT III's own files call the layer scale gamma; other ViTs know no such name.
        options = {"adapt_layer_scale": True} if "adapt_layer_scale" in takes else {}
        return translate(weights, *[net][: len(takes) - 1], **options)

    def names(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
        return (value,) if isinstance(value, str) else tuple(value or ())

    return load_pretrained(
        net,
        path,
        convert=convert,
        heads=names(config["classifier"]),
        stems=names(config["first_conv"]),
        images=Images(config["mean"], config["std"], config["input_size"][1:]),
        fetched=f"{config.get('hf_hub_id') or config.get('url')} ({path.name})" if fetched else None,
    )
