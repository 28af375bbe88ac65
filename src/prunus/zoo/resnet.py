"""ResNet-18 and ResNet-50 with torchvision's parameter names and a stem for 32x32 images."""

from typing import final

from torch import Tensor, nn

from prunus.zoo.layers import conv1x1, conv3x3, initialize_, scaled


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the shortcut."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_planes, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _downsample(in_planes, planes, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, in_planes, h, w]`` to ``[batch, planes, h / stride, w / stride]``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu2(y + (x if self.downsample is None else self.downsample(x)))
        return out


@final
class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride, as in torchvision) and 1x1 convolutions plus shortcut."""

    def __init__(self, in_planes: int, planes: int, out_planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_planes, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.conv3 = conv1x1(planes, out_planes)
        self.bn3 = nn.BatchNorm2d(out_planes)
        self.downsample = _downsample(in_planes, out_planes, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, in_planes, h, w]`` to ``[batch, out_planes, h / stride, w / stride]``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu3(y + (x if self.downsample is None else self.downsample(x)))
        return out


@final
class ResNet(nn.Module):
    """A ResNet whose stem is one 3x3 convolution of stride 1, without max pooling.

    Args:
        blocks: Number of blocks in each of the four stages.
        bottleneck: Bottleneck blocks with four times the planes at their end, or basic blocks.
        num_classes: Number of logits.
        width: Factor on every channel count.
        in_channels: Channels of the image.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1
        (https://arxiv.org/abs/1512.03385).
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        bottleneck: bool,
        num_classes: int,
        width: float,
        in_channels: int,
    ) -> None:
        super().__init__()
        stem = scaled(64, width)
        expansion = 4 if bottleneck else 1
        ends = [stem] + [scaled(planes * expansion, width) for planes in (64, 128, 256, 512)]
        self.conv1 = conv3x3(in_channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        stages = []
        for stage, count in enumerate(blocks):
            inner = scaled(64 * 2**stage, width) if bottleneck else None
            stride = 1 if stage == 0 else 2
            stages.append(_stage(ends[stage], inner, ends[stage + 1], count, stride))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(ends[-1], num_classes)
        initialize_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[batch, in_channels, h, w]`` to logits ``[batch, num_classes]``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(
    in_planes: int, inner: int | None, out_planes: int, blocks: int, stride: int
) -> nn.Sequential:
    """``blocks`` blocks, the first one strided; bottlenecks where ``inner`` planes are given."""
    layers: list[nn.Module] = []
    for index in range(blocks):
        start, step = (in_planes, stride) if index == 0 else (out_planes, 1)
        if inner is None:
            layers.append(BasicBlock(start, out_planes, step))
        else:
            layers.append(Bottleneck(start, inner, out_planes, step))
    return nn.Sequential(*layers)


def _downsample(in_planes: int, out_planes: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_planes == out_planes:
        return None
    return nn.Sequential(conv1x1(in_planes, out_planes, stride), nn.BatchNorm2d(out_planes))
