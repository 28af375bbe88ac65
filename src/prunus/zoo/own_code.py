"""Files that a user's own network is built by: the one that is named, and those beside it that it imports."""

import ast
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


def own_files(file: Path) -> tuple[Path, ...]:
    """A Python file, then the files of its folder that it imports, or that those import.

    Read from their import statements, wherever these stand; nothing is run.
    """
    found = [file.resolve()]
    for path in found:  # which grows
        for beside in _imported(path, found[0].parent):
            if beside not in found:
                found.append(beside)
    return tuple(found)


def code_sha256(file: Path) -> str:
    """SHA-256 of what builds a network, in hex: of the file, or of all where there are several."""
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in own_files(file)]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


@contextmanager
def importable(file: Path) -> Iterator[None]:
    """Have code import what lies beside a file, and not what another folder's file of that name was.

    Python keeps one module for each name: of two networks with a ``layers.py`` each the second would be
    built by the first one's. Modules of that name that others have loaded are theirs again at the end.
    """
    folder = file.resolve().parent
    mine = {path.relative_to(folder).with_suffix("").parts[0] for path in own_files(file)[1:]}
    others = {
        name: module
        for name, module in sys.modules.items()
        if (top := name.partition(".")[0]) in mine - sys.stdlib_module_names
        and _is_elsewhere(sys.modules.get(top), folder)
    }
    for name in others:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n.partition(".")[0] in others]:
            del sys.modules[name]
        sys.modules.update(others)


def _is_elsewhere(module: ModuleType | None, folder: Path) -> bool:
    held = getattr(module, "__file__", None)
    return held is not None and folder not in Path(held).resolve().parents


def _imported(file: Path, folder: Path) -> Iterator[Path]:
    """Files below a folder that a file imports."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # its own error comes when it is run
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(folder, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if node.level else folder
            yield from _files(base, node.module or "")
            for alias in node.names:  # a module of a package, or a name in it
                yield from _files(base, f"{node.module or ''}.{alias.name}".lstrip("."))


def _files(base: Path, dotted: str) -> Iterator[Path]:
    """The files of a module and of the packages that it is in, where they are below ``base``."""
    place = base
    for part in filter(None, dotted.split(".")):
        place = place / part
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                yield path.resolve()
