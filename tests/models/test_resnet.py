"""The convolutional network to compare with."""

import copy

import torch

from tests.models.helpers import build
from vitlab.models.flops import count_parameters


def test_size_of_resnet18_with_the_cifar_stem() -> None:
    with torch.device("meta"):
        # torchvision's ResNet-18 has 11,689,512 with 1,000 classes and a 7x7 stem
        assert count_parameters(build("model=resnet18")) == 11_689_512 - 990 * 513 - 64 * 3 * (49 - 9)


def test_a_stage_halves_the_image_and_doubles_the_width() -> None:
    model = build("model=resnet18", blocks=[1, 1, 1], width=4).eval()
    shapes = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    model(torch.randn(2, 3, 32, 16))
    assert shapes == [(4, 32, 16), (8, 16, 8), (16, 8, 4)]


def test_kernels_are_channels_last() -> None:
    convs = [p for p in build("model=resnet18", blocks=[1], width=4).parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convs)


def test_gradients_of_a_narrow_network_are_right() -> None:
    """A strided 1x1 convolution of fewer channels than oneDNN's block ends in a crash here, or in noise."""
    model, images = build("model=resnet18", blocks=[1, 1], width=4), torch.randn(8, 3, 32, 32)
    exact = copy.deepcopy(model).double()
    model(images).square().sum().backward()
    exact(images.double()).square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        scale = q.grad.abs().max().item()
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=1e-3 * scale, msg=name)
