"""A network in timm's terms, so that plain timm opens it: timm's own, and those of ours that it has too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vitlab.models.attention import Attention
from vitlab.models.distilled import DistilledViT
from vitlab.models.pooling import ClassTokenPooling, MeanPooling
from vitlab.models.positions import RotaryPositions
from vitlab.models.pretrained import Weights
from vitlab.models.resnet import ResNet
from vitlab.models.timm_model import TimmModel
from vitlab.models.tokenizers import PatchEmbedding
from vitlab.models.torchvision_model import TorchvisionModel
from vitlab.models.vit import ViT

# Names whose arguments are all replaced: timm has none for a ViT of any size.
FRAMES = {ViT: "vit_tiny_patch16_224", DistilledViT: "deit_tiny_distilled_patch16_224"}
# Parts of our names, and of timm's.
NAMES = {
    "class_token": "cls_token",
    "position.table": "pos_embed",
    "tokenizer.projection.linear.": "patch_embed.proj.",
    ".attention.qkv.": ".attn.qkv.",
    ".attention.out.": ".attn.proj.",
    ".attention.norm_queries.": ".attn.q_norm.",
    ".attention.norm_keys.": ".attn.k_norm.",
    "pool.norm.": "norm.",
    "distillation_head.": "head_dist.",
}
# What timm.create_model takes beside the network's own arguments: none of it shapes the network.
NOT_OF_THE_NETWORK = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


@dataclass(frozen=True)
class TimmForm:
    """A network as timm has it.

    Attributes:
        architecture: timm's name.
        arguments: of ``timm.create_model``.
        weights: under timm's names.
    """

    architecture: str
    arguments: dict[str, Any]
    weights: Weights


def why_not_timm(net: nn.Module) -> str | None:
    """Return why timm cannot build a network, in a clause; None where it can."""
    if isinstance(net, TimmModel):
        return None
    if isinstance(net, TorchvisionModel):
        return "the network is torchvision's, under whose names --format safetensors has its weights"
    if isinstance(net, ResNet):
        return "timm's ResNets halve the image in their first layer, and this one does not"
    if type(net) not in (ViT, DistilledViT):
        return f"timm has no {type(net).__name__}"
    assert isinstance(net, ViT)
    if type(net.tokenizer) is not PatchEmbedding:
        return f"timm's ViT makes tokens by one projection of patches, and this one by {_name(net.tokenizer)}"
    if not isinstance(net.tokenizer.projection.norm_in, nn.Identity):
        return "timm's ViT has no LayerNorm before the projection of its patches (model.patch_norm=true)"
    if isinstance(net.position, RotaryPositions):
        return "timm's ViT adds positions to tokens, and rotary ones turn queries and keys"
    attention: Any = net.blocks[0].attention
    if type(attention) is not Attention:
        return f"timm's ViT has no {_name(attention)}"
    if attention.heads * attention.dim_head != net.head.in_features:
        return (
            f"timm's ViT divides the {net.head.in_features} numbers of a token among its heads, and here "
            f"{attention.heads} heads have {attention.dim_head} each (model.dim_head)"
        )
    if isinstance(net, DistilledViT) and not isinstance(net.pool, ClassTokenPooling):
        return "timm's distilled ViT has a class token (model.pool=cls), and this one does without"
    if type(net.pool) not in (ClassTokenPooling, MeanPooling):
        return f"timm's ViT has no {_name(net.pool)}"
    return None


def _name(part: nn.Module) -> str:
    return type(part).__name__


def to_timm(net: nn.Module, config: Mapping[str, Any], num_classes: int) -> TimmForm:
    """Return a network in timm's terms.

    Args:
        net: for which `why_not_timm` has no reason.
        config: the ``model`` section that it was built from.
        num_classes: K.
    """
    if isinstance(net, TimmModel):
        own = {key: value for key, value in config["kwargs"].items() if key not in NOT_OF_THE_NETWORK}
        size = {"img_size": list(net.image_size)} if net.source.fixed_input_size else {}
        arguments = {"num_classes": num_classes, "in_chans": config["channels"], **size, **own}
        return TimmForm(net.name.partition(".")[0], arguments, dict(net.net.state_dict()))
    assert isinstance(net, ViT)
    attention: Any = net.blocks[0].attention
    class_token = isinstance(net.pool, ClassTokenPooling)
    arguments = {
        "img_size": list(net.image_size),
        "patch_size": list(net.tokenizer.patch),
        "in_chans": config["channels"],
        "num_classes": num_classes,
        "global_pool": "token" if class_token else "avg",
        "class_token": class_token,
        "fc_norm": not class_token,  # of the mean, as ours
        "embed_dim": config["dim"],
        "depth": config["depth"],
        "num_heads": attention.heads,
        "mlp_ratio": config["mlp_ratio"],
        "qkv_bias": config["qkv_bias"],
        "qk_norm": not isinstance(attention.norm_queries, nn.Identity),
    }
    return TimmForm(FRAMES[type(net)], arguments, rename(net))


def rename(net: ViT) -> Weights:
    """Return the weights of a ViT under timm's names."""
    layout = net.token_layout()
    # Sines and cosines are not among our weights. Without positions timm's are zero.
    table = getattr(net.position, "table", torch.zeros(1, layout.num_tokens, net.head.in_features))
    weights: Weights = {}
    for name, value in {**net.state_dict(), "position.table": table}.items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        weights[name] = value
    down, across = net.tokenizer.patch
    kernel = weights["patch_embed.proj.weight"]  # (dim, C * down * across)
    weights["patch_embed.proj.weight"] = kernel.unflatten(1, (-1, down, across))
    # The norms of queries and keys have no bias, which timm's have.
    for name in [name for name in weights if name.endswith(("q_norm.weight", "k_norm.weight"))]:
        weights[name.replace("weight", "bias")] = torch.zeros_like(weights[name])
    if isinstance(net.pool, MeanPooling):
        for part in ("weight", "bias"):
            weights[f"fc_norm.{part}"] = weights.pop(f"norm.{part}")
    if isinstance(
        net, DistilledViT
    ):  # whose distillation token comes before the class token, in timm after it
        weights["dist_token"], weights["cls_token"] = weights["cls_token"].split(1, dim=1)
        weights["pos_embed"] = torch.cat([table[:, 1:2], table[:, :1], table[:, 2:]], dim=1)
    return weights


def timm_config(
    form: TimmForm, classes: Sequence[str], mean: Sequence[float], std: Sequence[float], size: Sequence[int]
) -> dict[str, Any]:
    """Return what ``config.json`` of a ``local-dir:`` folder says, in timm's layout.

    Args:
        size: (height, width) in pixels.
    """
    net: Any = timm.create_model(form.architecture, **form.arguments)
    known = net.pretrained_cfg
    return {
        "architecture": form.architecture,
        "num_classes": len(classes),
        "num_features": net.num_features,
        "label_names": list(classes),
        "model_args": form.arguments,
        "pretrained_cfg": {
            "input_size": [form.arguments["in_chans"], *size],
            "fixed_input_size": known.get("fixed_input_size", False),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",  # the whole image, whatever its shape
            "mean": list(mean),
            "std": list(std),
            "num_classes": len(classes),
            "pool_size": None,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


@torch.no_grad()
def timm_logits(folder: Path, images: Tensor) -> Tensor:
    """Return the logits (B, K) that plain timm computes from a folder, of normalised images (B, C, H, W)."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
