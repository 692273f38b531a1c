"""What the parts of a Vision Transformer share: sizes, first weights, MLP, block.

Shapes, here and in the parts: B images, C channels, H x W pixels, N tokens of ``dim`` numbers; a grid of
h x w patches has N = h * w.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = int | Sequence[int]
Part = TypeVar("Part")

# ViT's published code keeps the eps of Flax, not the 1e-5 of torch; timm does the same.
LAYER_NORM_EPS = 1e-6


def pair(name: str, value: Size) -> tuple[int, int]:
    """Return (height, width) of a size given as one positive whole number or as two; else a ValueError."""
    sides = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{name} must be a positive whole number or a pair [height, width], found {value!r}")
    return sides[0], sides[1]


def choose(name: str, value: str, choices: Mapping[str, Part]) -> Part:
    """Look ``value`` up; an unknown one raises a ValueError that lists the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, found {value!r}")
    return choices[value]


def linear(in_features: int, out_features: int, *, bias: bool = True, stacked: int = 1) -> nn.Linear:
    """A Linear layer with Xavier-uniform weights and a zero bias.

    Source: ViT's published code, restated in "Masked Autoencoders Are Scalable Vision Learners" (He et al.
    2022, appendix A.1). ``stacked`` matrices in one (query, key, value) are drawn as separate ones would be.
    """
    layer = nn.Linear(in_features, out_features, bias=bias)
    bound = math.sqrt(6 / (in_features + out_features // stacked))
    nn.init.uniform_(layer.weight, -bound, bound)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def layer_norm(dim: int, *, bias: bool = True) -> nn.LayerNorm:
    """A LayerNorm with ViT's eps."""
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS, bias=bias)


class ChannelsLast(nn.Sequential):
    """Convolutions whose kernels and images ``(B, C, H, W)`` are channels_last in memory, which is faster.

    On the CPU the other layout, compiled under bf16 autocast, has been seen to train to NaN (torch 2.15).
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.contiguous(memory_format=torch.channels_last))


class DropPath(nn.Module):
    """Drops the residual branch ``(B, N, dim)`` of some images, and scales the others up to keep the mean.

    Source: "Deep Networks with Stochastic Depth" (Huang et al. 2016, section 3).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        keep = branch.new_ones(branch.shape[0], *[1] * (branch.ndim - 1))  # (B, 1, 1)
        return branch * F.dropout(keep, self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class MLP(nn.Module):
    """Two layers with a GELU between, for every token alone: ``(B, N, dim) -> (B, N, dim)``."""

    def __init__(self, *, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = linear(dim, hidden)
        self.fc2 = linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.dropout(F.gelu(self.fc1(tokens)))  # (B, N, hidden)
        return self.dropout(self.fc2(hidden))  # (B, N, dim)


class Block(nn.Module):
    """Attention and MLP, each normalised first and added to its input ``(B, N, dim)`` (ViT, eq. 2 and 3)."""

    def __init__(self, *, dim: int, attention: nn.Module, mlp: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attention = attention
        self.norm2 = layer_norm(dim)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))  # (B, N, dim)
