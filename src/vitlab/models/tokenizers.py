"""Tokenizers: images to tokens. A new one is another subclass, injected from YAML."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitlab.models.layers import LAYER_NORM_EPS, ChannelsLast, Size, choose, layer_norm, linear, pair

WHITENING_EPS = 5e-4  # of Jordan 2024's code: directions that hardly vary are not blown up


class Tokenizer(nn.Module):
    """Turns images ``(B, C, H, W)`` into tokens ``(B, N, dim)``, row by row over ``grid``.

    A subclass takes ``image_size, patch_size, channels, dim, patch_norm``, and what its own YAML adds.

    Attributes:
        patch: pixels (down, across) from one token to the next; a ValueError if they do not tile the image.
        grid: tokens (down, across); N is their product.
    """

    def __init__(self, *, image_size: Size, patch_size: Size) -> None:
        super().__init__()
        height, width = pair("model.image_size", image_size)
        self.patch = down, across = pair("model.patch_size", patch_size)
        if height % down or width % across:
            raise ValueError(f"patches of {down}x{across} do not tile an image of {height}x{width}")
        self.grid = height // down, width // across

    def data_dependent_init(self, batches: Iterable[Tensor]) -> None:
        """Set what follows from training images ``(B, C, H, W)``; most tokenizers need none."""


class Projection(nn.Module):
    """Linear ``(..., in_features) -> (..., dim)``; ``patch_norm``: between LayerNorms (Kumar et al. 2023)."""

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
    """

    def __init__(self, *, channels: int, dim: int, patch_norm: bool, **sizes: Any) -> None:
        super().__init__(**sizes)
        patch_dim = channels * self.patch[0] * self.patch[1]
        self.projection = Projection(in_features=patch_dim, dim=dim, patch_norm=patch_norm)

    def forward(self, images: Tensor) -> Tensor:
        down, across = self.patch
        patches = rearrange(
            images, "b c (h down) (w across) -> b (h w) (c down across)", down=down, across=across
        )  # (B, N, C * down * across)
        return self.projection(patches)  # (B, N, dim)


class ShiftedPatches(PatchEmbedding):
    """Patches that see their surroundings: of the image beside its four diagonal shifts by half a patch.

    Source: SPT, "Vision Transformer for Small-Size Datasets" (Lee, Lee & Song 2021, section 3.1); the
    shifts are filled with zeros, and a LayerNorm stands before the projection, as in their equation.
    ``patch_norm`` therefore adds the LayerNorm after it alone. ValueError: patches that have no half.
    """

    def __init__(self, *, channels: int, **options: Any) -> None:
        super().__init__(channels=5 * channels, **options)
        if min(self.patch) < 2:
            raise ValueError(f"patches of {self.patch[0]}x{self.patch[1]} have no half to shift by")
        self.projection.norm_in = layer_norm(self.projection.linear.in_features)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        down, across = (side // 2 for side in self.patch)
        padded = F.pad(images, (across, across, down, down))
        shifted = [
            padded[..., top : top + height, left : left + width]  # (B, C, H, W)
            for top in (0, 2 * down)
            for left in (0, 2 * across)
        ]
        return super().forward(torch.cat([images, *shifted], dim=1))  # (B, N, dim)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every pixel: ``(B, C, H, W) -> (B, C, H, W)``."""

    def forward(self, features: Tensor) -> Tensor:
        # With channels_last memory both permutes are views, and the mean runs over neighbouring numbers.
        features = features.permute(0, 2, 3, 1)  # (B, H, W, C)
        return super().forward(features).permute(0, 3, 1, 2)  # (B, C, H, W)


STEM_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": partial(ChannelNorm, eps=LAYER_NORM_EPS),
}


