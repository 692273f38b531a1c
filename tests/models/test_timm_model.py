"""timm's networks behind the contract, and every way in which their weights can fail to come."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from vitlab.core.errors import UserError
from vitlab.models.timm_model import TimmModel

# A small network for the tests of weights; its size of image is free.
SMALL: dict[str, Any] = {
    "name": "resnet10t",
    "pretrained": False,
    "checkpoint_path": None,
    "num_classes": 10,
    "image_size": 32,
    "channels": 3,
    "drop_path": None,
    "kwargs": {},
}


def build(**changes: Any) -> TimmModel:
    return TimmModel(**{**SMALL, **changes})


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return timm.create_model("resnet10t", num_classes=10).state_dict()


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
    layers = model.layers()
    assert (layers[0][0], layers[-1][0]) == ("stem", "head")
    prefixes = [prefix for _, group in layers for prefix in group]
    parameters = [parameter for parameter, _ in model.named_parameters()]
    for parameter in parameters:
        assert len([p for p in prefixes if parameter.startswith(p)]) == 1, parameter
    assert all("head" in prefix for prefix in layers[-1][1])
    assert model.no_weight_decay() <= set(parameters)


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


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(weights: dict[str, Tensor], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    loaded = build(checkpoint_path=str(path)).net.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_weights_inside_a_training_checkpoint(weights: dict[str, Tensor], tmp_path: Path) -> None:
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "last.ckpt")
    loaded = build(checkpoint_path=str(tmp_path / "last.ckpt")).net.state_dict()
    assert torch.equal(loaded["fc.weight"], weights["fc.weight"])


def test_settings_beside_the_weights_do_not_stand_in_the_way(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    # As timm's own training script and DeiT's write them.
    torch.save({"model": weights, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    assert torch.equal(build(checkpoint_path=str(tmp_path / "w.pth")).net.fc.weight, weights["fc.weight"])


def test_a_head_for_other_classes_starts_new_and_is_reported(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "w.pth")
    model = build(checkpoint_path=str(tmp_path / "w.pth"), num_classes=4)
    assert model.loaded is not None
    assert model.loaded.new == ["fc.weight (4, 512)", "fc.bias (4,)"]
    assert model.net.fc.weight.shape[0] == 4
    assert torch.equal(model.net.conv1[0].weight, weights["conv1.0.weight"])


def test_the_table_says_what_became_of_every_tensor(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "w.pth")
    assert build().loaded is None
    whole = build(checkpoint_path=str(tmp_path / "w.pth")).loaded
    assert whole is not None
    assert (whole.tensors, whole.new, whole.resized, whole.left_out) == (len(weights), [], [], [])
    assert whole.numbers == sum(value.numel() for value in weights.values())
    part = build(checkpoint_path=str(tmp_path / "w.pth"), num_classes=4, channels=1).loaded
    assert part is not None
    assert part.tensors == len(weights) - 2
    assert part.numbers == whole.numbers - 10 * 513 - 2 * weights["conv1.0.weight"].numel() // 3
    assert dict(part.lines())["  resized"] == "conv1.0.weight (24, 3, 3, 3) → (24, 1, 3, 3)"
    assert [value for key, value in part.lines()][-2:] == ["fc.weight (4, 512)", "fc.bias (4,)"]


def test_one_channel_gets_the_sum_of_the_kernels(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "w.pth")
    grey = build(checkpoint_path=str(tmp_path / "w.pth"), channels=1).eval()
    colour = build(checkpoint_path=str(tmp_path / "w.pth")).eval()
    image = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_files_from_before_batch_norm_counted(weights: dict[str, Tensor], tmp_path: Path) -> None:
    old = {name: value for name, value in weights.items() if "num_batches_tracked" not in name}
    torch.save(old, tmp_path / "w.pth")
    assert torch.equal(build(checkpoint_path=str(tmp_path / "w.pth")).net.fc.bias, weights["fc.bias"])


def test_names_of_older_releases_are_translated(tmp_path: Path) -> None:
    # DeiT III's layer scale: gamma_1 in its authors' files, ls1.gamma in timm.
    small = {"name": "deit3_small_patch16_224", "image_size": 32, "kwargs": {"depth": 1}}
    net = build(**small).net
    torch.nn.init.uniform_(net.blocks[0].ls1.gamma)
    old = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for name, value in net.state_dict().items()
    }
    torch.save({"model": old}, tmp_path / "w.pth")
    again = build(**small, checkpoint_path=str(tmp_path / "w.pth")).net
    assert torch.equal(again.blocks[0].ls1.gamma, net.blocks[0].ls1.gamma)


def test_weights_that_do_not_fit_are_told_apart(weights: dict[str, Tensor], tmp_path: Path) -> None:
    changed = dict(weights)
    del changed["bn1.weight"]
    changed["surplus"] = torch.zeros(1)
    changed["bn1.bias"] = torch.zeros(7)
    torch.save(changed, tmp_path / "w.pth")
    with pytest.raises(UserError, match="do not fit") as caught:
        build(checkpoint_path=str(tmp_path / "w.pth"))
    assert "1 missing: bn1.weight; 1 unexpected: surplus;" in str(caught.value)
    assert "1 of another shape: bn1.bias (7,) for (64,)" in str(caught.value)


def test_positions_and_patches_of_a_file_are_resized(tmp_path: Path) -> None:
    vit: dict[str, Any] = {"name": "test_vit"}
    large = build(**vit, image_size=64)
    torch.nn.init.normal_(large.net.pos_embed)
    torch.save(large.net.state_dict(), tmp_path / "w.pth")
    path = str(tmp_path / "w.pth")
    small = build(**vit, image_size=32, checkpoint_path=path)
    assert small.loaded is not None
    assert small.loaded.resized == ["pos_embed (1, 17, 64) → (1, 5, 64)"]
    expected = resample_abs_pos_embed(large.net.pos_embed, new_size=[2, 2], num_prefix_tokens=1)
    torch.testing.assert_close(small.net.pos_embed, expected)
    assert torch.equal(small.net.head.weight, large.net.head.weight)

    fine = build(**vit, image_size=32, checkpoint_path=path, kwargs={"patch_size": 8})
    assert fine.loaded is not None
    assert fine.loaded.resized == ["patch_embed.proj.weight (64, 3, 16, 16) → (64, 3, 8, 8)"]
    torch.testing.assert_close(
        fine.net.patch_embed.proj.weight,
        resample_patch_embed(large.net.patch_embed.proj.weight.detach(), [8, 8]),
    )
    assert torch.equal(fine.net.pos_embed, large.net.pos_embed)  # 4 x 4 tokens either way


class Trap:
    """A pickle that would run code; loading must refuse it and not run it."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Trap, "sprung", True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"no weights at all", "cannot be read"),
        ({"epoch": 3}, "holds no weights"),
        ([1, 2], "holds no weights"),
        ({"weight": Trap()}, "cannot be read"),
    ],
    ids=["empty", "text", "no tensors", "a list", "code"],
)
def test_files_that_hold_no_weights(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=message):
        build(checkpoint_path=str(path))
    assert not Trap.sprung
