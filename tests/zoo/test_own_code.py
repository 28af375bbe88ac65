"""A user's file imports what lies beside it, and what it imports is a part of it."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from prunus.errors import InputError
from prunus.records import Source
from prunus.zoo import load_source
from prunus.zoo.own_code import code_sha256, own_files

NET = """
from torch import nn
import {layers}

def Net():
    return nn.Sequential(nn.Linear(4, 4), {layers}.activation())
"""
LATE = """
from torch import nn

def Net():
    from {layers} import activation
    return nn.Sequential(nn.Linear(4, 4), activation())
"""
LAYERS = "from torch import nn\n\ndef activation():\n    return nn.{kind}()\n"


def project(folder: Path, kind: str, net: str, layers: str) -> Path:
    folder.mkdir()
    (folder / "net.py").write_text(net.format(layers=layers), encoding="utf-8")
    (folder / f"{layers}.py").write_text(LAYERS.format(kind=kind), encoding="utf-8")
    return folder / "net.py"


def loaded(file: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that the program has of another place."""
    module = ModuleType(file.stem)
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, file.stem, module)
    return module


@pytest.mark.parametrize("net", [NET, LATE])
def test_each_network_is_built_by_the_files_of_its_own_folder(tmp_path: Path, net: str) -> None:
    name = f"layers_{'late' if net is LATE else 'first'}"
    files = [project(tmp_path / kind, kind, net, name) for kind in ("ReLU", "Tanh")]
    before = sys.path.copy()
    for _ in range(2):  # by turns: neither takes the other's place
        for file, kind in zip(files, (torch.nn.ReLU, torch.nn.Tanh), strict=True):
            network = load_source(Source(model=f"{file}:Net"))
            assert isinstance(network.get_submodule("1"), kind)
    assert sys.path == before


def test_a_module_of_the_program_stays_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = loaded(tmp_path / "elsewhere" / "settings_of_all.py", monkeypatch)
    file = project(tmp_path / "mine", "Tanh", NET, "settings_of_all")
    network = load_source(Source(model=f"{file}:Net"))
    assert isinstance(network.get_submodule("1"), torch.nn.Tanh)
    assert sys.modules["settings_of_all"] is theirs
    (tmp_path / "mine" / "settings_of_all.py").write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(InputError, match="ZeroDivisionError"):
        load_source(Source(model=f"{file}:Net"))
    assert sys.modules["settings_of_all"] is theirs


def test_what_is_imported_from_beside_is_a_part_of_the_code(tmp_path: Path) -> None:
    file = project(tmp_path / "p", "ReLU", NET, "parts")
    package = tmp_path / "p" / "blocks"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import width\n", encoding="utf-8")
    (package / "inner.py").write_text("width = 4\n", encoding="utf-8")
    (package / "unused.py").write_text("", encoding="utf-8")
    (tmp_path / "p" / "other.py").write_text("", encoding="utf-8")
    text = (tmp_path / "p" / "parts.py").read_text(encoding="utf-8")
    (tmp_path / "p" / "parts.py").write_text(f"import blocks\n{text}", encoding="utf-8")
    names = [path.name for path in own_files(file)]
    assert names == ["net.py", "parts.py", "__init__.py", "inner.py"]
    seen = {code_sha256(file)}
    for name in ("net.py", "parts.py", "blocks/__init__.py", "blocks/inner.py"):
        path = tmp_path / "p" / name
        path.write_text(path.read_text(encoding="utf-8") + "# more\n", encoding="utf-8")
        seen.add(code_sha256(file))
    assert len(seen) == 5
    (package / "unused.py").write_text("# more\n", encoding="utf-8")
    assert code_sha256(file) in seen


def test_a_package_of_another_folder_leaves_no_part_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded(tmp_path / "elsewhere" / "parts_of_all.py", monkeypatch)
    package = tmp_path / "mine" / "parts_of_all"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .inner import activation\n", encoding="utf-8")
    (package / "inner.py").write_text(LAYERS.format(kind="Tanh"), encoding="utf-8")
    file = tmp_path / "mine" / "net.py"
    file.write_text(NET.format(layers="parts_of_all"), encoding="utf-8")
    load_source(Source(model=f"{file}:Net"))
    assert [name for name in sys.modules if name.startswith("parts_of_all")] == ["parts_of_all"]


def test_the_standard_library_is_not_another_folder(tmp_path: Path) -> None:
    """A random.py beside: taken for the library's, all else that is imported then would break."""
    (tmp_path / "random.py").write_text("1 / 0\n", encoding="utf-8")
    (tmp_path / "net.py").write_text(
        "import random\nfrom torch import nn\n\ndef Net():\n"
        "    return nn.Linear(random.randrange(4, 5), 2)\n",
        encoding="utf-8",
    )
    network = load_source(Source(model=f"{tmp_path / 'net.py'}:Net"))
    assert network.get_parameter("weight").shape == (2, 4)
