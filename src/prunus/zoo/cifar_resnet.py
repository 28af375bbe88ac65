"""ResNet-20/32/44/56 for 32x32 images, with parameter-free (option A) shortcuts."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.zoo.layers import conv3x3, initialize_, scaled


@final
class PadShortcut(nn.Module):
    """The option A shortcut: every second pixel, new channels filled with zeros on both sides.

    Which input channel feeds an output channel is held in the buffer ``source``, so that the
    shortcut can be cut by slicing and renumbering: entry ``i`` is the input channel copied to
    output channel ``i``, or ``in_planes`` (one past the last) for an output channel that is zero.
    Equal to ``F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, zeros // 2, zeros - zeros // 2))``.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 3.3,
        option (A) (https://arxiv.org/abs/1512.03385).
    """

    source: Tensor  # int64 [planes]

    def __init__(self, in_planes: int, planes: int) -> None:
        super().__init__()
        before = (planes - in_planes) // 2
        source = torch.full((planes,), in_planes, dtype=torch.int64)
        source[before : before + in_planes] = torch.arange(in_planes)
        # Not persistent: published checkpoints hold no such tensor.
        self.register_buffer("source", source, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, in_planes, h, w]`` to ``[batch, planes, ceil(h / 2), ceil(w / 2)]``."""
        x = x[:, :, ::2, ::2]
        x = functional.pad(x, (0, 0, 0, 0, 0, 1))  # the zero channel that `source` points to
        return torch.index_select(x, 1, self.source)


@final
class CifarBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the shortcut."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_planes, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Identity() if stride == 1 else PadShortcut(in_planes, planes)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, in_planes, h, w]`` to ``[batch, planes, h / stride, w / stride]``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


@final
class CifarResNet(nn.Module):
    """A CIFAR ResNet of ``6 * blocks + 2`` layers; 16, 32 and 64 channels at width 1.

    Parameter names are those of github.com/akamaster/pytorch_resnet_cifar10.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2
        (https://arxiv.org/abs/1512.03385).
    """

    def __init__(self, blocks: int, num_classes: int, width: float, in_channels: int) -> None:
        super().__init__()
        first, second, third = (scaled(planes, width) for planes in (16, 32, 64))
        self.conv1 = conv3x3(in_channels, first)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = _stage(first, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(third, num_classes)
        initialize_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[batch, in_channels, h, w]`` to logits ``[batch, num_classes]``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = CifarBlock(in_planes, planes, stride)
    return nn.Sequential(first, *(CifarBlock(planes, planes, 1) for _ in range(blocks - 1)))
