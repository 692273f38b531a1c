"""Any image classifier of torchvision, with its pretrained weights, with a local file's, or new."""

import re
from collections.abc import Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings
from torchvision.ops import StochasticDepth

from vitlab.core.errors import UserError
from vitlab.core.suggest import suggest
from vitlab.models.attention_weights import TokenLayout
from vitlab.models.hub import fetch_from_url
from vitlab.models.pretrained import Images, Loaded, Weights, fit_channels, load_pretrained
from vitlab.models.wrapper import SHARED_KEYS, LibraryModel

# GoogLeNet and Inception answer with three outputs while they train; MNASNet refuses weights without
# torchvision's own record of their version. timm has all three.
LEFT_OUT = ("googlenet", "inception_v3", "mnasnet*")


class TorchvisionModel(LibraryModel):
    """torchvision's network ``name``, as `LibraryModel` says.

    ``vit_b_16`` has its default weights, ``vit_b_16.IMAGENET1K_SWAG_E2E_V1`` others. A ViT takes squares
    alone; positions of its weights are resized by ``interpolate_embeddings``. ``drop_path`` scales the
    architecture's own rates.
    """

    library = "torchvision"
    own_keys = SHARED_KEYS | {
        "weights": "pretrained",
        "input_size": "image_size",
        "stochastic_depth_prob": "drop_path",
    }

    @staticmethod
    def find(name: str, kwargs: Mapping[str, Any]) -> Any:
        """Return the torchvision weights that ``name`` means; unknown: a UserError."""
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
                f"torchvision has no weights {tag!r} of {architecture}{suggest(tag, tags)}; model.name must "
                f"be {architecture}, or {architecture}. and one of {', '.join(tags)}."
            )
        return weights[tag or "DEFAULT"]

    def fetch(self, cache_dir: str | None) -> Path:
        """Return the file with torchvision's weights; a UserError if it cannot be had."""
        return fetch_from_url(self.name, self.source.url)

    def create(self, arguments: dict[str, Any], channels: int, drop_path: float | None) -> nn.Module:
        """Build the network, with weights drawn at random."""
        architecture = self.name.partition(".")[0]
        size = self.image_size
        if architecture.startswith("vit_"):
            if size[0] != size[1]:
                raise UserError(
                    f"torchvision's {architecture} takes square images alone, found model.image_size="
                    f"{list(size)}. Give one number, or take timm's (model=timm_vit_b16)."
                )
            arguments["image_size"] = size[0]
        if architecture.startswith("maxvit"):
            arguments["input_size"] = size
        net = self.construct(partial(models.get_model, architecture, weights=None), arguments)
        if isinstance(net, VisionTransformer):
            # torchvision's zeros would teach the head alone in the first step; 0.02 as in DeiT.
            nn.init.normal_(net.heads.head.weight, std=0.02)
        _, stem = find_stem(net)
        if channels != stem.in_channels:
            # The random kernels are added up or repeated as trained ones are: the sum of three is as wide as
            # a kernel made for one channel.
            stem.weight = nn.Parameter(fit_channels(stem.weight.detach(), channels))
            stem.in_channels = channels
        if drop_path is not None:
            set_drop_path(net, architecture, drop_path)
        return net

    def load(self, net: nn.Module, path: Path, *, fetched: bool) -> Loaded:
        """Fill the network from a file, positions and old names translated."""

        def convert(weights: Weights, size: tuple[int, int] | None) -> Weights:
            if isinstance(net, VisionTransformer):
                return interpolate_embeddings(net.image_size, net.patch_size, dict(weights))
            # A point was once allowed inside a name: DenseNet's files still have norm.1 for norm1.
            old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
            return {old.sub(r"\1", key): value for key, value in weights.items()}

        preset = self.source.transforms()
        (side,) = preset.crop_size
        return load_pretrained(
            net,
            path,
            convert=convert,
            heads=[[key for key, _ in net.named_parameters()][-1].rpartition(".")[0]],
            stems=[find_stem(net)[0]],
            images=Images(tuple(preset.mean), tuple(preset.std), (side, side)),
            fetched=f"torchvision's {self.source} ({path.name})" if fetched else None,
        )

    def token_layout(self) -> TokenLayout | None:
        """Return how the tokens of a ViT lie; None for other networks."""
        if not isinstance(self.net, VisionTransformer):
            return None
        side = self.net.image_size // self.net.patch_size
        blocks: list[Any] = list(self.net.encoder.layers)
        return TokenLayout(
            grid=(side, side),
            prefix=1,
            read=1,
            blocks=blocks,
            attentions=[block.self_attention for block in blocks],
            norms=[block.ln_1 for block in blocks],
            positions=self.net.encoder.pos_embedding,
        )

    def groups(self) -> list[list[str]]:
        """Names of the parameters by layer; ViT's blocks lie deeper than those of other architectures."""
        if not isinstance(self.net, VisionTransformer):
            return super().groups()
        names = [name for name, _ in self.net.named_parameters()]
        blocks = groupby(names, lambda name: re.findall(r"encoder\.layers\.\w+", name))
        return [list(group) for _, group in blocks]

    def no_weight_decay(self) -> set[str]:
        """Positions, tokens and tables of distances are no matrices, nor is layer scale, (C, 1, 1) here."""
        spared = ("class_token", "pos_embedding", "relative_position_bias_table", "layer_scale")
        return {name for name, _ in self.named_parameters() if name.endswith(spared)}


def find_stem(net: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the first convolution and its name."""
    return next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))


def set_drop_path(net: nn.Module, architecture: str, largest: float) -> None:
    """Scale the rates of stochastic depth so that the largest is ``largest``; without any: a UserError."""
    depths = [module for module in net.modules() if isinstance(module, StochasticDepth)]
    most = max((module.p for module in depths), default=0.0)
    if not most:
        raise UserError(
            f"torchvision's {architecture} does not take model.drop_path: it has no stochastic depth; set "
            "model.drop_path=null, or take timm's (model=timm_vit_b16)."
        )
    for module in depths:
        module.p *= largest / most
