"""A network by the factory in a file of the user's: the file is run as it is now."""

import hashlib
import importlib.util
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import nn

from prunus.errors import InputError, kind_and_line
from prunus.zoo.checks import copied, require_module
from prunus.zoo.own_code import importable

_MODULE = "prunus_source_"
MODULE_NAME = re.compile(_MODULE + r"(.+)_[0-9a-f]{8}")
"""Of a module that was read from a file: the file's stem, and a digest of where it lies."""


def from_file(model: str, arguments: dict[str, Any]) -> nn.Module:
    """Call the factory of a user's own file. The file is run: it is trusted as the user's code.

    Raises:
        InputError: There is no such file or factory, it raises, or gives no network that can be copied.
    """
    path_text, _, factory_name = model.rpartition(":")
    if not path_text.endswith(".py") or not factory_name.isidentifier():
        raise InputError(f"model '{model}' names no factory: write FILE.py:FACTORY")
    path = Path(path_text)
    if not path.is_file():
        raise InputError(
            f"model '{model}': the file '{path}' does not exist: give an existing file"
        )
    with importable(path):
        made = _made(model, _import_file(path), factory_name, arguments)
    copied(made, model)  # else it would fail where it is traced, or saved after the training
    return made


def _made(
    model: str, module: ModuleType, factory_name: str, arguments: dict[str, Any]
) -> nn.Module:
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        own = sorted(
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        )
        raise InputError(
            f"model '{model}': '{model.rpartition(':')[0]}' has no function '{factory_name}': "
            f"it defines {', '.join(own) or 'none'}"
        )
    try:
        network = factory(**arguments)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise InputError(
            f"model '{model}': {factory_name}({', '.join(arguments)}) raised "
            f"{kind_and_line(error)}; mend the file or the arguments"
        ) from error
    return require_module(network, model)


class _TextLoader(SourceFileLoader):
    """Runs the text as it is now: bytecode is told from it by its size and whole seconds alone."""

    def get_code(self, fullname: str) -> CodeType:
        """Compiled anew."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _import_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own name."""
    resolved = path.resolve()
    name = f"{_MODULE}{resolved.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise InputError(f"'{path}' cannot be imported: give a Python file")
    if isinstance(spec.loader, SourceFileLoader):
        spec.loader = _TextLoader(name, str(resolved))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and inspect look a class's module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        del sys.modules[name]
        raise InputError(
            f"'{path}' cannot be imported: {kind_and_line(error)}; mend the file"
        ) from error
    return module
