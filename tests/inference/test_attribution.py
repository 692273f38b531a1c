"""The attribution methods: against their definitions, and on images whose answer is known."""

import pytest
import torch
from torch import Tensor, nn

from tests.models.helpers import build, small_vit
from vitlab.core.errors import UserError
from vitlab.inference import methods
from vitlab.inference.attribution import METHODS, layer_attention, rollout
from vitlab.models.attention_weights import eager_copy, record_attention

TIMM = ("model=timm_vit_b16", "+model.kwargs.depth=2", "+model.kwargs.patch_size=8")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["cls", "mean"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    return eager_copy(small_vit(pool=request.param))


CLASSES = torch.tensor([0, 1, 2])


class Spot(nn.Module):
    """A network whose logit of class 1 is the brightness of one corner."""

    def forward(self, images: Tensor) -> Tensor:
        corner = images[:, :, :4, :4].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(corner), corner], 1)


def test_the_names_are_the_methods() -> None:
    assert (*METHODS,) == methods.NAMES


def test_rollout_is_its_definition(net: nn.Module, images: Tensor) -> None:
    _, weights = record_attention(net, images)
    prefix = weights[0].shape[-1] - 16
    for image in range(3):
        product = torch.eye(16 + prefix)
        for layer in weights:
            mixed = 0.5 * layer[image].mean(0).detach() + 0.5 * torch.eye(16 + prefix)
            product = mixed @ product
        row = product[0, 1:] if prefix else product.mean(0)
        found = rollout(net, images, CLASSES)[image]
        torch.testing.assert_close(found, row.reshape(4, 4))


def test_attention_is_the_last_layers_mean_over_heads(net: nn.Module, images: Tensor) -> None:
    layers = layer_attention(net, images)
    assert layers.shape == (3, 2, 2, 4, 4)
    torch.testing.assert_close(METHODS["attention"](net, images, CLASSES), layers[:, 1].mean(1))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_a_finite_map_an_image(name: str, net: nn.Module, images: Tensor) -> None:
    maps = METHODS[name](net, images, CLASSES)
    assert len(maps) == 3
    assert maps.ndim == 3
    assert maps.isfinite().all()
    assert not maps.requires_grad
    assert maps.flatten(1).std(1).all(), "a map says the same of every place"


@pytest.mark.parametrize("name", ["gradient_rollout", *methods.CAMS, *methods.PIXELS])
def test_a_map_is_of_its_class(name: str, net: nn.Module, images: Tensor) -> None:
    one = METHODS[name](net, images, torch.tensor([0, 0, 0]))
    other = METHODS[name](net, images, torch.tensor([1, 1, 1]))
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("name", METHODS)
def test_an_images_map_does_not_depend_on_the_others(name: str, net: nn.Module, images: Tensor) -> None:
    together = METHODS[name](net, images, CLASSES)
    alone = METHODS[name](net, images[1:2], CLASSES[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", methods.PIXELS)
def test_pixels_that_decide_stand_out(name: str, images: Tensor) -> None:
    found = METHODS[name](Spot(), images.abs(), torch.ones(3, dtype=torch.long))
    corner = torch.zeros(16, 16, dtype=torch.bool)
    corner[:4, :4] = True
    assert (found[:, corner].mean(1) > 5 * found[:, ~corner].abs().mean(1)).all()


def test_integrated_gradients_sum_to_the_rise_of_the_logit(net: nn.Module, images: Tensor) -> None:
    found = METHODS["integrated_gradients"](net, images, CLASSES).sum((1, 2))
    with torch.no_grad():
        rise = (net(images) - net(torch.zeros_like(images))).gather(1, CLASSES[:, None])[:, 0]
    torch.testing.assert_close(found, rise, atol=0.02, rtol=0.05)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "resnet18", "mobilevit_xxs"])
def test_gradcam_works_without_tokens(name: str) -> None:
    net = eager_copy(build("model=timm_vit_b16", f"model.name={name}", image_size=224))
    maps = METHODS["gradcam"](net, torch.randn(2, 3, 224, 224), torch.tensor([0, 1]))
    assert maps.shape == (2, 7, 7)


def test_gradcam_works_with_our_resnet() -> None:
    net = eager_copy(build("model=resnet18", width=8))
    assert METHODS["gradcam"](net, torch.randn(2, 3, 32, 32), torch.tensor([0, 1])).shape == (2, 4, 4)


def test_a_missing_library_is_named(net: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchcam", None)
    with pytest.raises(UserError, match=r"needs torchcam, which is not installed: .*\[explain\]"):
        METHODS["gradcam"](net, images, CLASSES)
