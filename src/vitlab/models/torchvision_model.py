"""Any image classifier of torchvision, with its pretrained weights, with a local file's, or new."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings
from torchvision.ops import StochasticDepth

from vitlab.core.errors import UserError
from vitlab.core.suggest import suggest
from vitlab.models.hub import fetch_from_url
from vitlab.models.layers import Size, pair
from vitlab.models.pretrained import Images, Weights, load_pretrained
from vitlab.models.wrapper import ForeignNet, building, check_arguments

# What torchvision calls the things that have a key of their own here.
OWN_KEYS = {
    "weights": "pretrained",
    "num_classes": "num_classes",
    "image_size": "image_size",
    "input_size": "image_size",
    "stochastic_depth_prob": "drop_path",
}
# GoogLeNet and Inception answer with three outputs while they train; MNASNet refuses weights without
# torchvision's own record of their version. timm has all three.
LEFT_OUT = ("googlenet", "inception_v3", "mnasnet*")


class TorchvisionModel(ForeignNet):
    """Images ``(B, channels, H, W)`` to logits ``(B, num_classes)``, by torchvision's network ``name``.

    Args:
        name: of an architecture (``vit_b_16``, ``swin_t``, ``convnext_tiny`` …), or architecture.weights
            for other than its default weights (``vit_b_16.IMAGENET1K_SWAG_E2E_V1``).
        pretrained: take torchvision's weights, from torch's cache on this disk or from its server.
        checkpoint_path: weights of this architecture on this disk: a file (.safetensors, or what
            ``torch.load`` reads), the folder it lies in, or a run folder of ours. A head for
            another number of classes is left out and stays new. None: no file.
        image_size: pixels; told to the architectures that are built for one size (ViT, MaxViT), others
            take any. ViT takes squares alone; positions of its weights are resized to it by
            ``interpolate_embeddings``.
        drop_path: largest stochastic depth; the architecture's own of its blocks are scaled to it. None:
            as the architecture has it.
        kwargs: anything else that the architecture's function takes.

    Raises:
        UserError: an unknown name, an option that the architecture lacks, weights that cannot be
            had or do not fit.
    """

    # Layer scale is (C, 1, 1) here and no matrix either.
    spared = ("class_token", "pos_embedding", "relative_position_bias_table", "layer_scale")

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
        architecture, source = find(name)
        size = pair("model.image_size", image_size)
        arguments: dict[str, Any] = {"num_classes": num_classes, **kwargs}
        if architecture.startswith("vit_"):
            if size[0] != size[1]:
                raise UserError(
                    f"torchvision's {architecture} takes square images alone, found model.image_size="
                    f"{list(size)}. Give one number, or take timm's (model=timm_vit_b16)."
                )
            arguments["image_size"] = size[0]
        if architecture.startswith("maxvit"):
            arguments["input_size"] = size
        path = Path(checkpoint_path).expanduser() if checkpoint_path else None
        if pretrained:  # before the network is built: this is what fails
            path = fetch_from_url(name, source.url)
        with building("torchvision", name, arguments, OWN_KEYS):
            net = models.get_model(architecture, weights=None, **arguments)
        if isinstance(net, VisionTransformer):
            # torchvision's zeros would teach the head alone in the first step; 0.02 as in DeiT.
            nn.init.normal_(net.heads.head.weight, std=0.02)
        stem = adapt_stem(net, channels)
        if drop_path is not None:
            set_drop_path(net, architecture, drop_path)

        def convert(weights: Weights, size: tuple[int, int] | None) -> Weights:
            if isinstance(net, VisionTransformer):
                return interpolate_embeddings(net.image_size, net.patch_size, dict(weights))
            # A point was once allowed inside a name: DenseNet's files still have norm.1 for norm1.
            old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
            return {old.sub(r"\1", key): value for key, value in weights.items()}

        loaded = None
        if path:
            preset = source.transforms()
            (side,) = preset.crop_size
            loaded = load_pretrained(
                net,
                path,
                convert=convert,
                heads=[[key for key, _ in net.named_parameters()][-1].rpartition(".")[0]],
                stems=[stem],
                images=Images(tuple(preset.mean), tuple(preset.std), (side, side)),
                fetched=f"torchvision's {source} ({path.name})" if pretrained else None,
            )
        super().__init__(net, size, loaded)

    def groups(self) -> list[list[str]]:
        """Names of the parameters by layer; ViT's blocks lie deeper than those of other architectures."""
        if not isinstance(self.net, VisionTransformer):
            return super().groups()
        found: dict[str, list[str]] = {}
        block = "stem"
        for name, _ in self.net.named_parameters():
            match = re.match(r"encoder\.layers\.(\w+)", name)
            if match:
                block = match[1]
            elif block != "stem":
                block = "head"
            found.setdefault(block, []).append(name)
        return list(found.values())


def find(name: str) -> tuple[str, Any]:
    """Return the architecture and the torchvision weights that ``name`` means; unknown: a UserError."""
    architecture, _, tag = name.partition(".")
    choices = models.list_models(module=models, exclude=LEFT_OUT)
    if architecture not in choices:
        raise UserError(
            f"torchvision has no model called {architecture!r} that fits here"
            f"{suggest(architecture, choices)}; model.name must be one of {', '.join(choices)}."
        )
    weights: Any = models.get_model_weights(architecture)
    tags = list(weights.__members__)
    if tag and tag not in tags:
        raise UserError(
            f"torchvision has no weights {tag!r} of {architecture}{suggest(tag, tags)}; model.name must be "
            f"{architecture}, or {architecture}. and one of {', '.join(tags)}."
        )
    return architecture, weights[tag or "DEFAULT"]


def adapt_stem(net: nn.Module, channels: int) -> str:
    """Let the first convolution, made for three channels, see ``channels``; return its name.

    The random kernels are added up or repeated as trained ones are: the sum of three is as wide as a kernel
    made for one channel.
    """
    name, stem = next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    if channels != stem.in_channels:
        stem.weight = nn.Parameter(adapt_input_conv(channels, stem.weight.detach()))
        stem.in_channels = channels
    return name


def set_drop_path(net: nn.Module, architecture: str, largest: float) -> None:
    """Scale the rates of stochastic depth so that the largest is ``largest``.

    Raises:
        UserError: the architecture has no stochastic depth.
    """
    depths = [module for module in net.modules() if isinstance(module, StochasticDepth)]
    most = max((module.p for module in depths), default=0.0)
    if not most:
        raise UserError(
            f"torchvision's {architecture} does not take model.drop_path: it has no stochastic depth; set "
            "model.drop_path=null, or take timm's (model=timm_vit_b16)."
        )
    for module in depths:
        module.p *= largest / most
