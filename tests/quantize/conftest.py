"""Fixtures of the engines' tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from prunus.artifact import export
from prunus.data import Inputs


@pytest.fixture(autouse=True, scope="session")
def _export_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Networks of a source are exported once: the exporter takes most of the time."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:

        def cached(network: nn.Module, path: Path, inputs: Inputs, *, dynamic_length: bool) -> None:
            total = sum(float(p.detach().double().abs().sum()) for p in network.parameters())
            kept = folder / f"{type(network).__name__}-{total!r}.onnx"
            if not kept.exists():
                export(network, kept, inputs, dynamic_length=dynamic_length)
            shutil.copy(kept, path)

        patch.setattr("prunus.quantize.onnx_runtime.export", cached)
        patch.setattr("prunus.quantize.open_vino.export", cached)
        yield
