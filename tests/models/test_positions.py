"""Positions by their formulas: sines and cosines, rotary ones (also against timm's), and none."""

import pytest
import torch
from timm.layers import RotaryEmbeddingCat, apply_rot_embed_cat
from torch import Tensor

from tests.models.helpers import small_vit
from vitlab.config import preflight
from vitlab.core.errors import UserError
from vitlab.models.positions import RotaryPositions, SinCosPositions


def test_sincos_positions_are_the_formula_and_no_parameters() -> None:
    positions = SinCosPositions(grid=(3, 5), dim=16, dim_head=8, prefix=1)
    table = positions(torch.zeros(2, 16, 16))[0]  # (1 + 15, 16)
    assert not table[0].any()
    row, column = 2, 3
    frequency = torch.tensor([1.0, 0.1, 0.01, 0.001])
    expected = [f(axis * frequency) for axis in (column, row) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(table[1 + row * 5 + column], torch.cat(expected))
    assert not list(positions.parameters())
    assert positions.state_dict() == {}


def rotary(grid: tuple[int, int] = (3, 5), dim_head: int = 16, prefix: int = 1) -> RotaryPositions:
    return RotaryPositions(grid=grid, dim=32, dim_head=dim_head, prefix=prefix)


def vectors(tokens: int, dim_head: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, tokens, dim_head, generator=torch.Generator().manual_seed(seed))


def test_rotary_positions_turn_as_timms_do() -> None:
    reference = RotaryEmbeddingCat(16, temperature=100, in_pixels=False, feat_shape=[3, 5])
    expected = apply_rot_embed_cat(vectors(15), reference.get_embed())
    torch.testing.assert_close(rotary(prefix=0).rotate(vectors(15)), expected, atol=1e-5, rtol=1e-5)


def test_rotary_positions_are_the_formula() -> None:
    """Heo et al. 2024: pair t of a half turns by its row, or column, times 100^(-t / (dim_head / 4))."""
    row, column, dim_head = 2, 3, 8
    turned = rotary(dim_head=dim_head).rotate(vectors(16, dim_head))
    place = 1 + row * 5 + column
    pairs = torch.view_as_complex(vectors(16, dim_head)[0, 0, place].reshape(-1, 2))
    angles = torch.tensor([row * 1.0, row * 0.1, column * 1.0, column * 0.1])
    expected = torch.view_as_real(pairs * torch.polar(torch.ones(4), angles)).flatten()
    torch.testing.assert_close(turned[0, 0, place], expected)


def test_scores_know_the_relative_place_only() -> None:
    height, width, down, across = 6, 7, 2, 3
    positions = rotary((height, width), prefix=0)
    queries, keys = (
        positions.rotate(vectors(1, seed=seed).expand(-1, -1, height * width, -1)) for seed in (0, 1)
    )
    scores = (queries @ keys.mT).unflatten(-1, (height, width)).unflatten(-3, (height, width))
    shifted = scores[:, :, down:, across:, down:, across:]
    torch.testing.assert_close(
        shifted, scores[:, :, :-down, :-across, :-down, :-across], atol=1e-4, rtol=1e-4
    )
    # And they do know it: along each axis on its own.
    assert scores[0, 0, 0, 0, 0].std() > 0.1
    assert scores[0, 0, 0, 0, :, 0].std() > 0.1


def test_prefix_tokens_are_not_turned() -> None:
    old = vectors(17)
    new = rotary(prefix=2).rotate(old)
    assert torch.equal(new[:, :, :3], old[:, :, :3])  # nor is the patch at row 0, column 0
    assert not torch.isclose(new[:, :, 3:], old[:, :, 3:]).all(-1).any()


@pytest.mark.parametrize("table", [torch.float32, torch.bfloat16])
def test_bfloat16_is_turned_in_float32(table: torch.dtype) -> None:
    """The table is of that type in a network that is so throughout (trainer.precision=bf16-true)."""
    vector, positions = vectors(32 * 32 + 1).bfloat16(), rotary((32, 32)).to(table)
    turned = positions.rotate(vector)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, positions.float().rotate(vector.float()).bfloat16())


def test_rotary_positions_add_nothing_and_learn_nothing() -> None:
    positions, tokens = rotary(), torch.randn(2, 16, 32)
    assert torch.equal(positions(tokens), tokens)
    assert not list(positions.parameters())
    assert positions.state_dict() == {}


def test_every_block_of_a_rotary_vit_turns() -> None:
    model, images = small_vit("model.position=rotary").eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = model(images)
        for block in model.blocks:
            rotate, block.attention.rotate = block.attention.rotate, None
            assert not torch.allclose(model(images), before)
            block.attention.rotate = rotate
    assert "position.table" not in model.state_dict()
    assert model.no_weight_decay() == {"class_token"}


def test_without_positions_patches_may_change_places() -> None:
    image = torch.randn(2, 3, 16, 16)
    swapped = image.clone()
    swapped[..., :4, :4], swapped[..., 8:12, 4:8] = image[..., 8:12, 4:8], image[..., :4, :4]
    for position, blind in (("none", True), ("rotary", False), ("learnable", False)):
        model = small_vit(f"model.position={position}").eval()
        with torch.no_grad():
            assert torch.allclose(model(image), model(swapped), atol=1e-5) is blind


@pytest.mark.parametrize("changes", [{"dim_head": 6}, {"dim": 20}])
def test_heads_that_cannot_be_turned_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="divisible by 4"):
        small_vit("model.position=rotary", **changes)
    overrides = [f"model.{key}={value}" for key, value in changes.items()]
    with pytest.raises(UserError, match=r"set model.dim_head=(8|12)"):
        preflight(["data=cifar10", "model=vit_tiny", "model.heads=2", "model.position=rotary", *overrides])
