"""The parts a Vision Transformer is made of: tokenizers, positions, pooling, attention, MLP, block.

``vit.py`` puts them together. Each part draws its own initial weights, so an injected one brings
its own.
Shapes: B images, C channels, H x W pixels, N tokens of ``dim`` numbers; a grid of h x w patches has
N = h * w.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitlab.errors import UserError, nearest

Size = int | Sequence[int]
Part = TypeVar("Part")

# ViT's published code keeps the eps of Flax, not the 1e-5 of torch; timm does the same.
LAYER_NORM_EPS = 1e-6


# Reading what a config says


def pair(name: str, value: Size) -> tuple[int, int]:
    """Return (height, width) of a size given as one whole number or as two.

    Raises:
        UserError: it is neither, or not positive.
    """
    sides = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if len(sides) != 2 or not whole:
        raise UserError(f"{name} must be a positive whole number or a pair [height, width], found {value!r}.")
    return int(sides[0]), int(sides[1])


def choose(name: str, value: str, choices: Mapping[str, Part]) -> Part:
    """Look ``value`` up; an unknown one raises a UserError that lists the choices."""
    if value not in choices:
        known = ", ".join(choices)
        raise UserError(f"{name} must be one of {known}, found {value!r}{nearest(str(value), choices)}.")
    return choices[value]


def require_rates(**rates: float) -> None:
    """Raise a UserError unless every rate is a probability below 1, where nothing gets through."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f"model.{name} must be at least 0 and below 1, found {rate}.")


def patch_grid(image_size: Size, patch_size: Size) -> tuple[int, int]:
    """Return how many patches (down, across) tile the image; a UserError when they do not."""
    (height, width), (down, across) = (
        pair("model.image_size", image_size),
        pair("model.patch_size", patch_size),
    )
    if height % down or width % across:
        raise UserError(
            f"model.patch_size {down}x{across} does not divide the image of {height}x{width} "
            "pixels; choose a patch_size that divides both sides, or another model.image_size."
        )
    return height // down, width // across


# Building blocks with their first weights


def linear(in_features: int, out_features: int, *, bias: bool = True, stacked: int = 1) -> nn.Linear:
    """A Linear layer with Xavier-uniform weights and a zero bias.

    Source: ViT's published code, restated in "Masked Autoencoders Are Scalable Vision Learners" (He
    et al. 2022, appendix A.1). ``stacked`` matrices in one (query, key, value) are drawn as the
    separate matrices they are.
    """
    layer = nn.Linear(in_features, out_features, bias=bias)
    bound = math.sqrt(6 / (in_features + out_features // stacked))
    nn.init.uniform_(layer.weight, -bound, bound)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def layer_norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS)


# Tokenizers: images to tokens. A new one (CCT's conv and max pool, SPT) is another subclass,
# injected from YAML.


class Tokenizer(nn.Module):
    """Turns images ``(B, C, H, W)`` into tokens ``(B, N, dim)``, row by row over ``grid``.

    A subclass takes ``image_size, patch_size, channels, dim, patch_norm`` as keywords, and whatever
    its own YAML node adds. ``patch_size`` is always the pixels from one token to the next.

    Attributes:
        grid: tokens (down, across); N is their product.
    """

    grid: tuple[int, int]


class Projection(nn.Module):
    """``(..., in_features) -> (..., dim)``: Linear, optionally between two LayerNorms.

    Source of the LayerNorms: "Dual PatchNorm" (Kumar et al. 2023).
    """

    def __init__(self, *, in_features: int, dim: int, patch_norm: bool) -> None:
        super().__init__()
        self.norm_in = layer_norm(in_features) if patch_norm else nn.Identity()
        self.linear = linear(in_features, dim)
        self.norm_out = layer_norm(dim) if patch_norm else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return self.norm_out(self.linear(self.norm_in(features)))


class PatchEmbedding(Tokenizer):
    """Cuts the image into patches and projects each (Dosovitskiy et al. 2021, equation 1).

    A reshape and one matrix product; a patch is flattened channel first, so that the weight is the
    flattened kernel of the strided convolution that other codebases write here.

    Raises:
        UserError: the patches do not tile the image.
    """

    def __init__(
        self, *, image_size: Size, patch_size: Size, channels: int, dim: int, patch_norm: bool
    ) -> None:
        super().__init__()
        self.grid = patch_grid(image_size, patch_size)
        self.patch = pair("model.patch_size", patch_size)
        patch_dim = channels * self.patch[0] * self.patch[1]
        self.projection = Projection(in_features=patch_dim, dim=dim, patch_norm=patch_norm)

    def forward(self, images: Tensor) -> Tensor:
        down, across = self.patch
        patches = rearrange(
            images, "b c (h down) (w across) -> b (h w) (c down across)", down=down, across=across
        )  # (B, N, C * down * across)
        return self.projection(patches)  # (B, N, dim)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every pixel: ``(B, C, H, W) -> (B, C, H, W)``."""

    def forward(self, features: Tensor) -> Tensor:
        # With channels_last memory both permutes are views, and the mean runs over neighbouring
        # numbers.
        features = features.permute(0, 2, 3, 1)  # (B, H, W, C)
        return super().forward(features).permute(0, 3, 1, 2)  # (B, C, H, W)


STEM_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": partial(ChannelNorm, eps=LAYER_NORM_EPS),
}


