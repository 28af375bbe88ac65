"""What an engine is given to write, and what it has written."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from prunus.data import Inputs
from prunus.plan import Plan
from prunus.quantize.options import Deployment
from prunus.records import Source


@dataclass(frozen=True)
class Job:
    """A network to write; see ``deploy``."""

    network: nn.Module
    deployment: Deployment
    inputs: Inputs
    calibration: tuple[Inputs, ...]
    source: Source | None
    plans: tuple[Plan, ...]
    dynamic_length: bool

    def layers(self) -> Iterator[tuple[str, nn.Linear]]:
        """Linear layers that are quantized, by path."""
        for path, module in self.network.named_modules():
            if type(module) is nn.Linear and not self.deployment.excludes(path):
                yield path, module

    def tables(self) -> Iterator[tuple[str, nn.Embedding]]:
        """Tables of word embeddings that are quantized, by path."""
        for path, module in self.network.named_modules():
            if is_word_table(path, module) and not self.deployment.excludes(path):
                yield path, module


@dataclass(frozen=True)
class Written:
    """Files that an engine wrote: those that count as the network's size, and what to know."""

    model_files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def is_word_table(path: str, module: nn.Module) -> bool:
    """Whether a layer is a table of word embeddings; positions and token types are none."""
    if not isinstance(module, nn.Embedding):
        return False
    name = path.lower()
    return not any(word in name for word in ("position", "token_type", "segment", "relative"))
