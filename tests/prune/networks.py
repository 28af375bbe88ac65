"""Networks small enough to score by hand."""

from itertools import pairwise

from torch import Tensor, nn, tensor


def two_layers(norm: bool = True) -> nn.Sequential:
    """1x1 convolution of 2 channels to 3, batch norm, ReLU, pooling, linear to 2; set by hand."""
    layers: list[nn.Module] = [nn.Conv2d(2, 3, 1)]
    if norm:
        layers.append(nn.BatchNorm2d(3))
    layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]
    net = nn.Sequential(*layers)
    values = {
        "0.weight": tensor([[3.0, -4.0], [1.0, 0.0], [-5.0, 12.0]]).reshape(3, 2, 1, 1),
        "0.bias": tensor([100.0, 200.0, 300.0]),
        f"{len(layers) - 1}.weight": tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]]),
    }
    if norm:
        values |= {"1.weight": tensor([-0.5, 2.0, 0.25]), "1.bias": tensor([7.0, 8.0, 9.0])}
    net.load_state_dict(values, strict=False)
    return net.eval()


def mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers without bias, no activation in between."""
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))).eval()


def weight_of(net: nn.Module, name: str) -> Tensor:
    """A parameter's values, in float64."""
    return net.get_parameter(name).detach().double()
