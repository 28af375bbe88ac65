"""Networks of the papers by name, and loaders for the user's own."""

from prunus.zoo.catalog import Normalization, build, normalization, zoo_names
from prunus.zoo.cifar_resnet import PadShortcut
from prunus.zoo.sources import load_source
from prunus.zoo.weights import load_weights

__all__ = [
    "Normalization",
    "PadShortcut",
    "build",
    "load_source",
    "load_weights",
    "normalization",
    "zoo_names",
]
