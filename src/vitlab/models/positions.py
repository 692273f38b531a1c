"""Positions: how tokens know their place. A kind is a class of this signature and an entry in POSITIONS."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Turns queries, or keys, (B, heads, prefix + N, dim_head) by their places.
Rotate = Callable[[Tensor], Tensor]


class Positions(nn.Module):
    """No positions: tokens ``(B, prefix + N, dim)`` stay as they are, and their order is unknown.

    A subclass adds to the tokens in ``forward``, or turns queries and keys in ``rotate``.

    Args:
        grid: tokens (down, across), N in all.
        prefix: tokens that come first and have no position in the image.
    """

    rotate: Rotate | None = None

    def __init__(self, *, grid: tuple[int, int], dim: int, dim_head: int, prefix: int) -> None:
        super().__init__()
        self.grid, self.prefix = grid, prefix

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens


def angles(grid: tuple[int, int], count: int, base: float) -> tuple[Tensor, Tensor]:
    """Return each token's row, and column, times ``count`` frequencies from 1 to 1 / base: two (N, count)."""
    frequency = base ** -(torch.arange(count) / count)  # (count,)
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")  # (h, w)
    return torch.outer(rows.flatten(), frequency), torch.outer(columns.flatten(), frequency)


def sincos_table(grid: tuple[int, int], dim: int) -> Tensor:
    """Return sines and cosines of each token's place ``(N, dim)``: half for the column, half for the row."""
    if dim % 4:
        raise ValueError(f"sines and cosines need a dim divisible by 4, found {dim}")
    rows, columns = angles(grid, dim // 4, base=10_000)
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)


class LearnablePositions(Positions):
    """One free vector per token (Dosovitskiy et al. 2021, section 3.1), drawn with BERT's 0.02."""

    def __init__(self, *, grid: tuple[int, int], dim: int, dim_head: int, prefix: int) -> None:
        super().__init__(grid=grid, dim=dim, dim_head=dim_head, prefix=prefix)
        self.table = nn.Parameter(torch.empty(1, prefix + grid[0] * grid[1], dim))
        nn.init.normal_(self.table, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.table


class SinCosPositions(Positions):
    """Fixed sines and cosines, half of ``dim`` for the column and half for the row.

    Source: "Attention Is All You Need" (Vaswani et al. 2017, section 3.5), in two dimensions as in MoCo v3
    (Chen et al. 2021). Prefix tokens get zeros. Not saved with the weights: they follow from the config.
    """

    table: Tensor

    def __init__(self, *, grid: tuple[int, int], dim: int, dim_head: int, prefix: int) -> None:
        super().__init__(grid=grid, dim=dim, dim_head=dim_head, prefix=prefix)
        table = F.pad(sincos_table(grid, dim), (0, 0, prefix, 0))[None]  # (1, prefix + N, dim)
        self.register_buffer("table", table, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.table


class RotaryPositions(Positions):
    """Turns pairs of a query's and a key's numbers, so that their product knows only the relative place.

    Source: "RoFormer" (Su et al. 2021, section 3.2.2), in two dimensions as the axial kind of "Rotary
    Position Embedding for Vision Transformer" (Heo et al. 2024): half of ``dim_head`` turns by the row, half
    by the column, from 1 radian a token down to nearly 1 / 100. Prefix tokens are not turned.
    """

    cos: Tensor  # (prefix + N, dim_head / 2), and sin
    sin: Tensor

    def __init__(self, *, grid: tuple[int, int], dim: int, dim_head: int, prefix: int) -> None:
        super().__init__(grid=grid, dim=dim, dim_head=dim_head, prefix=prefix)
        if dim_head % 4:
            raise ValueError(f"rotary positions need a dim_head divisible by 4, found {dim_head}")
        turns = torch.cat(angles(grid, dim_head // 4, base=100), dim=1)  # (N, dim_head / 2)
        turns = F.pad(turns, (0, 0, prefix, 0))  # (prefix + N, dim_head / 2)
        self.register_buffer("cos", turns.cos(), persistent=False)
        self.register_buffer("sin", turns.sin(), persistent=False)

    def rotate(self, vectors: Tensor) -> Tensor:
        """Turn the pairs in queries, or in keys, ``(B, heads, prefix + N, dim_head)``."""
        # In float32: bfloat16 has three digits, too few to tell far places apart.
        even, odd = vectors.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, heads, prefix + N, dim_head / 2)
        turned = (even * self.cos - odd * self.sin, even * self.sin + odd * self.cos)
        return torch.stack(turned, dim=-1).flatten(-2).to(vectors.dtype)


POSITIONS: dict[str, type[Positions]] = {
    "learnable": LearnablePositions,
    "sincos": SinCosPositions,
    "rotary": RotaryPositions,
    "none": Positions,
}
