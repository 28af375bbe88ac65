"""Packages that not every user installs."""

import importlib
from importlib.util import find_spec
from types import ModuleType

from prunus.errors import MissingExtraError


def require_extra(package: str, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        package: Module to import.
        extra: The extra of Prunus that installs it.

    Raises:
        MissingExtraError: Holds the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise _missing(package, extra) from error


def require_installed(package: str, extra: str) -> None:
    """As ``require_extra``, without the time that an import takes.

    Raises:
        MissingExtraError: Holds the command that installs it.
    """
    try:
        found = find_spec(package) is not None
    except ValueError:  # a module that is there in name alone
        found = False
    if not found:
        raise _missing(package, extra)


def _missing(package: str, extra: str) -> MissingExtraError:
    name = package.partition(".")[0]  # a module of it cannot be installed alone
    return MissingExtraError(
        f"{name} is not installed: pip install 'prunus[{extra}]', or '.[{extra}]' in its folder"
    )
