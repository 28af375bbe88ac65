"""Fixtures of the engines' tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from prunus.artifact import export
from prunus.data import Inputs


@pytest.fixture(autouse=True, scope="session")
def _export_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Networks of a source are exported once in a run: the exporter takes most of the time."""
    own = tmp_path_factory.getbasetemp()
    # A worker of pytest-xdist has a folder in the run's.
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "exported"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:

        def cached(network: nn.Module, path: Path, inputs: Inputs, *, dynamic_length: bool) -> None:
            total = sum(float(p.detach().double().abs().sum()) for p in network.parameters())
            kept = folder / f"{type(network).__name__}-{total!r}-{dynamic_length}.onnx"
            if not kept.exists():
                mine = kept.with_name(f"{os.getpid()}-{kept.name}")
                export(network, mine, inputs, dynamic_length=dynamic_length)
                mine.replace(kept)
            shutil.copy(kept, path)

        patch.setattr("prunus.quantize.onnx_runtime.export", cached)
        patch.setattr("prunus.quantize.open_vino.export", cached)
        yield
