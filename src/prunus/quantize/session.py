"""What a deployed network is: its record, and the session that runs it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunus.artifact.export import root_cause
from prunus.errors import InputError
from prunus.plan import Record
from prunus.quantize.options import Deployment

DEPLOYED_FILE = "deployed.json"


class Deployed(Record):
    """A network as files for an engine; ``deployed.json``.

    Attributes:
        version: Of this form.
        deployment: As asked for.
        files: File name to SHA-256, in hex, of all that the session reads.
        model_files: Those whose bytes are the size of the network.
        size_bytes: Of these together.
        versions: Of the packages that wrote it.
        notes: What stayed in float, and why; what was done for int8 by samples.
    """

    version: Literal[1] = 1
    deployment: Deployment
    files: dict[str, str]
    model_files: tuple[str, ...]
    size_bytes: int = Field(ge=0)
    versions: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Session(ABC):
    """A deployed network, ready to run: a ``Predictor`` on the CPU.

    Args:
        folder: Where its files lie.
        record: What they are.
    """

    def __init__(self, folder: Path, record: Deployed) -> None:
        self.folder = folder
        self.record = record

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def floats(self) -> torch.dtype:
        """Of which its float inputs are; others are rounded to it."""
        return torch.float32

    def __call__(self, inputs: Any, /) -> Tensor:
        """Logits ``[samples, classes]`` of a tensor, positional or keyword arguments.

        Raises:
            InputError: An input is missing, or the engine cannot run on them.
        """
        inputs = self.cast(inputs)
        if isinstance(inputs, Mapping):
            feed = dict(inputs)
        else:
            given = inputs if isinstance(inputs, tuple | list) else (inputs,)
            feed = dict(zip(self._names(), given, strict=False))
        missing = [name for name in self._names() if name not in feed]
        if missing:
            raise InputError(
                f"inputs lack {', '.join(missing)}; the session takes {', '.join(self._names())}"
            )
        try:
            return self._run(feed)
        except InputError:
            raise
        except Exception as error:  # the engines' errors have no common base
            raise self._refused(error) from error

    def cast(self, inputs: Any) -> Any:
        """Inputs whose floats are of its data type, however they are held."""
        if isinstance(inputs, Mapping):
            return {name: self.cast(value) for name, value in inputs.items()}
        if isinstance(inputs, tuple | list):
            return tuple(self.cast(value) for value in inputs)
        is_float = isinstance(inputs, Tensor) and inputs.is_floating_point()
        return inputs.to(self.floats) if is_float else inputs

    def _refused(self, error: Exception) -> InputError:
        """What to say where the engine fails."""
        return InputError(
            f"engine={self.record.deployment.engine} cannot run on these inputs: "
            f"{root_cause(error)}; give inputs of the types that deploy was given"
        )

    @abstractmethod
    def _names(self) -> list[str]:
        """Names of the inputs, in order."""

    @abstractmethod
    def _run(self, feed: dict[str, Tensor]) -> Tensor:
        """Logits."""
