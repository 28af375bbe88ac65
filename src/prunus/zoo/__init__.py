"""Networks of the papers by name, and loaders for the user's own."""

from prunus.zoo.catalog import Normalization, build, is_text, normalization, zoo_names
from prunus.zoo.cifar_resnet import PadShortcut
from prunus.zoo.sources import load_source, reads_text, require_usable
from prunus.zoo.weights import load_weights

__all__ = [
    "Normalization",
    "PadShortcut",
    "build",
    "is_text",
    "load_source",
    "load_weights",
    "normalization",
    "reads_text",
    "require_usable",
    "zoo_names",
]
