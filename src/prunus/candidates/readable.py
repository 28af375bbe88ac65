"""Whether workers can be had, and import what the modules that they are sent are made of."""

import io
import multiprocessing
import pickle
import sys
from pathlib import Path
from typing import Any

from prunus.errors import InputError, first_line

_REMEDY = "name its source (FILE.py:FACTORY), or use engine=serial"


def require_children() -> None:
    """Refuse a process that may have no children.

    Raises:
        InputError: This is one.
    """
    if multiprocessing.current_process().daemon:
        raise InputError(
            "this is a daemonic process, which cannot start workers: "
            "use the serial executor, or call from a process that is not daemonic"
        )


def main_is_importable() -> bool:
    """Whether spawned processes can import the main module: not one that was typed or piped in."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    return getattr(main, "__spec__", None) is not None or (
        file is not None and Path(file).is_file()
    )


def require_readable(structure: bytes, name: str, engine: str) -> None:
    """Refuse pickled modules that a worker could not read.

    Args:
        structure: Pickled by this process.
        name: Of the network's class.
        engine: Of the workers: those of Ray have a main module of their own.

    Raises:
        InputError: They do not unpickle, or use a module that is only here.
    """
    reader = _Reader(io.BytesIO(structure))
    try:
        reader.load()
    except Exception as error:  # a class's own __setstate__ may raise anything
        raise unreadable(name, error) from error
    if "__main__" in reader.modules and not (engine == "processes" and main_is_importable()):
        raise InputError(
            f"network {name} uses what is defined in the main module, which workers of "
            f"engine={engine} cannot import: define it in a file that can be imported, or use "
            "engine=serial"
        )
    absent = sorted(top for top in reader.modules - {"__main__"} if not _is_found(top))
    if absent:
        raise InputError(
            f"network {name} uses module '{absent[0]}', which workers cannot import: {_REMEDY}"
        )


def unreadable(name: str, error: Exception) -> InputError:
    """Of modules that do not unpickle."""
    reason = first_line(error)
    return InputError(f"network {name} cannot be read by a worker ({reason}): {_REMEDY}")


class _Reader(pickle.Unpickler):
    """Notes the modules, at the top, that classes and functions are found in."""

    def __init__(self, data: io.BytesIO) -> None:
        super().__init__(data)
        self.modules: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.modules.add(module.partition(".")[0])
        return super().find_class(module, name)


def _is_found(module: str) -> bool:
    """Whether an import would find it, were it not there yet: a file that was run by its path is not."""
    finders = [getattr(finder, "find_spec", None) for finder in sys.meta_path]
    return any(find is not None and find(module, None) is not None for find in finders)