class ConvStem(Tokenizer):
    """A few 3x3 convolutions in place of the patch embedding.

    Source: "Early Convolutions Help Transformers See Better" (Xiao et al. 2021, section 3, "Convolutional
    stem design"): the width doubles from convolution to convolution until it is ``dim``, some of them halve
    the image, a projection to ``dim`` ends the stem. Halving comes early: the large feature maps then have
    few channels, and at patch_size 4 the stem is a tenth of the model's work. The first ``full_size_convs``
    convolutions see every pixel, which pays where there are few tokens (patch_size 8).

    ``norm``: "batch" as in the paper, or "layer", over the channels: without running statistics, so that
    the function does not depend on the share of the batch that a process sees. ValueError: ``patch_size`` is
    not a power of two or needs more halvings than there are convolutions, or ``dim`` cannot be halved.
    """

    def __init__(
        self,
        *,
        num_convs: int,
        full_size_convs: int,
        norm: str,
        channels: int,
        dim: int,
        patch_norm: bool,
        **sizes: Any,
    ) -> None:
        super().__init__(**sizes)
        halvings = [side.bit_length() - 1 for side in self.patch]
        powers = all(2**n == side for n, side in zip(halvings, self.patch, strict=True))
        if not powers or max(halvings) + full_size_convs > num_convs or dim % 2 ** (num_convs - 1):
            raise ValueError(
                f"{num_convs} convolutions, {full_size_convs} of full size, make no patches of "
                f"{self.patch[0]}x{self.patch[1]} with dim {dim}"
            )
        widths = [dim // 2 ** (num_convs - 1 - i) for i in range(num_convs)]  # 48, 96, 192
        normalize = choose("model.tokenizer.norm", norm, STEM_NORMS)
        stages: list[nn.Module] = []
        for i, (wide_in, wide_out) in enumerate(pairwise([channels, *widths])):
            down, across = (2 if 0 <= i - full_size_convs < n else 1 for n in halvings)
            conv = convolution(wide_in, wide_out, stride=(down, across))
            stages += [conv, normalize(wide_out), nn.ReLU()]
        self.convs = ChannelsLast(*stages)
        self.projection = Projection(in_features=dim, dim=dim, patch_norm=patch_norm)

    def forward(self, images: Tensor) -> Tensor:
        features = self.convs(images)  # (B, dim, h, w)
        return self.projection(rearrange(features, "b c h w -> b (h w) c"))  # (B, N, dim)


class ConvPool(Tokenizer):
    """Layers of a 3x3 convolution, a ReLU and a max pooling that halves the image; no patches at all.

    Source: CCT, "Escaping the Big Data Paradigm with Compact Transformers" (Hassani et al. 2021, section
    3); sizes as in the published code of CCT-7/3x1 (one layer, 2 pixels from token to token) and
    CCT-7/3x2 (two, 4 pixels): windows of 3x3, no bias, 64 channels between layers. Another ``patch_size``, or
    ``patch_norm``, which would need a projection: a ValueError.
    """

    def __init__(self, *, num_layers: int, channels: int, dim: int, patch_norm: bool, **sizes: Any) -> None:
        super().__init__(**sizes)
        if patch_norm or self.patch != (2**num_layers, 2**num_layers):
            raise ValueError(f"{num_layers} layers make patches of {2**num_layers}, without patch_norm")
        layers: list[nn.Module] = []
        for wide_in, wide_out in pairwise([channels, *[64] * (num_layers - 1), dim]):
            layers += [convolution(wide_in, wide_out), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
        self.layers = ChannelsLast(*layers)

    def forward(self, images: Tensor) -> Tensor:
        features = self.layers(images)  # (B, dim, h, w)
        return rearrange(features, "b c h w -> b (h w) c")  # (B, N, dim)


class Whitening(nn.Module):
    """A frozen 2x2 convolution that makes the pixels of a patch uncorrelated, with a variance of one.

    ``(B, channels, H, W) -> (B, 8 channels, H, W)``: the 4 channels eigenvectors of the patches' covariance,
    and their negatives, as a rectifier follows; the last row and column see zeros beyond the image. Only the
    bias is trained.

    Source: "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (Jordan 2024, arXiv:2404.00498, section 3.2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8 * channels, channels, 2, 2), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(8 * channels))
        self.set_kernels(torch.eye(4 * channels))

    def set_kernels(self, rows: Tensor) -> None:
        """Take the kernels ``(4 channels, 4 channels)``, a flattened patch a row, and their negatives."""
        with torch.no_grad():
            self.weight.copy_(torch.cat([rows, -rows]).view_as(self.weight))

    def data_dependent_init(self, batches: Iterable[Tensor]) -> None:
        """Measure the covariance on batches of training images ``(B, channels, H, W)``."""
        size, count = self.weight[0].numel(), 0
        covariance = torch.zeros(size, size, dtype=torch.float64)
        for images in batches:
            patches = (
                F.unfold(images, 2).transpose(1, 2).flatten(0, 1).cpu()
            )  # (B (H - 1) (W - 1), 4 channels)
            covariance += patches.T @ patches
            count += len(patches)
        values, vectors = torch.linalg.eigh(covariance / count)
        self.set_kernels((vectors / (values + WHITENING_EPS).sqrt()).T.float())

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(F.pad(images, (0, 1, 0, 1)), self.weight, self.bias)


POOLS = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


class ConvBlocks(Tokenizer):
    """Blocks of two 3x3 convolutions and a pooling that halves the image, as a small CNN has them.

    Source: Brokttv/Vit-on-small-data, Data/model.py, where patches of 8 pixels make three blocks, 64, 128 and
    256 wide; a 1x1 convolution to ``dim`` ends them. Convolutions need no bias, as a norm over the batch
    follows each, and then a GELU. ``width`` is the first block's, and doubles from block to block.
    ``pool_first``: after a block's first convolution, so that the second, and both norms, see a quarter of
    the pixels; ``whiten``: a `Whitening` and a GELU before all (both: Jordan 2024, arXiv:2404.00498).
    ValueError: ``patch_size`` is no power of two, or ``patch_norm``, which would need a projection.
    """

    def __init__(
        self,
        *,
        width: int,
        pool: str,
        pool_first: bool,
        whiten: bool,
        channels: int,
        dim: int,
        patch_norm: bool,
        **sizes: Any,
    ) -> None:
        super().__init__(**sizes)
        halvings = [side.bit_length() - 1 for side in self.patch]
        if patch_norm or any(2**n != side for n, side in zip(halvings, self.patch, strict=True)):
            raise ValueError(
                f"blocks that halve make no patches of {self.patch[0]}x{self.patch[1]}, no patch_norm"
            )
        layers: list[nn.Module] = [Whitening(channels), nn.GELU()] if whiten else []
        widths = [8 * channels if whiten else channels, *(width * 2**i for i in range(max(halvings)))]
        for i, (wide_in, wide_out) in enumerate(pairwise(widths)):
            down, across = (2 if i < n else 1 for n in halvings)
            pooling = choose("model.tokenizer.pool", pool, POOLS)((down, across))
            first = [convolution(wide_in, wide_out), nn.BatchNorm2d(wide_out), nn.GELU()]
            second = [convolution(wide_out, wide_out), nn.BatchNorm2d(wide_out), nn.GELU()]
            layers += [first[0], pooling, *first[1:], *second] if pool_first else [*first, *second, pooling]
        layers += [convolution(widths[-1], dim, size=1), nn.BatchNorm2d(dim), nn.GELU()]
        self.layers = ChannelsLast(*layers)

    def data_dependent_init(self, batches: Iterable[Tensor]) -> None:
        if isinstance(self.layers[0], Whitening):
            self.layers[0].data_dependent_init(batches)

    def forward(self, images: Tensor) -> Tensor:
        features = self.layers(images)  # (B, dim, h, w)
        return rearrange(features, "b c h w -> b (h w) c")  # (B, N, dim)


def convolution(wide_in: int, wide_out: int, stride: tuple[int, int] = (1, 1), *, size: int = 3) -> nn.Conv2d:
    """A convolution; its first weights keep the variance through a ReLU (He et al. 2015, 2.2)."""
    conv = nn.Conv2d(wide_in, wide_out, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv
