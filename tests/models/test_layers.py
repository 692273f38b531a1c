"""The parts: where tokens come from, where they stand, and what stochastic depth leaves of them."""

import pytest
import torch
from torch import nn

from vitlab.models.layers import ConvStem, DropPath, PatchEmbedding, SinCosPositions, Size


def stem(patch_size: Size = 4, image_size: Size = (32, 16), num_convs: int = 3) -> ConvStem:
    torch.manual_seed(0)
    return ConvStem(
        num_convs=num_convs,
        full_size_convs=0,
        norm="layer",
        image_size=image_size,
        patch_size=patch_size,
        channels=3,
        dim=32,
        patch_norm=False,
    )


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8, (2, 4), (8, 1)], ids=str)
def test_the_stems_patch_size_is_its_stride_in_pixels(patch_size: Size) -> None:
    tokenizer = stem(patch_size)
    down, across = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    assert tokenizer.grid == (32 // down, 16 // across)
    tokens = tokenizer(torch.randn(2, 3, 32, 16))
    assert tokens.shape == (2, tokenizer.grid[0] * tokenizer.grid[1], 32)


def test_the_stem_is_narrow_where_the_image_is_large() -> None:
    convs = [module for module in stem(num_convs=4).modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [4, 8, 16, 32]
    assert [conv.stride for conv in convs] == [(2, 2), (2, 2), (1, 1), (1, 1)]


def test_the_stem_keeps_images_and_kernels_in_channels_last() -> None:
    tokenizer = stem()
    seen = []
    for module in tokenizer.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            module.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    tokenizer.load_state_dict({k: v.contiguous() for k, v in tokenizer.state_dict().items()})
    tokenizer(torch.randn(2, 3, 32, 16))
    assert len(seen) == 6
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in seen)


def test_the_stem_sees_each_image_alone() -> None:
    """No statistics over the batch: what a process computes does not depend on its share."""
    tokenizer, images = stem().train(), torch.randn(4, 3, 32, 16)
    torch.testing.assert_close(tokenizer(images)[:1], tokenizer(images[:1]))
    assert not list(tokenizer.buffers())


def test_patches_become_tokens_row_by_row() -> None:
    tokenizer = PatchEmbedding(image_size=(4, 6), patch_size=2, channels=1, dim=4, patch_norm=False)
    nn.init.eye_(tokenizer.projection.linear.weight)
    image = torch.arange(24.0).reshape(1, 1, 4, 6)
    tokens = tokenizer(image)[0]  # (6, 4)
    assert tokenizer.grid == (2, 3)
    assert tokens[0].tolist() == [0, 1, 6, 7]
    assert tokens[1].tolist() == [2, 3, 8, 9]
    assert tokens[3].tolist() == [12, 13, 18, 19]


def test_sincos_positions_are_the_formula_and_no_parameters() -> None:
    positions = SinCosPositions(grid=(3, 5), dim=16, prefix=1)
    table = positions(torch.zeros(2, 16, 16))[0]  # (1 + 15, 16)
    assert not table[0].any()
    row, column = 2, 3
    token = table[1 + row * 5 + column]
    frequency = torch.tensor([1.0, 0.1, 0.01, 0.001])
    expected = [f(axis * frequency) for axis in (column, row) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(token, torch.cat(expected))
    assert not list(positions.parameters())
    assert positions.state_dict() == {}


def test_drop_path_drops_whole_branches_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, branch = DropPath(0.25).train(), torch.ones(4000, 3, 2)
    kept = drop(branch)
    per_image = kept.flatten(1)
    assert (per_image == per_image[:, :1]).all()  # an image's branch lives or dies as one
    assert per_image.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert kept.mean().item() == pytest.approx(1, abs=0.03)
    assert drop.eval()(branch) is branch


@pytest.mark.slow
def test_the_compiled_stem_learns_as_the_eager_one_does() -> None:
    """In the other memory layout this combination has turned to NaN on the CPU (torch 2.15)."""

    def losses(compiled: bool) -> list[float]:
        model = nn.Sequential(stem(image_size=32), nn.Flatten(), nn.Linear(64 * 32, 10))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        if compiled:
            model.compile(dynamic=False)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(32, 3, 32, 32, generator=generator)
        values = []
        for _ in range(4):
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images), torch.arange(32) % 10)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    assert losses(compiled=True) == pytest.approx(losses(compiled=False), abs=0.01)
