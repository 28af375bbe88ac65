"""Networks of the papers by name, and loaders for the user's own."""

from prunus.zoo.catalog import Normalization, build, is_text, normalization, zoo_names
from prunus.zoo.checks import copied
from prunus.zoo.cifar_resnet import PadShortcut
from prunus.zoo.sources import is_drawn, load_source, reads_text, without_weights
from prunus.zoo.weights import find_weights, load_weights

__all__ = [
    "Normalization",
    "PadShortcut",
    "build",
    "copied",
    "find_weights",
    "is_drawn",
    "is_text",
    "load_source",
    "load_weights",
    "normalization",
    "reads_text",
    "without_weights",
    "zoo_names",
]
