"""timm's networks behind the contract, and weights of theirs from a file."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from tests.models.helpers import LIBRARY, check_layers, renamed, save
from vitlab.core.errors import UserError
from vitlab.models.timm_model import TimmModel


def build(**changes: Any) -> TimmModel:
    """A small network, whose size of image is free."""
    return TimmModel(**{**LIBRARY, "name": "resnet10t", **changes})


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return timm.create_model("resnet10t", num_classes=10).state_dict()


@pytest.fixture
def file(weights: dict[str, Tensor], tmp_path: Path) -> str:
    return save(weights, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",
        "swin_tiny_patch4_window7_224",
        "mobilevit_s",
        "deit_tiny_patch16_224",
        "edgenext_small",  # has parameters whose name begins another's
        "poolformer_s12",  # timm has no groups for it
    ],
)
def test_any_classifier_of_timm_keeps_the_contract(name: str) -> None:
    with torch.device("meta"):
        model = build(name=name, image_size=224, drop_path=0.1)
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 10)
    check_layers(model)
    assert all("head" in prefix for prefix in model.layers()[-1][1])


def test_image_size_channels_and_drop_path_reach_the_network() -> None:
    model = build(
        name="deit_tiny_patch16_224",
        image_size=[32, 64],
        channels=1,
        drop_path=0.2,
        kwargs={"depth": 2, "drop_rate": 0.3},
    )
    assert model(torch.zeros(2, 1, 32, 64)).shape == (2, 10)
    assert model.net.pos_embed.shape[1] == 1 + 2 * 4
    assert len(model.net.blocks) == 2
    assert model.net.blocks[1].drop_path1.drop_prob == pytest.approx(0.2)
    assert model.net.head_drop.p == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit_bas_patch16_224"}, r"did you mean 'vit_base_patch\d+_224'\?"),
        ({"kwargs": {"img_size": 64}}, "model.kwargs.img_size has a key of its own, model.image_size"),
        ({"kwargs": {"wings": 2}}, "does not take model.kwargs.wings"),
        ({"name": "vgg11", "drop_path": 0.1}, "does not take model.drop_path"),
        ({"checkpoint_path": "nowhere.pth"}, "there is no file nowhere.pth"),
        ({"name": "vit_base_patch16_224.augreg_in22k"}, "did you mean .*augreg_in21k"),
        ({"name": "vit_giant_patch14_224", "pretrained": True}, "no pretrained weights of"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused_in_words(changes: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build(**changes)


def test_the_table_says_what_became_of_every_tensor(weights: dict[str, Tensor], file: str) -> None:
    assert build().loaded is None
    model = build(checkpoint_path=file)
    whole = model.loaded
    assert whole is not None
    assert (whole.tensors, whole.new, whole.resized, whole.left_out) == (len(weights), [], [], [])
    assert whole.numbers == sum(value.numel() for value in weights.values())
    assert all(torch.equal(model.net.state_dict()[name], value) for name, value in weights.items())

    other = build(checkpoint_path=file, num_classes=4, channels=1)
    part = other.loaded
    assert part is not None
    assert part.tensors == len(weights) - 2
    assert part.numbers == whole.numbers - 10 * 513 - 2 * weights["conv1.0.weight"].numel() // 3
    assert part.new == ["fc.weight (4, 512)", "fc.bias (4,)"]
    assert dict(part.lines())["  resized"] == "conv1.0.weight (24, 3, 3, 3) → (24, 1, 3, 3)"
    assert [value for key, value in part.lines()][-2:] == part.new
    assert other.net.fc.weight.shape[0] == 4
    assert torch.equal(other.net.conv1[3].weight, weights["conv1.3.weight"])


def test_one_channel_gets_the_sum_of_the_kernels(file: str) -> None:
    grey, colour = (build(checkpoint_path=file, channels=channels).eval() for channels in (1, 3))
    image = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_files_from_before_batch_norm_counted(weights: dict[str, Tensor], tmp_path: Path) -> None:
    old = {name: value for name, value in weights.items() if "num_batches_tracked" not in name}
    assert torch.equal(build(checkpoint_path=save(old, tmp_path)).net.fc.bias, weights["fc.bias"])


def test_names_of_older_releases_are_translated(tmp_path: Path) -> None:
    # DeiT III's layer scale: gamma_1 in its authors' files, ls1.gamma in timm.
    small = {"name": "deit3_small_patch16_224", "image_size": 32, "kwargs": {"depth": 1}}
    net = build(**small).net
    torch.nn.init.uniform_(net.blocks[0].ls1.gamma)
    old = renamed(net.state_dict(), {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"})
    again = build(**small, checkpoint_path=save(old, tmp_path)).net
    assert torch.equal(again.blocks[0].ls1.gamma, net.blocks[0].ls1.gamma)


def test_weights_that_do_not_fit_are_told_apart(weights: dict[str, Tensor], tmp_path: Path) -> None:
    changed = weights | {"surplus": torch.zeros(1), "bn1.bias": torch.zeros(7)}
    del changed["bn1.weight"]
    with pytest.raises(UserError, match="do not fit") as caught:
        build(checkpoint_path=save(changed, tmp_path))
    rows = [line.split() for line in str(caught.value).splitlines()]
    assert rows[2:] == [["bn1.bias", "(64,)", "(7,)"], ["bn1.weight", "(64,)", "-"], ["surplus", "-", "(1,)"]]


def test_positions_and_patches_of_a_file_are_resized(tmp_path: Path) -> None:
    large = build(name="test_vit", image_size=64)
    torch.nn.init.normal_(large.net.pos_embed)
    path = save(large.net.state_dict(), tmp_path)
    small = build(name="test_vit", checkpoint_path=path)
    assert small.loaded is not None
    assert small.loaded.resized == ["pos_embed (1, 17, 64) → (1, 5, 64)"]
    expected = resample_abs_pos_embed(large.net.pos_embed, new_size=[2, 2], num_prefix_tokens=1)
    torch.testing.assert_close(small.net.pos_embed, expected)
    assert torch.equal(small.net.head.weight, large.net.head.weight)

    fine = build(name="test_vit", checkpoint_path=path, kwargs={"patch_size": 8})
    assert fine.loaded is not None
    assert fine.loaded.resized == ["patch_embed.proj.weight (64, 3, 16, 16) → (64, 3, 8, 8)"]
    torch.testing.assert_close(
        fine.net.patch_embed.proj.weight,
        resample_patch_embed(large.net.patch_embed.proj.weight.detach(), [8, 8]),
    )
    assert torch.equal(fine.net.pos_embed, large.net.pos_embed)  # 4 x 4 tokens either way
