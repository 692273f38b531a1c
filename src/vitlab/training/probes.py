"""Probes: what a network does inside, measured on a few images and on a copy of it."""

import torch
from torch import Tensor, nn

from vitlab.models.attention_weights import TokenLayout, eager_copy, token_layout, watch, weights_over_tokens

NEAR_ZERO = 0.01  # an activation smaller than this contributes nothing


@torch.no_grad()
def probe_tokens(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return how the tokens of a transformer look at each other, and how large they grow.

    Args:
        net: with a `token_layout`.
        images: ``(B, C, H, W)``, normalised.

    Returns:
        entropy: ``(depth, heads)``, of a token's attention over that of a uniform one, 0..1.
        distance: ``(depth, heads)``, from a patch to those that it attends to, in patches (Dosovitskiy et al.
            2021, figure 11).
        largest_score: ``(depth,)``, of what the softmax gets.
        near_zero: ``(depth,)``, the share of activations after GELU that are smaller than `NEAR_ZERO`.
        dead: ``(depth,)``, the share of units for which that is so at every token of every image.
        residual_norm: ``(depth,)``, the mean norm of a token after each block.
        feature_norm: ``(1,)``, that of what the prediction is read from.
        maps: ``(B, h, w)``, the last block's attention to the patches.
    """
    net = eager_copy(net)
    layout = token_layout(net)
    assert layout is not None
    found: dict[str, list[Tensor]] = {}

    def keep(**values: Tensor) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value.float())

    def on_attention(scores: Tensor, weights: Tensor) -> None:
        block = len(found.get("entropy", ()))
        if block == len(layout.blocks):  # attention that pools
            return
        weights = weights_over_tokens(layout.attentions[block], weights)  # (B, heads, N, N)
        keep(
            entropy=entropy(weights).mean((0, 2)),
            distance=distance(weights, layout).mean((0, 2)),
            largest_score=scores.max(),
        )
        found["maps"] = [layout.row(weights).mean(1)]

    def on_gelu(activated: Tensor) -> None:
        small = (activated.abs() < NEAR_ZERO).flatten(0, -2)  # (B * N, units)
        keep(near_zero=small.float().mean(), dead=small.all(0).float().mean())

    def on_block(block: nn.Module, inputs: object, tokens: Tensor) -> None:
        keep(residual_norm=tokens.norm(dim=-1).mean())
        read = tokens[:, : layout.read] if layout.read else tokens[:, layout.prefix :].mean(1)
        found["feature_norm"] = [read.norm(dim=-1).mean().float()]

    for block in layout.blocks:
        block.register_forward_hook(on_block)
    with watch(on_attention, on_gelu):
        net(images)
    # Other GELUs than the blocks' come before them, in a stem.
    depth = len(layout.blocks)
    return {
        name: values[0] if name == "maps" else torch.stack(values[-depth:]) for name, values in found.items()
    }


def entropy(weights: Tensor) -> Tensor:
    """Return the entropy of rows that sum to one over its largest value, ``(…, N, M) -> (…, N)``, 0..1."""
    nats = torch.special.entr(weights).sum(-1)
    return nats / torch.log(torch.tensor(float(weights.shape[-1])))


def distance(weights: Tensor, layout: TokenLayout) -> Tensor:
    """Return how far each patch looks, in patches: ``(B, heads, N, N) -> (B, heads, h * w)``."""
    rows, columns = torch.meshgrid(*(torch.arange(float(side)) for side in layout.grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1).to(weights.device)  # (h * w, 2)
    patches = weights[..., layout.prefix :, layout.prefix :]
    far = (patches * torch.cdist(places, places)).sum(-1)
    return far / patches.sum(-1).clamp(min=torch.finfo(far.dtype).tiny)
