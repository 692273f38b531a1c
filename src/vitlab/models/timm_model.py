"""Any image classifier of timm, with weights from its hub, from a local file, or new."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import group_parameters
from torch import Tensor, nn

from vitlab.errors import UserError, nearest
from vitlab.models.layers import Size, pair

log = logging.getLogger("vitlab")

# What timm calls the things that have a key of their own here.
OWN_KEYS = {
    "pretrained": "pretrained",
    "checkpoint_path": "checkpoint_path",
    "num_classes": "num_classes",
    "img_size": "image_size",
    "in_chans": "channels",
    "drop_path_rate": "drop_path",
}
# Where checkpoints of timm, of the original repositories and of trainers keep the weights; averaged
# ones first.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")


class TimmModel(nn.Module):
    """Images ``(B, channels, H, W)`` to logits ``(B, num_classes)``, by timm's network ``name``.

    Args:
        name: of an architecture, or architecture.tag for one of several sets of weights
            (``timm.list_pretrained()``).
        pretrained: fetch timm's weights from its hub.
        checkpoint_path: local file (.safetensors, or what ``torch.load`` reads) with weights of
            this architecture. A head for another number of classes is left out and stays new. None:
            no file.
        image_size: pixels; told to the architectures that are built for one size (ViT, Swin),
            others take any.
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
        super().__init__()
        config = find(name)
        if pretrained and checkpoint_path:
            raise UserError(
                "model.pretrained=true and model.checkpoint_path both name weights; give only one."
            )
        for key in OWN_KEYS.keys() & kwargs.keys():
            raise UserError(f"model.kwargs.{key} stands for model.{OWN_KEYS[key]}; set that one.")
        self.image_size = pair("model.image_size", image_size)
        arguments = {"num_classes": num_classes, "in_chans": channels, **kwargs}
        if config.fixed_input_size:
            arguments["img_size"] = self.image_size
        if drop_path is not None:
            arguments["drop_path_rate"] = drop_path
        self.net = create(name, pretrained, arguments)
        if checkpoint_path:
            load_weights(self.net, Path(checkpoint_path))
        # See layers.ConvStem: for convolutions the other layout is slower, and compiled in bf16 on
        # the CPU it can go wrong.
        self.net.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.contiguous(memory_format=torch.channels_last))  # (B, num_classes)

    def layers(self) -> list[tuple[str, list[str]]]:
        """Layers in order, stem to head: (name, parameter-name prefixes).

        They are timm's own groups for layer decay; the few architectures that timm does not
        group are cut at their top-level modules.
        """
        matcher = getattr(self.net, "group_matcher", None)
        if matcher is not None:
            groups = list(group_parameters(self.net, matcher(coarse=False)).values())
        else:
            modules: dict[str, list[str]] = {}
            for parameter, _ in self.net.named_parameters():
                modules.setdefault(parameter.split(".")[0], []).append(parameter)
            groups = list(modules.values())
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
        """What timm spares in this architecture: positions, class token, tables of distances."""
        spared: set[str] = getattr(self.net, "no_weight_decay", set)()
        return {f"net.{name}" for name in spared} & {name for name, _ in self.named_parameters()}


def find(name: str) -> Any:
    """Look up what timm knows of ``architecture`` or ``architecture.tag``; unknown: a UserError."""
    architecture, _, tag = name.partition(".")
    listing = "list_pretrained" if tag and timm.is_model(architecture) else "list_models"
    choices = getattr(timm, listing)()
    if name not in choices:
        raise UserError(
            f"timm has no model called {name!r}{nearest(name, choices)}; "
            f"model.name must be one of timm.{listing}()."
        )
    return timm.get_pretrained_cfg(name)


def create(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> nn.Module:
    """``timm.create_model`` with its errors put in terms of the config."""
    config: Any = timm.get_pretrained_cfg(name)
    if pretrained and not config.has_weights:
        raise UserError(
            f"timm has no pretrained weights of {name}; set model.pretrained=false, or choose a "
            "model.name from timm.list_pretrained()."
        )
    if pretrained:
        log.info("fetching the pretrained weights of %s, unless they are here already", name)
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        options = ", ".join(
            f"model.{OWN_KEYS[key]}" if key in OWN_KEYS else f"model.kwargs.{key}"
            for key in arguments
            if f"'{key}'" in str(error)
        )
        raise UserError(
            f"timm's {name} does not take {options or 'these options'} ({error}); "
            "leave it out, or set it to null."
        ) from error
    except Exception as error:  # whatever the hub's client or an architecture's own checks raise
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        if not pretrained:
            raise UserError(f"timm cannot build {name} with {dict(arguments)}: {reason}") from error
        source = config.hf_hub_id or "this model"
        raise UserError(
            f"The pretrained weights of {name} could not be fetched ({reason}). Without network, "
            f"place the weights file of {source} on this machine and set model.pretrained=false "
            "model.checkpoint_path=<path of the .safetensors or .pth file>."
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file by name, without running anything that it may contain.

    Raises:
        UserError: the file is missing, broken, or holds no weights.
    """
    if not path.is_file():
        raise UserError(f"model.checkpoint_path: there is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # a broken file raises nearly anything, an empty one an EOFError without a word
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.checkpoint_path: {path} cannot be read as a file of weights ({reason}); it "
            "must be .safetensors, or a plain dictionary of tensors saved by torch.save."
        ) from error
    for container in CONTAINERS:
        if isinstance(found, Mapping) and isinstance(found.get(container), Mapping):
            found = found[container]
            break
    tensors = dict(found) if isinstance(found, Mapping) else {}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"model.checkpoint_path: {path} holds no weights.")
    while wrapper := next((w for w in WRAPPERS if all(n.startswith(w) for n in tensors)), None):
        tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors


def load_weights(net: nn.Module, path: Path) -> None:
    """Fill a timm network from a file; a head for another number of classes stays new.

    Raises:
        UserError: anything but the head is missing, left over or of another shape.
    """
    weights = read_weights(path)
    # timm's own conversion for the architecture: names of older releases, positions for another
    # image size.
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            weights = convert(weights, net)
        except Exception as error:  # it expects the architecture's names and shapes and checks none
            raise UserError(
                f"model.checkpoint_path: {path} holds no weights of this architecture "
                f"({type(error).__name__}: {error})."
            ) from error

    own = net.state_dict()
    config: Any = net.pretrained_cfg
    classifier = config["classifier"] or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    head = {name for name in own if name.startswith(tuple(f"{part}." for part in heads))}
    if any(name not in weights or weights[name].shape != own[name].shape for name in head):
        log.info("%s has no head for these classes: %s starts new", path, ", ".join(sorted(head)))
        weights = {name: value for name, value in weights.items() if name not in head}
    else:
        head = set()

    # Files from before BatchNorm counted its batches lack the counters; nothing depends on them.
    missing = [n for n in own.keys() - weights.keys() - head if "num_batches_tracked" not in n]
    reshaped = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if weights[name].shape != own[name].shape
    ]
    differences = {
        "missing": missing,
        "unexpected": list(weights.keys() - own.keys()),
        "of another shape": reshaped,
    }
    if any(differences.values()):
        details = "; ".join(
            f"{len(names)} {kind}: " + ", ".join([*sorted(names)[:4], "..."][: len(names)])
            for kind, names in differences.items()
            if names
        )
        raise UserError(
            f"model.checkpoint_path: the weights in {path} do not fit the model ({details}). "
            "Check that model.name, model.channels and model.kwargs are those it was trained with."
        )
    net.load_state_dict(weights, strict=False)
    log.info("loaded %d tensors from %s", len(weights), path)
