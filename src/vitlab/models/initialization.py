"""First weights: a way to change those that the parts have drawn is a function and an entry in INITS."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from vitlab.models.attention import Attention
from vitlab.models.positions import LearnablePositions, Positions, sincos_table


@torch.no_grad()
def mimetic(blocks: Iterable[nn.Module], positions: Positions) -> None:
    """Make attention look as after pretraining: tokens look at their like, and subtract what they see.

    Source: "Mimetic Initialization of Self-Attention Layers" (Trockman & Kolter 2023, section 4). With Z of
    N(0, 1 / dim), W_Q W_Kᵀ ≈ 0.7 Z + 0.7 I in each head and W_V W_proj ≈ 0.4 Z - 0.4 I over all heads, the
    best approximations of the rank that there is. Learnable positions start as sines and cosines, so that
    those alike are neighbours; prefix tokens keep theirs. Attention of another class, or heads that have more
    numbers together than a token: a ValueError.
    """
    for block in blocks:
        attention = block.attention
        if not isinstance(attention, Attention):
            raise ValueError(f"init=mimetic needs an Attention, found {type(attention).__name__}")
        dim, inner = attention.out.weight.shape
        if inner > dim:
            # The products have rank dim at most: what is left over would start at zero, and stay there.
            raise ValueError(f"init=mimetic needs heads * dim_head of at most dim {dim}, found {inner}")
        queries, keys, values = attention.qkv.weight.chunk(3)  # each (inner, dim), views
        left, right = factors(0.7, 0.7, attention.heads, dim, rank=attention.dim_head)
        queries.copy_(left.mT.reshape(inner, dim))  # a Linear holds its matrix transposed
        keys.copy_(right.reshape(inner, dim))
        left, right = factors(0.4, -0.4, 1, dim, rank=inner)
        values.copy_(left[0].mT)  # (inner, dim)
        attention.out.weight.copy_(right[0].mT)  # (dim, inner)
    if isinstance(positions, LearnablePositions):
        positions.table[0, positions.prefix :] = sincos_table(positions.grid, positions.table.shape[-1])


def factors(alpha: float, beta: float, count: int, dim: int, *, rank: int) -> tuple[Tensor, Tensor]:
    """Return L ``(count, dim, rank)`` and R ``(count, rank, dim)``, alike in size: L R ≈ alpha Z + beta I."""
    target = alpha * (torch.randn(count, dim, dim) / dim**0.5) + beta * torch.eye(dim)
    u, s, vh = torch.linalg.svd(target)
    root = s[:, :rank].sqrt()  # (count, rank)
    return u[:, :, :rank] * root[:, None], root[:, :, None] * vh[:, :rank]


INITS: dict[str, Callable[[Iterable[nn.Module], Positions], None]] = {
    "xavier": lambda blocks, positions: None,  # what the parts have drawn, see `layers.linear`
    "mimetic": mimetic,
}
