"""Run a deployed network in a process that knows nothing but its files."""

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunus.data import Inputs
from prunus.errors import InputError, TemporaryFolderError, first_line
from prunus.plan import Record
from prunus.quantize.session import checked_threads

IMAGES = "input"  # name of inputs that are no dictionary
BATCHES_FILE, LOGITS_FILE, FACTS_FILE = "batches.safetensors", "logits.safetensors", "facts.json"


class Facts(Record):
    """What the other process measured: seconds from files to a session."""

    seconds_load: float


@dataclass(frozen=True)
class FreshRun:
    """What the other process gave back.

    Attributes:
        logits: ``[samples, classes]``, in the order of the batches.
        seconds_load: From files to a session.
    """

    logits: Tensor
    seconds_load: float


def run_fresh(
    folder: Path | str, batches: Iterable[Inputs], *, threads: int | None = None
) -> FreshRun:
    """Load a deployed network in a new Python process and run it there.

    Inputs and logits go between the processes as safetensors: nothing is pickled.

    Args:
        folder: Written by ``deploy``.
        batches: Inputs.
        threads: CPU threads of the session.

    Raises:
        InputError: ``threads`` or a batch is none, or the other process failed; its last line says why.
    """
    threads = checked_threads(threads)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        _keep(_flat(batches), work / BATCHES_FILE)
        command = [sys.executable, "-m", "prunus.quantize.fresh_worker", str(folder), place]
        command += [] if threads is None else [str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise InputError(
                f"'{folder}' does not run in a process of its own: {lines[-1]}; deploy it again"
            )
        facts = Facts.load(work / FACTS_FILE)
        logits = load_file(work / LOGITS_FILE)["logits"]
    return FreshRun(logits, facts.seconds_load)


def _keep(batches: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(batches, path)
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in batches.values())
        raise TemporaryFolderError(
            f"folder '{tempfile.gettempdir()}' does not take {size} bytes of samples that a process of "
            f"its own is to run on ({first_line(error)}): set TMPDIR to a folder with space"
        ) from error


def _flat(batches: Iterable[Inputs]) -> dict[str, Tensor]:
    """Tensors by number of the batch and name of the input."""
    flat: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        named = {IMAGES: batch} if isinstance(batch, Tensor) else batch
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor):
                raise InputError(
                    f"batches[{number}][{name!r}] is a {type(tensor).__name__}: tensors alone go to "
                    "another process; leave it out, or deploy a network that sets it itself"
                )
            flat[f"{number}/{name}"] = tensor.clone(memory_format=torch.contiguous_format)
    if not flat:
        raise InputError("batches is empty; give at least one")
    return flat


def unflat(flat: dict[str, Tensor]) -> list[Inputs]:
    """The batches again, in order."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        number, _, name = key.partition("/")
        found.setdefault(int(number), {})[name] = tensor
    return [
        batch[IMAGES] if set(batch) == {IMAGES} else batch
        for _, batch in sorted(found.items(), key=lambda item: item[0])
    ]


def gathered(logits: list[Tensor]) -> Tensor:
    """All logits, float32 and contiguous."""
    return torch.cat(logits).float().contiguous()
