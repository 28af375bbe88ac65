"""VGG16 with batch norm for 32x32 images."""

from typing import final

from torch import Tensor, nn

from prunus.zoo.layers import initialize_, scaled

# Configuration D of the paper's table 1: channels of the 13 convolutions, "M" for 2x2 max pooling.
_LAYERS: tuple[int | str, ...] = (
    *(64, 64, "M"),
    *(128, 128, "M"),
    *(256, 256, 256, "M"),
    *(512, 512, 512, "M"),
    *(512, 512, 512, "M"),
)


@final
class VGG16(nn.Module):
    """13 convolutions with bias, batch norm and ReLU, five max pools, one linear classifier.

    Parameter names of ``features`` are torchvision's; the three-layer head for ImageNet is replaced
    by one linear layer, as usual for CIFAR. Images are at least 32x32.

    References:
        Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
        ICLR 2015 (https://arxiv.org/abs/1409.1556).
    """

    def __init__(self, num_classes: int, width: float, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        planes = in_channels
        for layer in _LAYERS:
            if isinstance(layer, str):
                layers.append(nn.MaxPool2d(2))
                continue
            before, planes = planes, scaled(layer, width)
            layers += [nn.Conv2d(before, planes, 3, padding=1), nn.BatchNorm2d(planes), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(planes, num_classes)
        initialize_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[batch, in_channels, h, w]`` to logits ``[batch, num_classes]``."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits
