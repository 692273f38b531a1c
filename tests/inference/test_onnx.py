"""ONNX files compute what the networks do, for any number of images, and 8 bits take little away."""

import json
from pathlib import Path
from typing import Any

import onnx as onnx_library
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import slow
from tests.models.helpers import LIBRARY, build, small_vit
from vitlab.data.preprocess import Preprocess
from vitlab.inference.onnx import export_onnx, open_onnx, quantize


class Small(nn.Module):
    """A network behind the preprocessing of its images, as a Classifier is."""

    def __init__(self, net: nn.Module, size: tuple[int, int] = (16, 16)) -> None:
        super().__init__()
        self.net = net
        self.preprocess = Preprocess(size=size, mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3])

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.preprocess(images))


def vit(*overrides: str, **changes: Any) -> Small:
    return Small(small_vit(*overrides, num_classes=10, channels=3, **changes)).eval()


def pixels(number: int, *size: int) -> Tensor:
    """Return uint8 images that are smooth, as photographs are and noise is not."""
    generator = torch.Generator().manual_seed(number)
    coarse = torch.rand(number, 3, 4, 4, generator=generator)
    return (nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


@torch.no_grad()
def check(model: nn.Module, path: Path, *size: int) -> None:
    export_onnx(model, path, (3, *size))  # type: ignore[arg-type]
    run = open_onnx(path)
    for number in (1, 2, 7):
        images = pixels(number, *size)
        torch.testing.assert_close(run(images), model(images).softmax(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        ([], {}),
        slow(["model/tokenizer=conv_stem"], {"pool": "mean", "position": "sincos"}),
        slow(["model/tokenizer=spt", "model/attention=lsa"], {"position": "none"}),
        slow([], {"position": "rotary", "pool": "sequence", "patch_norm": True}),
    ],
    ids=str,
)
def test_any_number_of_images_is_taken(overrides: list[str], changes: dict[str, Any], tmp_path: Path) -> None:
    check(vit(*overrides, **changes), tmp_path / "model.onnx", 16, 16)


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        slow(["model=resnet18"], {"width": 8, "num_classes": 10, "channels": 3}),
        slow(["model=timm_vit_b16"], LIBRARY | {"name": "test_vit", "image_size": 16}),
        slow(["model=timm_vit_b16"], LIBRARY | {"name": "test_efficientnet", "image_size": 16}),
        slow(["model=torchvision_vit_b16"], LIBRARY | {"name": "vit_b_16", "image_size": 16}),
    ],
    ids=str,
)
def test_networks_of_all_kinds_are_taken(
    overrides: list[str], changes: dict[str, Any], tmp_path: Path
) -> None:
    check(Small(build(*overrides, **changes)).eval(), tmp_path / "model.onnx", 16, 16)


@pytest.mark.parametrize("size", [(24, 20), slow((8, 8))], ids=str)
def test_images_of_another_size_are_resized_inside(size: tuple[int, int], tmp_path: Path) -> None:
    check(vit(), tmp_path / "model.onnx", *size)


def test_a_raw_file_takes_normalised_images_and_returns_logits(tmp_path: Path) -> None:
    model, images = vit(), pixels(5, 16, 16)
    path = tmp_path / "model.onnx"
    export_onnx(
        model.net, path, (3, 16, 16), raw=True, metadata={"classes": ["a", "ü"], "architecture": "vit"}
    )
    with torch.no_grad():
        torch.testing.assert_close(
            open_onnx(path)(model.preprocess(images)), model(images), atol=1e-5, rtol=1e-5
        )
    file = onnx_library.load(path)
    (given,), (output,) = file.graph.input, file.graph.output
    assert (given.name, given.type.tensor_type.shape.dim[0].dim_param) == ("images", "N")
    assert output.name == "logits"
    said = {own.key: own.value for own in file.metadata_props}
    assert json.loads(said["classes"]) == ["a", "ü"]
    assert said["architecture"] == "vit"


def test_an_export_leaves_the_network_and_the_screen_as_they_were(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = vit()
    model.net.compile(dynamic=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, tmp_path / "model.onnx", (3, 16, 16))
    quantize(tmp_path / "model.onnx", tmp_path / "int8.onnx", pixels(8, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.net._compiled_call_impl is not None
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "int8.onnx"}


def test_8_bits_are_a_scale_a_channel_for_weights_and_take_little_away(tmp_path: Path) -> None:
    model, path, small = vit(), tmp_path / "model.onnx", tmp_path / "int8.onnx"
    with torch.no_grad():
        model.net.head.weight.mul_(30)  # probabilities that differ from each other
    export_onnx(model, path, (3, 16, 16), metadata={"classes": ["a"]})
    quantize(path, small, pixels(64, 16, 16))
    images = pixels(32, 16, 16)
    exact, found = open_onnx(path)(images), open_onnx(small)(images)
    assert (exact.amax(-1) - exact.amin(-1)).mean() > 0.2
    assert (found - exact).abs().mean() < 0.02
    file = onnx_library.load(small)
    assert [own.value for own in file.metadata_props if own.key == "classes"] == ['["a"]']
    weights = [own for own in file.graph.initializer if own.data_type == onnx_library.TensorProto.INT8]
    matrices = [onnx_library.numpy_helper.to_array(own) for own in weights if len(own.dims) > 1]
    assert len(matrices) == 1 + 2 * 4 + 1  # patches, four layers in each of two blocks, head
    assert max(abs(own.astype(int)).max() for own in matrices) <= 64  # 7 bits
    scales = [own.dims for own in file.graph.initializer if own.name.endswith("_scale")]
    assert sum(len(dims) == 1 for dims in scales) >= len(
        matrices
    )  # one a channel; activations have one number
