"""Attribution: which parts of an image a prediction rests on, by several methods of one signature.

A method takes a network (an `eager_copy`), normalised images ``(B, C, H, W)`` and a class for each, and
returns maps ``(B, h, w)`` of any size, of patches or pixels: larger where more speaks for the class.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.core.errors import UserError
from vitlab.core.extras import need
from vitlab.inference.methods import CAMS
from vitlab.models.attention_weights import TokenLayout, record_attention, token_layout, weights_over_tokens

Method = Callable[[nn.Module, Tensor, Tensor], Tensor]
# Integrated gradients' points between no image and the image: enough that its sum is the logit's rise within
# a few percent.
STEPS = 32


def attention(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Attention of the last block, mean over its heads: what the class token sees, or the mean patch."""
    return layer_attention(net, images)[:, -1].mean(1)


@torch.no_grad()
def layer_attention(net: nn.Module, images: Tensor) -> Tensor:
    """Return the attention of every block and head to the patches, ``(B, depth, heads, h, w)``.

    The row of the class token, or the mean of the patches' rows where there is none.

    Raises:
        UserError: see `record_attention`.
    """
    layout, weights = _weights(net, images)
    return torch.stack([layout.row(own) for own in weights], 1)


def rollout(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Attention followed through all blocks, half of it by the residual connections.

    Source: "Quantifying Attention Flow in Transformers" (Abnar & Zuidema 2020, section 3), with the mean over
    heads. It knows nothing of the class.
    """
    with torch.no_grad():
        layout, weights = _weights(net, images)
        identity = torch.eye(layout.num_tokens, device=images.device)
        flow = identity
        for own in weights:
            flow = (own.mean(1) + identity) / 2 @ flow  # (B, N, N), rows that sum to one
        return layout.row(flow)


def gradient_rollout(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Rollout of the attention that the class's logit grows with.

    Source: "Generic Attention-model Explainability" (Chefer et al. 2021, equations 5 and 6).
    """
    layout = token_layout(net)
    logits, weights = record_attention(net, images)
    gradients = torch.autograd.grad(_logits_of(logits, classes).sum(), weights)
    assert layout is not None
    with torch.no_grad():
        helpful = [(own * slope).clamp(min=0) for own, slope in zip(weights, gradients, strict=True)]
        identity = torch.eye(layout.num_tokens, device=images.device)
        flow = identity
        for module, own in zip(layout.attentions, helpful, strict=True):
            flow = flow + weights_over_tokens(module, own).mean(1) @ flow  # (B, N, N)
        return layout.row(flow - identity)  # what each patch starts with is the same for all


def class_activation_map(kind: str) -> Method:
    """Return a method of torchcam's, such as ``GradCAM``."""

    def method(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        extractor = getattr(_library("torchcam.methods"), kind)
        layout = token_layout(net)
        to_image: Callable[[Tensor], Tensor]
        if layout is not None:
            # The norm before the last attention: after it a class token alone has gradients.
            layer, to_image = layout.norms[-1], layout.patches
        else:
            layer, to_image = _last_image_layer(net, images[:1])
        with extractor(net, layer, reshape_transform=to_image) as cam, torch.enable_grad():
            scores = net(images)
            (maps,) = cam(classes.tolist(), scores, normalized=False)
        return maps.detach()

    method.__doc__ = f"{kind} of torchcam, at the last layer that has gradients on an image's places."
    return method


def integrated_gradients(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Integrated gradients of the logit, from the mean colour to the image, summed over the channels.

    Source: "Axiomatic Attribution for Deep Networks" (Sundararajan et al. 2017, section 3); by captum.
    """
    integrate = _library("captum.attr").IntegratedGradients(net)
    found: Tensor = integrate.attribute(
        images, target=classes, n_steps=STEPS, internal_batch_size=max(len(images), 64)
    )
    return found.detach().sum(1).to(images.dtype)


@torch.no_grad()
def occlusion(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """How far the logit falls when a square of a quarter of the image's side is set to the mean colour.

    Source: "Visualizing and Understanding Convolutional Networks" (Zeiler & Fergus 2014, section 4.2); by
    captum.
    """
    _, channels, height, width = images.shape
    square = (max(height // 4, 1), max(width // 4, 1))
    occlude = _library("captum.attr").Occlusion(net)
    found: Tensor = occlude.attribute(
        images,
        target=classes,
        sliding_window_shapes=(channels, *square),
        strides=(channels, *(max(side // 2, 1) for side in square)),
    )
    return found[:, 0]


METHODS: dict[str, Method] = {
    "attention": attention,
    "rollout": rollout,
    "gradient_rollout": gradient_rollout,
    **{name: class_activation_map(kind) for name, kind in CAMS.items()},
    "integrated_gradients": integrated_gradients,
    "occlusion": occlusion,
}


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps ``(B, h, w)`` at (height, width) pixels, bilinear."""
    return F.interpolate(maps[:, None].float(), tuple(size), mode="bilinear", align_corners=False)[:, 0]


def _weights(net: nn.Module, images: Tensor) -> tuple[TokenLayout, list[Tensor]]:
    """Return the layout, and the attention over tokens of each block, without gradients."""
    _, recorded = record_attention(net, images)
    layout = token_layout(net)
    assert layout is not None
    pairs = zip(layout.attentions, recorded, strict=True)
    return layout, [weights_over_tokens(module, own.detach()) for module, own in pairs]


def _logits_of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]  # (B,)


def _library(name: str) -> Any:
    need(name.partition(".")[0], extra="explain", what="this method")
    return importlib.import_module(name)


def _last_image_layer(net: nn.Module, image: Tensor) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return the last layer whose output is an image of more than one place, and what puts channels first."""
    seen: list[tuple[nn.Module, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda layer, _, out: seen.append((layer, out)))
        for module in net.modules()
    ]
    with torch.no_grad():
        net(image)
    for handle in handles:
        handle.remove()
    for layer, out in reversed(seen):
        if isinstance(out, Tensor) and out.ndim == 4:
            # Swin's channels come last; they are more than the places on a side.
            last = out.shape[3] > out.shape[1]
            sides = out.shape[1:3] if last else out.shape[2:]
            if min(sides) > 1:
                return layer, (lambda found: found.movedim(-1, 1)) if last else (lambda found: found)
    raise UserError("this network has no layer that keeps the places of the image: choose occlusion.")
