"""Mimetic weights are the products of the paper, as near as their rank allows."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.helpers import small_vit
from vitlab.config import preflight
from vitlab.core.errors import UserError
from vitlab.models.initialization import factors, mimetic
from vitlab.models.layers import Block
from vitlab.models.positions import Positions, sincos_table


def products(attention: Any) -> tuple[Tensor, Tensor]:
    """W_Q W_Kᵀ of each head ``(heads, dim, dim)`` and W_V W_proj ``(dim, dim)``, for tokens as rows."""
    heads, d = attention.heads, attention.dim_head
    dim = attention.out.weight.shape[0]
    queries, keys, values = attention.qkv.weight.detach().chunk(3)
    # The layers multiply rows by the transpose.
    per_head = queries.reshape(heads, d, dim).mT @ keys.reshape(heads, d, dim)
    return per_head, values.T @ attention.out.weight.detach().T


def test_factors_are_the_best_of_their_rank() -> None:
    torch.manual_seed(0)
    left, right = factors(0.7, 0.7, 2, 48, rank=48)
    torch.manual_seed(0)
    target = 0.7 * torch.randn(2, 48, 48) / 48**0.5 + 0.7 * torch.eye(48)
    torch.testing.assert_close(left @ right, target, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        left.norm(dim=1), right.norm(dim=2)
    )  # what is equally large learns equally fast
    torch.manual_seed(0)
    left, right = factors(0.7, 0.7, 2, 48, rank=16)
    assert (left.shape, right.shape) == ((2, 48, 16), (2, 16, 48))
    # Eckart & Young: what is missing is the singular values that are left out.
    missing = torch.linalg.svdvals(target)[:, 16:].square().sum(1)
    torch.testing.assert_close((target - left @ right).square().sum((1, 2)), missing, rtol=1e-3, atol=1e-4)


def test_with_one_head_the_products_are_the_formula() -> None:
    """Full rank: what is left after the multiple of the identity is noise of the paper's size."""
    attention = small_vit("model.init=mimetic", dim=128, heads=1, depth=1).blocks[0].attention
    (looks,), sees = products(attention)
    for found, alpha, beta in ((looks, 0.7, 0.7), (sees, 0.4, -0.4)):
        noise = found - beta * torch.eye(128)
        assert found.diagonal().mean().item() == pytest.approx(beta, abs=0.03)
        assert noise.mean().item() == pytest.approx(0, abs=0.002)
        assert noise.std().item() == pytest.approx(alpha / 128**0.5, rel=0.03)
        assert (noise / noise.std()).abs().max() < 6


def test_heads_look_at_their_like_and_subtract_what_they_see() -> None:
    model = small_vit("model.init=mimetic", dim=128, heads=4)
    plain = small_vit(dim=128, heads=4)
    for block, other in zip(model.blocks, plain.blocks, strict=True):
        looks, sees = products(block.attention)
        assert torch.linalg.matrix_rank(looks[0], rtol=1e-4) == 32
        assert (looks.diagonal(dim1=1, dim2=2).mean(1) > 0.2).all()
        assert sees.diagonal().mean().item() == pytest.approx(-0.4, abs=0.03)
        assert not torch.allclose(looks[0], looks[1], atol=0.1)
        assert products(other.attention)[0].diagonal(dim1=1, dim2=2).mean(1).abs().max() < 0.1
    one, other = (products(block.attention)[1] for block in model.blocks)
    assert not torch.allclose(one, other, atol=0.1)


def test_a_token_attends_to_its_own_place() -> None:
    """The point of it: with sines and cosines alone as tokens, the largest weight of most rows is near."""
    model = small_vit("model.init=mimetic", dim=128, heads=4, image_size=32, pool="mean")
    tokens = model.blocks[0].norm1(model.position(torch.zeros(1, 64, 128)))
    queries, keys, _ = model.blocks[0].attention.queries_keys_values(tokens)
    best = (queries @ keys.mT).argmax(-1).flatten(0, 1)  # (heads, 64)
    distance = ((best // 8 - torch.arange(64) // 8) ** 2 + (best % 8 - torch.arange(64) % 8) ** 2).sqrt()
    assert distance.mean() < 1.5


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_learnable_positions_start_as_sines_and_cosines(pool: str) -> None:
    model, plain = small_vit("model.init=mimetic", pool=pool), small_vit(pool=pool)
    prefix = int(pool == "cls")
    assert torch.equal(model.position.table[0, prefix:], sincos_table((4, 4), 32))
    assert torch.equal(model.position.table[:, :prefix], plain.position.table[:, :prefix])
    assert model.position.table.requires_grad
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert model.position.table.grad.any()


def test_only_attention_and_positions_change() -> None:
    plain, model = small_vit().state_dict(), small_vit("model.init=mimetic").state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], model[name])}
    assert changed == {"position.table"} | {
        f"blocks.{i}.attention.{part}.weight" for i in range(2) for part in ("qkv", "out")
    }
    assert not model["blocks.0.attention.qkv.bias"].any()
    xavier = small_vit("model.init=xavier").state_dict()
    assert all(torch.equal(plain[name], xavier[name]) for name in plain)


@pytest.mark.parametrize("kind", ["softmax", "lsa", "linformer"])
@pytest.mark.parametrize("position", ["learnable", "sincos", "rotary", "none"])
def test_it_works_with_every_attention_and_position(kind: str, position: str) -> None:
    if (kind, position) == ("linformer", "rotary"):
        pytest.skip("refused")
    parts = [f"model/attention={kind}", f"model.position={position}"]
    model = small_vit(*parts, "model.init=mimetic", dim_head=8)
    assert products(model.blocks[1].attention)[1].diagonal().mean() < -0.1
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"dim_head": 32}, "set model.dim_head=null"), ({"dim": 30, "heads": 3}, "divisible by 4, found 30")],
    ids=str,
)
def test_sizes_that_cannot_work_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match="cannot be built as configured"):
        small_vit("model.init=mimetic", **changes)
    overrides = [f"model.{key}={value}" for key, value in {"dim": 32, "heads": 2, **changes}.items()]
    with pytest.raises(UserError, match=said):
        preflight(["data=cifar10", "model=vit_tiny", "model.init=mimetic", *overrides])


def test_another_attention_is_refused() -> None:
    block = Block(dim=8, attention=nn.Identity(), mlp=nn.Identity(), drop_path=0.0)
    with pytest.raises(ValueError, match="found Identity"):
        mimetic([block], Positions(grid=(1, 1), dim=8, dim_head=8, prefix=0))
