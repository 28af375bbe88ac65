"""MobileNetV2 with torchvision's parameter names and strides, but a stem of stride 1."""

from typing import final

from torch import Tensor, nn

from prunus.zoo.layers import initialize_, scaled

# Table 2 of the paper: expansion, output channels, repeats, stride of the first repeat.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@final
class InvertedResidual(nn.Module):
    """Expand by a 1x1, filter depthwise by a 3x3, project by a linear 1x1 convolution."""

    def __init__(self, in_planes: int, planes: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_planes * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv_norm(in_planes, hidden, kernel=1))
        layers += [
            _conv_norm(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, planes, 1, bias=False),
            nn.BatchNorm2d(planes),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and in_planes == planes

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, in_planes, h, w]`` to ``[batch, planes, h / stride, w / stride]``."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


@final
class MobileNetV2(nn.Module):
    """MobileNetV2 for small images: torchvision's strides, except 1 instead of 2 in the stem.

    Unlike torchvision's, channel counts are not rounded to multiples of 8 and the last convolution
    is narrowed too: ``width`` scales every count alike.

    References:
        Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2
        (https://arxiv.org/abs/1801.04381).
    """

    def __init__(self, num_classes: int, width: float, in_channels: int) -> None:
        super().__init__()
        planes, last = scaled(32, width), scaled(1280, width)
        layers: list[nn.Module] = [_conv_norm(in_channels, planes, kernel=3)]
        for expansion, base, repeats, first_stride in _STAGES:
            for repeat in range(repeats):
                before, planes = planes, scaled(base, width)
                stride = first_stride if repeat == 0 else 1
                layers.append(InvertedResidual(before, planes, expansion, stride))
        layers.append(_conv_norm(planes, last, kernel=1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))
        initialize_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[batch, in_channels, h, w]`` to logits ``[batch, num_classes]``."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def _conv_norm(
    in_planes: int, planes: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm and ReLU6."""
    convolution = nn.Conv2d(
        in_planes, planes, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(planes), nn.ReLU6())
