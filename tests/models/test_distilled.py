"""The distillation token: DeiT's arithmetic, and that it goes with every part of a ViT."""

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor

from tests.models.helpers import SMALL, build, renamed
from vitlab.models.distilled import DistilledViT
from vitlab.models.pooling import POOLINGS
from vitlab.models.positions import POSITIONS


def distilled(*overrides: str, **changes: object) -> DistilledViT:
    model = build("model=vit_distilled_tiny", *overrides, **{**SMALL, **changes}).eval()
    assert isinstance(model, DistilledViT)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_it_is_timms_deit(images: Tensor) -> None:
    ours = distilled(num_classes=10)
    theirs = VisionTransformerDistilled(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, num_classes=10
    ).eval()
    state = ours.state_dict()
    tokens, table = state.pop("class_token"), state.pop("position.table")
    weights = {
        # Ours begins with the distillation token, theirs with the class token.
        "dist_token": tokens[:, :1],
        "cls_token": tokens[:, 1:],
        "pos_embed": torch.cat([table[:, 1:2], table[:, :1], table[:, 2:]], 1),
        "patch_embed.proj.weight": state.pop("tokenizer.projection.linear.weight").reshape(32, 3, 4, 4),
        "patch_embed.proj.bias": state.pop("tokenizer.projection.linear.bias"),
    }
    names = {
        "attention.qkv": "attn.qkv",
        "attention.out": "attn.proj",
        "pool.norm": "norm",
        "distillation_head": "head_dist",
    }
    theirs.load_state_dict(weights | renamed(state, names))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)
        theirs.set_distilled_training()
        heads = torch.stack(theirs.train()(images), 1)
        torch.testing.assert_close(ours(images, per_head=True), heads, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_the_prediction_is_the_mean_of_the_heads(images: Tensor, training: bool) -> None:
    model = distilled().train(training)
    heads = model(images, per_head=True)
    assert heads.shape == (3, 2, 10)
    torch.testing.assert_close(model(images), heads.mean(1))
    assert not torch.allclose(heads[:, 0], heads[:, 1], atol=1e-3)


def test_each_head_learns_from_its_own_logits_alone(images: Tensor) -> None:
    model = distilled()
    for head, other, index in (
        (model.head, model.distillation_head, 0),
        (model.distillation_head, model.head, 1),
    ):
        model.zero_grad()
        model(images, per_head=True)[:, index].square().sum().backward()
        assert head.weight.grad is not None
        assert head.weight.grad.any()
        assert other.weight.grad is None or not other.weight.grad.any()


@pytest.mark.parametrize("pool", POOLINGS)
def test_the_pooling_does_not_see_the_token(images: Tensor, pool: str) -> None:
    model = distilled(pool=pool)
    tokens = model.encode(images)
    assert tokens.shape == (3, 1 + model.pool.prefix + 16, 32)
    changed = tokens.clone()
    changed[:, 0] *= -1
    model.encode = lambda _: tokens  # type: ignore[method-assign]
    before = model(images, per_head=True)
    model.encode = lambda _: changed  # type: ignore[method-assign]
    after = model(images, per_head=True)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("pool", POOLINGS)
def test_it_goes_with_every_pooling_and_position(images: Tensor, pool: str, position: str) -> None:
    model = distilled(pool=pool, position=position).train()
    model(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    "part", ["model/attention=linformer", "model/attention=lsa", "model/tokenizer=conv_stem"]
)
def test_it_goes_with_other_parts(images: Tensor, part: str) -> None:
    assert distilled(part)(images, per_head=True).shape == (3, 2, 10)


def test_the_token_is_spared_by_weight_decay_and_both_heads_are_one_layer() -> None:
    model = distilled(pool="mean")
    assert model.class_token is not None
    assert model.class_token.shape == (1, 1, 32)
    assert "class_token" in model.no_weight_decay()
    name, prefixes = model.layers()[-1]
    assert name == "head"
    assert {"head.", "distillation_head."} <= {*prefixes}
