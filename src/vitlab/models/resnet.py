"""ResNet for small images: the convolutional network to hold the transformers against.

Source: "Deep Residual Learning for Image Recognition" (He et al. 2016): table 1, the 18-layer
column, with the first layers of section 4.2 for CIFAR (one 3x3 convolution of stride 1, no max
pooling), since a 32 x 32 image would leave the ImageNet stem with 8 x 8 pixels.
"""

from collections.abc import Sequence

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
    """Two 3x3 convolutions and a shortcut: ``(B, C, H, W) -> (B, C', H / stride, W / stride)``."""

    def __init__(self, *, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(channels_in, channels_out, size=3, stride=stride)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = convolution(channels_out, channels_out, size=3)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        # Option B of section 4.1: a 1x1 projection only where the shape changes.
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                convolution(channels_in, channels_out, size=1), nn.BatchNorm2d(channels_out)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Add what the convolutions find, ``(B, C, H, W) -> (B, C', H / stride, W / stride)``."""
        hidden = F.relu(self.norm1(self.conv1(features)))  # (B, C', H / stride, W / stride)
        # The projection's stride is taken here: on the CPU the backward pass of a strided 1x1
        # convolution of few channels writes past its memory (oneDNN issue 6035).
        kept = features[:, :, :: self.stride, :: self.stride]
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(kept))


class ResNet(nn.Module):
    """Images ``(B, channels, H, W)`` to logits ``(B, num_classes)``.

    Args:
        blocks: residual blocks per stage; every stage but the first halves the image and doubles
            the width.
        width: channels of the first stage.
        num_classes: K.
        image_size: pixels that the data are brought to; the network itself takes any size.
        channels: of the images.
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
        stages: list[nn.Module] = []
        channels_in = width
        for stage, count in enumerate(blocks):
            channels_out = width * 2**stage
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                stages.append(
                    ResidualBlock(channels_in=channels_in, channels_out=channels_out, stride=stride)
                )
                channels_in = channels_out
        self.blocks = nn.ModuleList(stages).to(memory_format=torch.channels_last)
        self.head = nn.Linear(channels_in, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images ``(B, C, H, W)``: logits ``(B, num_classes)``."""
        features = self.stem(images)  # (B, width, H, W)
        for block in self.blocks:
            features = block(features)  # (B, C', H', W')
        return self.head(features.mean(dim=(2, 3)))  # (B, num_classes)

    def layers(self) -> list[tuple[str, list[str]]]:
        """Layers in order, stem to head: (name, parameter-name prefixes)."""
        return [
            ("stem", ["stem."]),
            *((f"block_{i}", [f"blocks.{i}."]) for i in range(len(self.blocks))),
            ("head", ["head."]),
        ]

    def no_weight_decay(self) -> set[str]:
        """None: biases and norms are vectors, which are left out anyway."""
        return set()
