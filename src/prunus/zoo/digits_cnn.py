"""A small residual network for the 8x8 digits: trained in seconds, for tests and first steps."""

from typing import final

from torch import Tensor, nn

from prunus.zoo.layers import conv3x3, initialize_, scaled


@final
class DigitsCNN(nn.Module):
    """A stem, one residual block and a strided convolution, then global pooling and a linear layer.

    Small as it is, it has each kind of channel: free ones inside the block (``conv2``, ``conv4``)
    and coupled ones (``conv1`` with ``conv3``).
    """

    def __init__(self, num_classes: int, width: float, in_channels: int) -> None:
        super().__init__()
        stem, inner, last = (scaled(planes, width) for planes in (16, 24, 32))
        self.conv1 = conv3x3(in_channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(stem, inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = conv3x3(inner, stem)
        self.bn3 = nn.BatchNorm2d(stem)
        self.relu3 = nn.ReLU()
        self.conv4 = conv3x3(stem, last, stride=2)
        self.bn4 = nn.BatchNorm2d(last)
        self.relu4 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(last, num_classes)
        initialize_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[batch, in_channels, h, w]`` to logits ``[batch, num_classes]``."""
        x = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(x + self.bn3(self.conv3(y)))
        x = self.relu4(self.bn4(self.conv4(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
