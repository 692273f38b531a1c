"""Where tokens stand, and what stochastic depth leaves of them."""

import pytest
import torch

from vitlab.models.layers import DropPath
from vitlab.models.positions import SinCosPositions


def test_sincos_positions_are_the_formula_and_no_parameters() -> None:
    positions = SinCosPositions(grid=(3, 5), dim=16, dim_head=8, prefix=1)
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
