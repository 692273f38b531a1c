"""timm's networks behind the contract, and every way in which their weights can fail to come."""

import logging
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitlab.errors import UserError
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
        ({"kwargs": {"img_size": 64}}, "model.kwargs.img_size stands for model.image_size"),
        ({"kwargs": {"wings": 2}}, "does not take model.kwargs.wings"),
        ({"name": "vgg11", "drop_path": 0.1}, "does not take model.drop_path"),
        ({"name": "swin_tiny_patch4_window7_224", "image_size": 0}, "model.image_size must be"),
        ({"pretrained": True, "checkpoint_path": "w.pth"}, "both name weights"),
        ({"checkpoint_path": "nowhere.pth"}, "there is no file nowhere.pth"),
        ({"name": "vit_base_patch16_224.augreg_in22k"}, "did you mean .*augreg_in21k"),
        ({"name": "vit_giant_patch14_224", "pretrained": True}, "no pretrained weights of"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused_in_words(changes: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build(**changes)


def test_pretrained_weights_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="could not be fetched") as caught:
        build(pretrained=True, kwargs={"cache_dir": str(tmp_path)})
    assert "timm/resnet10t" in str(caught.value)
    assert "model.checkpoint_path=<path" in str(caught.value)


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


def test_a_head_for_other_classes_starts_new_and_is_reported(
    weights: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(weights, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, logger="vitlab"):
        model = build(checkpoint_path=str(tmp_path / "w.pth"), num_classes=4)
    assert "fc.bias, fc.weight starts new" in caplog.text
    assert model.net.fc.weight.shape[0] == 4
    assert torch.equal(model.net.conv1[0].weight, weights["conv1.0.weight"])


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


def test_positions_of_a_file_are_resized_to_the_image(tmp_path: Path) -> None:
    large = build(name="deit_tiny_patch16_224", image_size=64, kwargs={"depth": 1})
    torch.save(large.net.state_dict(), tmp_path / "w.pth")
    small = build(
        name="deit_tiny_patch16_224",
        image_size=32,
        kwargs={"depth": 1},
        checkpoint_path=str(tmp_path / "w.pth"),
    )
    assert small.net.pos_embed.shape[1] == 1 + 2 * 2
    assert torch.equal(small.net.head.weight, large.net.head.weight)


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
