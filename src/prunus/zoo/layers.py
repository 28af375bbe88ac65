"""What the zoo's networks share: width scaling, plain convolutions, initial weights."""

from torch import nn


def scaled(channels: int, width: float) -> int:
    """Channel count of a uniformly narrowed network: ``round(channels * width)``, at least 1."""
    return max(1, round(channels * width))


def conv3x3(in_planes: int, planes: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the image size at stride 1."""
    return nn.Conv2d(in_planes, planes, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(in_planes: int, planes: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_planes, planes, kernel_size=1, stride=stride, bias=False)


def initialize_(network: nn.Module) -> None:
    """Set initial weights in place: He normal (fan out) for convolutions, N(0, 0.01) for linear.

    References:
        He et al., "Delving Deep into Rectifiers", ICCV 2015, eq. 14
        (https://arxiv.org/abs/1502.01852).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
