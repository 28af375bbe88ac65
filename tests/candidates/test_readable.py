"""What workers cannot read is refused here, in one line, before they are started."""

import multiprocessing
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch
from torch import nn

from prunus.candidates.processes import ProcessExecutor
from prunus.candidates.workplace import rehearse
from prunus.compute import Compute
from prunus.errors import InputError
from prunus.records import Source
from prunus.zoo import load_source

OWN = (
    "from torch import nn\n\nclass Own(nn.Linear):\n    pass\n\ndef make():\n    return Own(4, 2)\n"
)
WORKERS: tuple[str, ...] = ("processes", "ray")


def said(network: nn.Module, engine: str, source: Source | None = None) -> str:
    found = rehearse(network, source, torch.zeros(1, 4), Compute.model_validate({"engine": engine}))
    assert found is None or "\n" not in str(found)
    return str(found or "")


class Home(nn.Linear):
    """To be moved into a main module."""


def main_with(file: Path | None, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network of a class of a main module, whose script is there, or which has none."""
    main = ModuleType("__main__")
    main.__spec__ = None
    monkeypatch.setitem(sys.modules, "__main__", main)
    if file is not None:
        main.__file__ = str(file)
    monkeypatch.setattr(Home, "__module__", "__main__")
    main.Home = Home  # type: ignore[attr-defined]  # as a script defines it
    return Home(4, 2)


@pytest.mark.parametrize("engine", WORKERS)
def test_what_workers_can_import_is_sent(engine: str) -> None:
    assert said(nn.Linear(4, 2), engine) == ""
    assert said(Home(4, 2), engine) == ""


@pytest.mark.parametrize("engine", WORKERS)
def test_a_class_of_a_file_that_was_run_needs_its_source(engine: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    source = Source(model=f"{tmp_path / 'own.py'}:make")
    network = load_source(source)
    assert "network Own uses module 'prunus_source_own_" in said(network, engine)
    assert said(network, engine, source) == said(network, "serial") == ""


def test_a_main_module_is_imported_by_processes_where_it_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    script.touch()
    network = main_with(script, monkeypatch)
    assert said(network, "processes") == ""
    assert "main module, which workers of engine=ray cannot import" in said(network, "ray")


@pytest.mark.parametrize("file", [None, Path("<stdin>")])
def test_a_main_module_that_was_typed_or_piped_in_is_imported_by_none(
    file: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = main_with(file, monkeypatch)
    assert "workers of engine=processes cannot import: define it in a file" in said(
        network, "processes"
    )
    with pytest.raises(InputError, match="which was typed or piped in and workers cannot import"):
        ProcessExecutor(cast(Any, Home), None, 1, 1)  # it is not called


def test_what_does_not_unpickle_is_told() -> None:
    network = nn.Linear(4, 2)
    network.register_buffer("mask", torch.ones(3).to(torch.uint16))
    assert "network Linear cannot be read by a worker" in said(network, "processes")


def test_a_process_that_may_have_no_children_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(multiprocessing.current_process()), "daemon", True)
    assert "this is a daemonic process" in said(nn.Linear(4, 2), "processes")
    assert said(nn.Linear(4, 2), "ray") == ""
