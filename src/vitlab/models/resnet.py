"""ResNet for small images, to compare with: "Deep Residual Learning" (He et al. 2016, table 1).

The first layer is section 4.2's for CIFAR: a 32 x 32 image would leave the ImageNet stem with 8 x 8 pixels.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.models.layers import ChannelsLast, Size, pair


def convolution(channels_in: int, channels_out: int, *, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size but for its stride; BatchNorm would cancel a bias."""
    conv = nn.Conv2d(channels_in, channels_out, size, stride=stride, padding=size // 2, bias=False)
    # He et al. 2015, "Delving Deep into Rectifiers", section 2.2, backward case.
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``(B, C, H, W) -> (B, C', H / stride, W / stride)``.

    The stride is 2 where there are more channels after it than before.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.stride = stride = 2 if channels_out > channels_in else 1
        self.conv1 = convolution(channels_in, channels_out, size=3, stride=stride)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = convolution(channels_out, channels_out, size=3)
        self.norm2 = nn.BatchNorm2d(channels_out)
        # Option B of section 4.1: a 1x1 projection only where the shape changes.
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            projection = convolution(channels_in, channels_out, size=1)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(features)))  # (B, C', H / stride, W / stride)
        # The projection's stride is taken here: on the CPU the backward pass of a strided 1x1
        # convolution of few channels writes past its memory (oneDNN issue 6035).
        kept = features[:, :, :: self.stride, :: self.stride]
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(kept))


class ResNet(nn.Module):
    """Images ``(B, channels, H, W)`` to logits ``(B, num_classes)``.

    Args:
        blocks: residual blocks per stage; every stage but the first halves the image and doubles the width.
        width: channels of the first stage.
        image_size: pixels that the data are brought to; the network itself takes any size.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int],
        width: int,
        num_classes: int,
        image_size: Size,
        channels: int,
    ) -> None:
        super().__init__()
        self.image_size = pair("model.image_size", image_size)
        self.stem = ChannelsLast(convolution(channels, width, size=3), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width, *(width * 2**stage for stage, count in enumerate(blocks) for _ in range(count))]
        self.blocks = nn.ModuleList(ResidualBlock(*channels) for channels in pairwise(widths))
        self.blocks.to(memory_format=torch.channels_last)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)  # (B, width, H, W)
        for block in self.blocks:
            features = block(features)  # (B, C', H', W')
        return self.head(features.mean(dim=(2, 3)))  # (B, num_classes)

    def layers(self) -> list[tuple[str, list[str]]]:
        """The stem, each block, the head."""
        return [
            ("stem", ["stem."]),
            *((f"block_{i}", [f"blocks.{i}."]) for i in range(len(self.blocks))),
            ("head", ["head."]),
        ]

    def no_weight_decay(self) -> set[str]:
        """None: biases and norms are vectors, which are left out anyway."""
        return set()
