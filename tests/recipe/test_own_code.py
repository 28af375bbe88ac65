"""A run is of the code that built its network, in all of its files."""

from pathlib import Path

import pytest

from prunus.artifact import load
from prunus.errors import InputError
from prunus.recipe import Prune, compress
from prunus.records import Source
from tests.recipe.subjects import few_digits

NET = """
from torch import nn
from inner import act

def Net():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), act(), nn.Conv2d(6, 6, 3), act(), nn.Flatten(), nn.Linear(96, 10)
    )
"""


def test_a_run_is_not_resumed_with_other_code_beside_its_file(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(NET, encoding="utf-8")
    (tmp_path / "inner.py").write_text("from torch.nn import ReLU as act\n", encoding="utf-8")
    source = Source(model=f"{file}:Net")
    steps = (Prune(method="l1", target="macs=0.6"),)
    done = compress(source, steps, few_digits(), out=tmp_path / "run", latency=None)
    assert done.artifact_path is not None
    (tmp_path / "inner.py").write_text("from torch.nn import Tanh as act\n", encoding="utf-8")
    with pytest.raises(InputError, match="code"):
        compress(source, steps, few_digits(), out=tmp_path / "run", latency=None, resume=True)
    with pytest.warns(UserWarning, match="or a file that it imports"):
        load(done.artifact_path)
