"""Layers that a fixed range of 8 bits suits badly: the outliers of their inputs set its steps.

The rest of the inputs is then left a few of the 255 levels. In transformers these are the layers behind
the feed-forward part's activation above all (Bondarenko, Nagel and Blankevoort, "Understanding and
Overcoming the Challenges of Efficient Transformer Quantization", EMNLP 2021, section 3,
https://arxiv.org/abs/2109.12948).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from prunus.data import Inputs
from prunus.graph import Reader, watch
from prunus.quantize.job import int8_layers, trial
from prunus.quantize.options import Deployment
from prunus.quantize.smoothed import read_by

MOST_NOISE = 1 / 1000
"""Of rounding, as a share of the mean square of what is rounded: 30 dB."""

_STEPS = 255


@dataclass
class Range:
    """Of the values that a layer reads, zero included, and their mean square."""

    least: float = 0.0
    most: float = 0.0
    squares: float = 0.0
    count: int = 0

    def see(self, values: Tensor) -> None:
        """Take more values in."""
        self.least = min(self.least, float(values.min()))
        self.most = max(self.most, float(values.max()))
        self.squares += float(values.double().square().sum())
        self.count += values.numel()

    @property
    def noise(self) -> float:
        """Mean square of rounding to 255 steps of the range, ``step^2 / 12``, by that of the values."""
        step = (self.most - self.least) / _STEPS
        return 0.0 if not self.squares else step**2 / 12 / (self.squares / self.count)


def outlier_layers(
    network: nn.Module, deployment: Deployment, batches: Iterable[Inputs]
) -> list[str]:
    """Paths of linear layers whose inputs a fixed range rounds with more than ``MOST_NOISE``.

    Args:
        network: Not touched.
        deployment: Tells which layers are quantized.
        batches: That ranges are measured on.
    """
    own = trial(network)
    layers = int8_layers(own, deployment)
    ranges = {module: Range() for module in layers.values()}

    def note(layer: nn.Linear) -> Reader:
        return lambda given, _: ranges[layer].see(read_by(layer, given))

    watch(own, {layer: note(layer) for layer in ranges}, batches)
    return [path for path, module in layers.items() if ranges[module].noise > MOST_NOISE]
