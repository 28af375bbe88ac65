"""What a deployed network is: its record, and the session that runs it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from numbers import Integral
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
        arguments: Of the network, in order: what positional inputs are. The engine's order where empty.
        given: Arguments that ``deploy`` was given: others have no place in the file.
        padding: Token that fills up texts to a fixed shape.
    """

    version: Literal[1] = 1
    deployment: Deployment
    files: dict[str, str]
    model_files: tuple[str, ...]
    size_bytes: int = Field(ge=0)
    versions: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    padding: int = 0


def checked_threads(threads: object) -> int | None:
    """A number of CPU threads that there can be, as Python's own; None where it is left out.

    Raises:
        InputError: It is no whole number, or below 1.
    """
    if threads is None:
        return None
    remedy = "leave it out for the engine's own choice"
    if isinstance(threads, bool) or not isinstance(threads, Integral):
        raise InputError(f"threads={threads!r} is no whole number; give one, or {remedy}")
    if threads < 1:
        raise InputError(f"threads={threads} is below 1; {remedy}")
    return int(threads)


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
            InputError: An input is missing or was not given to ``deploy``, there are too many, or the
                engine cannot run on them.
        """
        feed = self._by_name(self.cast(inputs))
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

    def _by_name(self, inputs: Any) -> dict[str, Any]:
        """Inputs by the names of the network's arguments, those that the engine never reads included.

        Raises:
            InputError: The file has no place for one.
        """
        if isinstance(inputs, Mapping):
            named: Iterable[tuple[str, Any]] = inputs.items()
        else:
            values = inputs if isinstance(inputs, tuple | list) else (inputs,)
            order = self.record.arguments or self._names()
            if len(values) > len(order):
                raise InputError(
                    f"inputs are {len(values)}, and the network has {len(order)} arguments: "
                    f"{', '.join(order)}; give these"
                )
            named = zip(order, values, strict=False)
        feed = {name: value for name, value in named if value is not None}
        known = {*self.record.given, *self._names()}
        other = next((name for name in feed if name not in known), None)
        if other is not None and self.record.given:
            raise InputError(
                f"inputs have '{other}', which deploy was not given, so that the file has no place for "
                f"it; leave it out, or deploy with it beside {', '.join(self.record.given)}"
            )
        return feed

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
