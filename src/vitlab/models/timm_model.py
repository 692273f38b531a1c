"""Any image classifier of timm, with weights from its hub, from a local file, or new."""

import inspect
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.layers import to_ntuple
from timm.models import group_parameters, resolve_pretrained_cfg
from torch import nn

from vitlab.core.errors import UserError
from vitlab.core.suggest import suggest
from vitlab.models.attention_weights import TokenLayout
from vitlab.models.hub import fetch_from_hub, fetch_from_url
from vitlab.models.pretrained import Images, Loaded, Weights, load_pretrained
from vitlab.models.wrapper import SHARED_KEYS, LibraryModel

# What timm's modules call the function that translates a file of weights for their networks.
FILTERS = ("checkpoint_filter_fn", "pretrained_filter_fn", "_filter_torchvision_pretrained", "_filter_fn")


class TimmModel(LibraryModel):
    """timm's network ``name``, as `LibraryModel` says.

    ``timm.list_pretrained()`` lists the names with weights. Positions and patch kernels of the weights are
    resized by timm to ``image_size`` (Dosovitskiy et al. 2021, section 3.2; Beyer et al. 2023, section 3.4).
    """

    library = "timm"
    own_keys = SHARED_KEYS | {"img_size": "image_size", "in_chans": "channels", "drop_path_rate": "drop_path"}

    @staticmethod
    def find(name: str, kwargs: Mapping[str, Any]) -> Any:
        """Return timm's record of ``architecture`` or ``architecture.tag``; unknown: a UserError."""
        architecture, _, tag = name.partition(".")
        listing = "list_pretrained" if tag and timm.is_model(architecture) else "list_models"
        choices = getattr(timm, listing)()
        if name not in choices:
            raise UserError(
                f"timm has no model called {name!r}{suggest(name, choices)}; "
                f"model.name must be one of timm.{listing}()."
            )
        overlay = ("pretrained_cfg", "pretrained_cfg_overlay")
        return resolve_pretrained_cfg(name, **{key: kwargs[key] for key in overlay if key in kwargs})

    def fetch(self, cache_dir: str | None) -> Path:
        """Return the file with timm's weights; a UserError if there are none to be had."""
        name, source = self.name, self.source
        if source.file:
            return Path(source.file)
        if source.hf_hub_id:
            # The original of a custom_load is in a format of its own.
            address = source.url if not source.custom_load else None
            return fetch_from_hub(name, source.hf_hub_id, source.hf_hub_filename, cache_dir, address)
        if source.url:
            return fetch_from_url(name, source.url, cache_dir)
        raise UserError(
            f"timm has no pretrained weights of {name}; set model.pretrained=false, or choose a "
            "model.name from timm.list_pretrained()."
        )

    def create(self, arguments: dict[str, Any], channels: int, drop_path: float | None) -> nn.Module:
        """Build the network, with weights drawn at random."""
        arguments["in_chans"] = channels
        if self.source.fixed_input_size:
            arguments["img_size"] = self.image_size
        if drop_path is not None:
            arguments["drop_path_rate"] = drop_path
        return self.construct(partial(timm.create_model, self.name), arguments)

    def load(self, net: nn.Module, path: Path, *, fetched: bool) -> Loaded:
        """Fill the network from a file, resized and renamed by timm's function for the architecture."""
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

        names = to_ntuple(1)  # one name in a tuple; several are a tuple already
        return load_pretrained(
            net,
            path,
            convert=convert,
            heads=names(config["classifier"] or ()),
            stems=names(config["first_conv"] or ()),
            images=Images(config["mean"], config["std"], config["input_size"][1:]),
            fetched=f"{config.get('hf_hub_id') or config.get('url')} ({path.name})" if fetched else None,
        )

    def token_layout(self) -> TokenLayout | None:
        """Return how the tokens of a ViT or one of its kin lie; None for other networks."""
        net: Any = self.net
        blocks = list(getattr(net, "blocks", []))
        if not hasattr(net, "num_prefix_tokens") or not all(hasattr(block, "attn") for block in blocks):
            return None
        heads = 2 if hasattr(net, "head_dist") else 1  # DeiT's reads its distillation token too
        return TokenLayout(
            grid=net.patch_embed.grid_size,
            prefix=net.num_prefix_tokens,
            read=heads if net.global_pool == "token" else 0,
            blocks=blocks,
            attentions=[block.attn for block in blocks],
            norms=[block.norm1 for block in blocks],
            positions=getattr(net, "pos_embed", None),
        )

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