class ConvStem(Tokenizer):
    """A few 3x3 convolutions in place of the patch embedding.

    Source: "Early Convolutions Help Transformers See Better" (Xiao et al. 2021, section 3,
    "Convolutional stem design"): the width doubles from convolution to convolution until it is
    ``dim``, some of them halve the image, a projection to ``dim`` ends the stem. Halving comes early:
    the wide-open feature maps then have few channels, and at patch_size 4 the stem is a tenth of the
    model's work. ``full_size_convs`` convolutions before the first halving see every pixel, which
    pays where there are few tokens (patch_size 8).

    ``norm``: "batch" as in the paper, or "layer", over the channels: without running statistics, so that
    the function does not depend on the share of the batch that a process sees.

    Raises:
        UserError: ``patch_size`` is not a power of two or needs more halvings than there are
            convolutions, does not divide the image, or ``dim`` cannot be halved that often.
    """

    def __init__(
        self,
        *,
        num_convs: int,
        full_size_convs: int,
        norm: str,
        image_size: Size,
        patch_size: Size,
        channels: int,
        dim: int,
        patch_norm: bool,
    ) -> None:
        super().__init__()
        self.grid = patch_grid(image_size, patch_size)
        if num_convs < 1:
            raise UserError(f"model.tokenizer.num_convs must be at least 1, found {num_convs}.")
        if full_size_convs < 0:
            raise UserError(f"model.tokenizer.full_size_convs must be 0 or more, found {full_size_convs}.")
        sides = pair("model.patch_size", patch_size)
        halvings = [side.bit_length() - 1 for side in sides]
        if any(2**n != side for n, side in zip(halvings, sides, strict=True)):
            raise UserError(
                "model.patch_size must be a power of two for a convolutional stem, which halves "
                f"the image; found {patch_size}."
            )
        if (needed := max(halvings) + full_size_convs) > num_convs:
            raise UserError(
                f"model.patch_size={patch_size} needs {max(halvings)} halvings after {full_size_convs} "
                f"full-size convolutions, but the stem has {num_convs}; set "
                f"model.tokenizer.num_convs={needed}."
            )
        if dim % 2 ** (num_convs - 1):
            raise UserError(
                f"model.dim={dim} cannot be halved {num_convs - 1} times, which the widths of "
                f"{num_convs} convolutions need; choose a multiple of {2 ** (num_convs - 1)}."
            )

        widths = [dim // 2 ** (num_convs - 1 - i) for i in range(num_convs)]  # 48, 96, 192
        normalize = choose("model.tokenizer.norm", norm, STEM_NORMS)
        stages: list[nn.Module] = []
        for i, (wide_in, wide_out) in enumerate(zip([channels, *widths[:-1]], widths, strict=True)):
            place = i - full_size_convs
            stride = (2 if 0 <= place < halvings[0] else 1, 2 if 0 <= place < halvings[1] else 1)
            conv = nn.Conv2d(wide_in, wide_out, 3, stride=stride, padding=1, bias=False)
            # He et al. 2015, "Delving Deep into Rectifiers", section 2.2: keeps the variance
            # through a ReLU.
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            stages += [conv, normalize(wide_out), nn.ReLU()]
        # Images and kernels in channels_last: it is the faster layout, and on the CPU the other
        # one, compiled under bf16 autocast, has been seen to train to NaN (torch 2.15).
        self.convs = nn.Sequential(*stages).to(memory_format=torch.channels_last)
        self.projection = Projection(in_features=dim, dim=dim, patch_norm=patch_norm)

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        features = self.convs(images)  # (B, dim, h, w)
        return self.projection(rearrange(features, "b c h w -> b (h w) c"))  # (B, N, dim)


# Positions: added to the tokens. A kind is a class of this signature and an entry in POSITIONS.


class Positions(nn.Module):
    """Adds a table of positions, ``(1, prefix + N, dim)``, to tokens ``(B, prefix + N, dim)``.

    Attributes:
        table: parameter or buffer; ``prefix`` rows for tokens that stand nowhere in the image come
            first.
    """

    table: Tensor

    def __init__(self, *, grid: tuple[int, int], dim: int, prefix: int) -> None:
        super().__init__()

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.table


class LearnablePositions(Positions):
    """One free vector per token (Dosovitskiy et al. 2021, section 3.1), drawn with BERT's 0.02."""

    def __init__(self, *, grid: tuple[int, int], dim: int, prefix: int) -> None:
        super().__init__(grid=grid, dim=dim, prefix=prefix)
        self.table = nn.Parameter(torch.empty(1, prefix + grid[0] * grid[1], dim))
        nn.init.normal_(self.table, std=0.02)


class SinCosPositions(Positions):
    """Fixed sines and cosines, half of ``dim`` for the column and half for the row.

    Source: "Attention Is All You Need" (Vaswani et al. 2017, section 3.5), in two dimensions as in
    MoCo v3 (Chen et al. 2021). Prefix tokens get zeros. Not saved with the weights: it
    is a function of the config.

    Raises:
        UserError: ``dim`` is not a multiple of 4 (two axes, sine and cosine).
    """

    def __init__(self, *, grid: tuple[int, int], dim: int, prefix: int) -> None:
        super().__init__(grid=grid, dim=dim, prefix=prefix)
        if dim % 4:
            raise UserError(f"model.position=sincos needs a model.dim divisible by 4, found {dim}.")
        frequency = 10_000 ** -(torch.arange(dim // 4) / (dim // 4))  # (dim / 4,)
        rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
        angles = [torch.outer(axis.flatten(), frequency) for axis in (columns, rows)]  # (N, dim / 4)
        table = torch.cat([wave for a in angles for wave in (a.sin(), a.cos())], dim=1)  # (N, dim)
        table = F.pad(table, (0, 0, prefix, 0))[None]  # (1, prefix + N, dim)
        self.register_buffer("table", table, persistent=False)


POSITIONS: dict[str, type[Positions]] = {
    "learnable": LearnablePositions,
    "sincos": SinCosPositions,
}


# Pooling: what the head reads. A kind is a class of this signature and an entry in POOLINGS.


class Pooling(nn.Module):
    """Reads one vector ``(B, dim)`` off the tokens ``(B, prefix + N, dim)``.

    Attributes:
        prefix: how many learnable tokens the model puts before those of the image for this.
    """

    prefix: int = 0

    def __init__(self, *, dim: int) -> None:
        super().__init__()


class ClassTokenPooling(Pooling):
    """The class token (Dosovitskiy et al. 2021, section 3.1)."""

    prefix = 1

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


class MeanPooling(Pooling):
    """The mean of the patch tokens, without a class token.

    Source: "Better plain ViT baselines for ImageNet-1k" (Beyer et al. 2022).
    """

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1)


POOLINGS: dict[str, type[Pooling]] = {"cls": ClassTokenPooling, "mean": MeanPooling}


# The transformer


class DropPath(nn.Module):
    """Drops the residual branch of some images.

    Source: "Deep Networks with Stochastic Depth" (Huang et al. 2016, section 3).

    The survivors are scaled up in training, so that evaluation does nothing.
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


def attend(queries: Tensor, keys: Tensor, values: Tensor, dropout_p: float) -> Tensor:
    """Return softmax(Q Kᵀ / √head_dim) V for three ``(B, heads, N, head_dim)``.

    By torch's fused kernel, but for reduced precision on a CPU: there the flash kernel of torch 2.15 spends
    most of a training step on its few tokens, and the operations written out made the step of a ViT
    with 16, 64 and 256 tokens 2.6, 1.9 and 1.4 times as fast (compiled, bfloat16, one core with AMX).
    """
    written_out = queries.device.type == "cpu" and queries.dtype != torch.float32
    if not written_out or queries.shape[-2] > 256:  # weights of N x N are not to fill the memory
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout_p)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)  # (B, heads, N, N)
    # Autocast takes the softmax in float32.
    weights = F.dropout(scores.softmax(-1), dropout_p).to(values.dtype)
    return weights @ values


class Attention(nn.Module):
    """Multi-head self-attention, ``(B, N, dim) -> (B, N, dim)``.

    Source: Dosovitskiy et al. 2021, appendix A.

    Args:
        dim_head: numbers per head; ``None`` means ``dim // heads``.
        attn_dropout: of the attention weights. ``dropout``: of the output.

    Raises:
        UserError: ``dim_head`` is None and ``heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        dim_head: int | None,
        qkv_bias: bool,
        attn_dropout: float,
        dropout: float,
    ) -> None:
        super().__init__()
        if heads < 1 or (dim_head is not None and dim_head < 1):
            raise UserError(f"model.heads and model.dim_head must be positive, found {heads} and {dim_head}.")
        if dim_head is None and dim % heads:
            raise UserError(
                f"model.heads={heads} does not divide model.dim={dim}; choose heads that do, or "
                "set model.dim_head."
            )
        self.heads = heads
        self.attn_dropout = attn_dropout
        inner = heads * (dim_head or dim // heads)
        self.qkv = linear(dim, 3 * inner, bias=qkv_bias, stacked=3)
        self.out = linear(inner, dim)
        self.dropout = nn.Dropout(dropout)

    def queries_keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens ``(B, N, dim)`` to three tensors ``(B, heads, N, head_dim)``."""
        qkv = rearrange(
            self.qkv(tokens), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads
        )  # (3, B, heads, N, head_dim)
        queries, keys, values = qkv.unbind(0)
        return queries, keys, values

    def forward(self, tokens: Tensor) -> Tensor:
        queries, keys, values = self.queries_keys_values(tokens)
        dropout_p = self.attn_dropout if self.training else 0.0
        mixed = attend(queries, keys, values, dropout_p)  # (B, heads, N, head_dim)
        merged = rearrange(mixed, "b heads n d -> b n (heads d)")  # (B, N, heads * head_dim)
        return self.dropout(self.out(merged))  # (B, N, dim)


class MLP(nn.Module):
    """Two layers with a GELU between, ``(B, N, dim) -> (B, N, dim)``."""

    def __init__(self, *, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = linear(dim, hidden)
        self.fc2 = linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.dropout(F.gelu(self.fc1(tokens)))  # (B, N, hidden)
        return self.dropout(self.fc2(hidden))  # (B, N, dim)


class Block(nn.Module):
    """Attention and MLP, each normalised first and added to its input.

    Source: Dosovitskiy et al. 2021, equations 2 and 3.
    """

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
