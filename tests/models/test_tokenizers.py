"""Tokenizers: which pixels a token is made of, and by what arithmetic."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models.helpers import small_vit
from vitlab.models.flops import count_parameters
from vitlab.models.layers import Size, pair
from vitlab.models.tokenizers import ConvBlocks, ConvPool, ConvStem, ShiftedPatches, Tokenizer


def make(kind: type[Tokenizer], **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"image_size": (32, 16), "patch_size": 4, "channels": 3, "dim": 32, "patch_norm": False}
    own: dict[type[Tokenizer], dict[str, Any]] = {
        ConvStem: {"num_convs": 3, "full_size_convs": 0, "norm": "layer"},
        ConvPool: {"num_layers": 2},
        ConvBlocks: {"width": 4, "pool": "avg", "pool_first": False, "whiten": False},
    }
    return kind(**{**sizes, **own.get(kind, {}), **changes})


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8, (2, 4), (8, 1)], ids=str)
def test_the_stems_patch_size_is_its_stride_in_pixels(patch_size: Size) -> None:
    tokenizer = make(ConvStem, patch_size=patch_size)
    down, across = pair("", patch_size)
    assert tokenizer.grid == (32 // down, 16 // across)
    tokens = tokenizer(torch.randn(2, 3, 32, 16))
    assert tokens.shape == (2, tokenizer.grid[0] * tokenizer.grid[1], 32)


def test_the_stem_is_narrow_where_the_image_is_large() -> None:
    convs = [module for module in make(ConvStem, num_convs=4).modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [4, 8, 16, 32]
    assert [conv.stride for conv in convs] == [(2, 2), (2, 2), (1, 1), (1, 1)]


@pytest.mark.parametrize("pool_first", [False, True])
@pytest.mark.parametrize("patch_size", [1, 2, 8, (2, 4), (8, 1)], ids=str)
def test_blocks_halve_the_image_and_double_the_width_until_a_patch_is_one_pixel(
    patch_size: Size, pool_first: bool
) -> None:
    tokenizer = make(ConvBlocks, patch_size=patch_size, pool_first=pool_first)
    down, across = pair("", patch_size)
    assert tokenizer.grid == (32 // down, 16 // across)
    assert tokenizer(torch.randn(2, 3, 32, 16)).shape == (2, tokenizer.grid[0] * tokenizer.grid[1], 32)
    convs = [module for module in tokenizer.modules() if isinstance(module, nn.Conv2d)]
    blocks = max(down, across).bit_length() - 1
    assert [conv.out_channels for conv in convs] == [w for i in range(blocks) for w in [4 * 2**i] * 2] + [32]


def test_a_pooling_after_the_first_convolution_leaves_the_second_a_quarter_of_the_pixels() -> None:
    seen: list[tuple[int, ...]] = []
    tokenizer = make(ConvBlocks, pool="max", pool_first=True)
    for module in tokenizer.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.BatchNorm2d):
            module.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[-2:]))
    tokenizer(torch.randn(2, 3, 32, 16))
    block = [(32, 16), (16, 8), (16, 8), (16, 8), (16, 8)]  # convolution, pooling, norm, convolution, norm
    assert seen == [*block, *((h // 2, w // 2) for h, w in block), (8, 4), (8, 4)]


def test_whitening_makes_neighbouring_pixels_uncorrelated_and_of_variance_one() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.randn(64, 3, 8, 8, generator=generator), scale_factor=4, mode="bilinear")
    tokenizer = make(ConvBlocks, image_size=32, patch_size=8, whiten=True)
    tokenizer.data_dependent_init(images.split(16))
    whitening = tokenizer.layers[0]
    features = whitening(images)[..., :-1, :-1]  # (64, 24, 31, 31), without what sees the padding
    half = features[:, :12].transpose(0, 1).flatten(1)  # (12, pixels)
    torch.testing.assert_close(features[:, 12:], -features[:, :12])
    covariance = half @ half.T / half.shape[1]
    variances = covariance.diagonal()
    assert variances.max() < 1.001
    assert variances[-6:].min() > 0.99  # the strongest; the weakest are held down lest noise be blown up
    torch.testing.assert_close(covariance, torch.diag(variances), atol=1e-3, rtol=0)
    assert [n for n, p in whitening.named_parameters() if p.requires_grad] == ["bias"]
    assert tokenizer(images).shape == (64, 16, 32)


@pytest.mark.parametrize("kind", [ConvStem, ConvPool, ConvBlocks])
def test_convolutions_keep_images_and_kernels_in_channels_last(kind: type[Tokenizer]) -> None:
    tokenizer = make(kind)
    seen: list[torch.Tensor] = []
    for module in tokenizer.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            module.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    tokenizer.load_state_dict({k: v.contiguous() for k, v in tokenizer.state_dict().items()})
    tokenizer(torch.randn(2, 3, 32, 16))
    assert len(seen) >= 4
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in seen)


def test_the_stem_sees_each_image_alone() -> None:
    """No statistics over the batch: what a process computes does not depend on its share."""
    tokenizer, images = make(ConvStem).train(), torch.randn(4, 3, 32, 16)
    torch.testing.assert_close(tokenizer(images)[:1], tokenizer(images[:1]))
    assert not list(tokenizer.buffers())


def shifted(**changes: Any) -> Any:
    tokenizer = make(ShiftedPatches, channels=2, dim=8, **changes)
    for parameter in tokenizer.parameters():
        nn.init.normal_(parameter)
    return tokenizer


@pytest.mark.parametrize("patch_size", [2, 4, (2, 4), 3], ids=str)
def test_shifted_patches_are_the_papers_formula_pixel_by_pixel(patch_size: Size) -> None:
    down, across = pair("", patch_size)
    height, width = 2 * down, 3 * across
    tokenizer = shifted(patch_size=patch_size, image_size=(height, width))
    images = torch.randn(2, 2, height, width)

    def pixel(row: int, column: int) -> torch.Tensor:
        inside = 0 <= row < height and 0 <= column < width
        return images[:, :, row, column] if inside else torch.zeros(2, 2)

    half = (down // 2, across // 2)
    moves = [(0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]  # none, and the four diagonals
    tokens = []
    for top in range(0, height, down):
        for left in range(0, width, across):
            views = [
                torch.stack(
                    [
                        pixel(top + y + dy * half[0], left + x + dx * half[1])
                        for y in range(down)
                        for x in range(across)
                    ],
                    dim=-1,
                )
                for dy, dx in moves
            ]
            tokens.append(torch.stack(views, dim=1).flatten(1))  # (B, 5 * C * down * across)
    norm, linear = tokenizer.projection.norm_in, tokenizer.projection.linear
    flat = F.layer_norm(torch.stack(tokens, 1), linear.weight.shape[1:], norm.weight, norm.bias, 1e-6)
    torch.testing.assert_close(tokenizer(images), flat @ linear.weight.T + linear.bias, atol=1e-5, rtol=1e-5)


def test_shifted_patches_have_the_parameters_of_vit_pytorchs() -> None:
    """Its shifts are others, by one pixel in four straight directions, and not those of the paper."""
    theirs = pytest.importorskip("vit_pytorch.vit_for_small_dataset").SPT(dim=8, patch_size=4, channels=2)
    assert count_parameters(shifted()) == count_parameters(theirs)
    after = count_parameters(shifted(patch_norm=True)) - count_parameters(shifted())
    assert after == 2 * 8, "patch_norm adds the norm after the projection"


def test_a_token_sees_what_two_layers_of_convolution_and_pooling_reach() -> None:
    tokenizer = make(ConvPool, dim=16)
    images = torch.randn(1, 3, 32, 16, requires_grad=True)
    tokens = tokenizer(images)
    assert (tokenizer.grid, tokens.shape) == ((8, 4), (1, 32, 16))
    reach = 2 + 2 * 2  # pixels to each side of the pixel in the middle: 1 + 1, and at half size 2 + 2
    seen = torch.zeros(32, 16, dtype=torch.bool)
    for dim in range(16):
        (gradient,) = torch.autograd.grad(tokens[0, 3 * 4 + 2, dim], images, retain_graph=True)
        seen |= gradient[0].any(0)
    rows, columns = seen.nonzero(as_tuple=True)
    assert rows.min() >= 12 - reach
    assert rows.max() <= 12 + reach
    assert columns.min() >= 8 - reach
    assert columns.max() <= 8 + reach
    assert not (tokens < 0).any(), "a maximum of what a ReLU leaves"


@pytest.mark.parametrize("tokenizer", ["patch", "conv_stem", "spt"])
def test_patch_norm_stands_around_each_projection(tokenizer: str) -> None:
    model = small_vit(f"model/tokenizer={tokenizer}", patch_norm=True)
    tokens = model.tokenizer(100 + torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    before = model.tokenizer.projection.norm_in
    assert before.normalized_shape == (model.tokenizer.projection.linear.in_features,)
