"""The ViT against another implementation, against counted parameters, and against wrong numbers."""

import math
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tests.models.helpers import check_layers, renamed, small_vit
from vitlab.core.errors import UserError
from vitlab.models.flops import count_parameters
from vitlab.models.layers import DropPath

# timm's name for a parameter, as replacements in ours.
TO_TIMM = {
    "tokenizer.projection.linear": "patch_embed.proj",
    "class_token": "cls_token",
    "position.table": "pos_embed",
    "attention.out": "attn.proj",
    "attention.qkv": "attn.qkv",
    "attention.norm_queries": "attn.q_norm",
    "attention.norm_keys": "attn.k_norm",
}


@pytest.mark.parametrize("image_size", [32, (16, 32)], ids=str)
@pytest.mark.parametrize("patch_size", [4, (4, 8)], ids=str)
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_logits_equal_timms_with_the_same_weights(
    pool: str, qk_norm: bool, patch_size: int | tuple[int, int], image_size: int | tuple[int, int]
) -> None:
    sizes = {"image_size": image_size, "patch_size": patch_size, "dim": 48, "depth": 3, "heads": 3}
    model = small_vit(f"model.attention.qk_norm={qk_norm}", pool=pool, **sizes).eval()
    for parameter in model.parameters():  # weights of a size that shows every difference
        nn.init.normal_(parameter, std=0.3)
    reference = timm.models.VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=48,
        depth=3,
        num_heads=3,
        mlp_ratio=2,
        num_classes=10,
        qkv_bias=True,
        qk_norm=qk_norm,
        class_token=pool == "cls",
        global_pool={"cls": "token", "mean": "avg"}[pool],
    ).eval()
    weights = reference.state_dict()
    names = TO_TIMM | {"pool.norm": {"cls": "norm", "mean": "fc_norm"}[pool]}
    for name, value in renamed(model.state_dict(), names).items():
        weights[name] = value.reshape(weights[name].shape)  # timm's patch projection is a convolution
    reference.load_state_dict(weights, strict=True)  # the biases of its qk_norm, which ours lacks, are zero
    images = torch.randn(3, 3, *model.image_size)
    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images), atol=1e-5, rtol=1e-5)


def test_parameters_of_the_published_small_vit() -> None:
    """omihub777's ViT: patch 8, dim 384, depth 7, 12 heads, an MLP as wide as the tokens."""
    model = small_vit(image_size=32, patch_size=8, dim=384, depth=7, heads=12, mlp_ratio=1)
    assert count_parameters(model) == 6_305_674


def test_dim_head_widens_the_attention_alone() -> None:
    wide, narrow = small_vit(dim_head=32), small_vit(dim_head=None)  # 2 heads of 32, 2 heads of 16
    per_block = 3 * (32 * 32 + 32) + 32 * 32  # query, key, value with bias; output
    assert count_parameters(wide) - count_parameters(narrow) == 2 * per_block
    assert wide(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_without_qkv_bias_and_with_patch_norm() -> None:
    names = {name for name, _ in small_vit(qkv_bias=False, patch_norm=True).named_parameters()}
    assert "blocks.0.attention.qkv.bias" not in names
    assert {"tokenizer.projection.norm_in.weight", "tokenizer.projection.norm_out.weight"} <= names


def test_drop_path_grows_and_drop_key_falls_linearly_over_the_blocks() -> None:
    blocks = small_vit(depth=4, drop_path=0.2, drop_key=0.2).blocks
    assert [block.drop_path.rate for block in blocks] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert [block.attention.drop_key for block in blocks] == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_drop_path_drops_whole_branches_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, branch = DropPath(0.25).train(), torch.ones(4000, 3, 2)
    kept = drop(branch)
    per_image = kept.flatten(1)
    assert (per_image == per_image[:, :1]).all()  # an image's branch lives or dies as one
    assert per_image.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert kept.mean().item() == pytest.approx(1, abs=0.03)
    assert drop.eval()(branch) is branch


def test_layers_of_a_deep_model_are_told_apart() -> None:
    check_layers(small_vit(depth=12))  # block 1 must not claim what belongs to blocks 10 and 11


@pytest.mark.parametrize("rate", ["dropout", "emb_dropout", "attn_dropout", "drop_path"])
def test_every_dropout_acts_in_training_only_and_follows_the_global_generator(rate: str) -> None:
    model, images = small_vit(**{rate: 0.5}), torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        plain = small_vit()(images)
        assert torch.equal(model.eval()(images), plain)
        model.train()
        torch.manual_seed(1)
        first = model(images)
        assert not torch.allclose(first, plain)
        assert not torch.equal(model(images), first)
        torch.manual_seed(1)
        assert torch.equal(model(images), first)


def test_the_first_loss_is_that_of_guessing() -> None:
    """A first loss far from log(classes) means weights of the wrong size."""
    model = small_vit(image_size=32, dim=192, depth=6, heads=3, mlp_ratio=4, pool="mean").eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(torch.randn(64, 3, 32, 32)), torch.arange(64) % 10)
    assert loss.item() == pytest.approx(math.log(10), abs=0.1)


def test_queries_keys_and_values_are_drawn_as_three_matrices() -> None:
    model = small_vit(dim=64)
    bound = math.sqrt(6 / (64 + 64))
    largest = model.blocks[0].attention.qkv.weight.abs().max().item()
    assert 0.95 * bound < largest <= bound


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 5}, "5x5 do not tile an image of 16x16"),
        ({"patch_size": (4, 3)}, "4x3 do not tile"),
        ({"patch_size": 0}, "model.patch_size must be a positive whole number"),
        ({"patch_size": "4"}, "model.patch_size must be"),
        ({"image_size": [16, 16, 16]}, "model.image_size must be"),
        ({"heads": 3}, "3 heads do not divide dim 32"),
        ({"pool": "meen"}, r"one of cls, mean.*, found 'meen'"),
        ({"position": "sin"}, "model.position must be one of learnable, sincos"),
        ({"init": "mimetik"}, "one of xavier, mimetic, found 'mimetik'"),
        ({"position": "sincos", "dim": 18}, "divisible by 4"),
    ],
    ids=str,
)
def test_numbers_that_cannot_work_are_refused_in_words(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_vit(**changes)


@pytest.mark.parametrize(
    ("choice", "changes", "message"),
    [
        ("conv_stem", {"patch_size": [4, 16]}, "no patches of"),
        ("conv_stem", {"dim": 34}, "with dim 34"),
        ("conv_stem", {"image_size": 15, "patch_size": 3}, "no patches of 3"),
        ("cct", {"patch_size": 2}, "2 layers make patches of 4"),
        ("cct", {"patch_size": [4, 2]}, "2 layers make patches of 4"),
        ("cct", {"image_size": 18}, "do not tile"),
        ("cct", {"patch_norm": True}, "without patch_norm"),
        ("conv_blocks", {"image_size": 15, "patch_size": 3}, "no patches of 3x3"),
        ("conv_blocks", {"patch_norm": True}, "no patch_norm"),
        ("spt", {"patch_size": [1, 4]}, "no half to shift by"),
    ],
    ids=str,
)
def test_a_tokenizer_refuses_what_it_cannot_do(choice: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_vit(*f"model/tokenizer={choice}".split(), **changes)


def test_images_of_another_size_are_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"built for images of .* \(16, 16\), found \(32, 32\)"):
        small_vit()(torch.randn(1, 3, 32, 32))
