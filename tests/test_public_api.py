"""``import prunus``: light, typed, and enough for the work of a dozen lines."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus


def _python(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder
    )


HELP = """
import sys
sys.argv = ["prunus", {}]
from prunus.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0
"""


@pytest.mark.parametrize(
    "code",
    [
        "import prunus; prunus.__version__; dir(prunus)",
        "import prunus.cli",
        HELP.format("'--help'"),
        HELP.format("'compare', '--help'"),
    ],
    ids=["import", "cli", "help", "help of a command"],
)
def test_torch_is_not_loaded_before_it_is_needed(code: str) -> None:
    done = _python(f"{code}\nimport sys; assert 'torch' not in sys.modules, 'torch was loaded'")
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    assert prunus.__all__ == sorted(prunus.__all__)
    for name in prunus.__all__:
        assert getattr(prunus, name) is not None
        assert name in dir(prunus)
    assert prunus.__version__ == metadata.version("prunus")
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = prunus.prunes


def test_the_names_that_are_promised_are_public() -> None:
    promised = {"trace", "cut", "certify", "compress", "compare", "load", "export", "load_data"}
    assert promised | {"build", "Budget", "Plan", "__version__"} <= set(prunus.__all__)


EXAMPLE = """
import torch
import prunus
from torch.utils.data import TensorDataset

x = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()
data = prunus.from_datasets(TensorDataset(x[:80], y[:80]), TensorDataset(x[80:], y[80:]))
network = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
steps = [prunus.Prune(method="l1", target="macs=0.5"), prunus.Train(epochs=2, lr=0.1)]
done = prunus.compress(network, steps, data, out="run")
print(done.network, done.record.score("after_training"), done.record.cost.macs)
"""


def test_a_dozen_lines_compress_a_network_of_ones_own(tmp_path: Path) -> None:
    done = _python(EXAMPLE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(EXAMPLE.strip().splitlines()) <= 12
    assert "stage='after_training'" in done.stdout
    macs = int(done.stdout.split()[-1])
    assert macs == 8 * 16 + 16 * 2  # half of 8 * 32 + 32 * 2, met by 16 of 32 units
    assert (tmp_path / "run" / "record.json").is_file()


def test_trace_and_cut_are_the_same_objects_as_at_home() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    found = prunus.trace(network, torch.randn(2, 4))
    keep = {found.cuttable[0].name: torch.arange(8).numpy() < 5}
    plan = found.plan(keep)
    assert isinstance(plan, prunus.Plan)
    assert prunus.certify(network, found, plan, torch.randn(3, 4)).passed
    assert prunus.cut(network, plan).get_parameter("0.weight").shape == (5, 4)
