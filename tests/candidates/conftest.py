"""Where a store is, and small transformers from random configs where that package is installed."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from prunus.candidates.store import STORE_FILE

Built = tuple[nn.Module, Mapping[str, torch.Tensor]]


@pytest.fixture
def architectures(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Built]:
    """Name of the coverage benchmark's table to network and inputs."""
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import architectures as table

    def build(name: str) -> Built:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network, inputs = table.architectures()[name][1](name)
            table.enliven(network, inputs)
        return network, inputs

    return build


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / STORE_FILE
