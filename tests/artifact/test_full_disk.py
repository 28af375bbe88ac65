"""A disk that takes no more: told in one line, and nothing is left half-written."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.artifact import export, save
from prunus.errors import InputError
from prunus.quantize import Deployment, deploy, onnx_runtime, open_vino
from prunus.quantize.options import Engine
from prunus.records import Source
from prunus.zoo import load_source
from tests.limits import files_of_at_most

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")

FILE = """
from torch import nn


def make():
    return nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 3))
"""


def saved(folder: Path, network: nn.Module, source: Source) -> None:
    save(folder, network, source=source)


def deployed(folder: Path, network: nn.Module, source: Source) -> None:
    asked = Deployment(engine="torch")
    deploy(network, folder, asked, inputs=torch.rand(2, 512), source=source)


def deployed_in_int8(folder: Path, network: nn.Module, source: Source) -> None:
    asked = Deployment(engine="torch", weights="int8")
    deploy(network, folder, asked, inputs=torch.rand(2, 512), source=source)


@pytest.mark.parametrize("write", [saved, deployed, deployed_in_int8])
def test_a_folder_that_does_not_fit_is_told(
    write: Callable[[Path, nn.Module, Source], None], tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(FILE, encoding="utf-8")
    source = Source(model=f"{tmp_path / 'net.py'}:make")
    network = load_source(source)
    with (
        files_of_at_most(200_000),
        pytest.raises(InputError, match=r"folder='.*' cannot be written: .*[Ff]ile too large"),
    ):
        write(tmp_path / "d", network, source)
    assert {path.name for path in tmp_path.iterdir()} <= {"net.py", "__pycache__"}


def test_an_onnx_file_that_does_not_fit_is_told(tmp_path: Path) -> None:
    with (
        files_of_at_most(200_000),
        pytest.raises(InputError, match=r"path='.*m\.onnx' cannot be written: File too large"),
    ):
        export(nn.Linear(512, 512), tmp_path / "m.onnx", torch.rand(2, 512))
    assert not list(tmp_path.iterdir())


class Recurrent(nn.Module):
    """Is written by PyTorch's older exporter."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.out = nn.LSTM(64, 128, batch_first=True), nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.rows(x)[0][:, 0])
        return logits


def test_a_recurrent_onnx_file_that_does_not_fit_is_told(tmp_path: Path) -> None:
    with (
        files_of_at_most(100_000),
        pytest.raises(InputError, match=r"^path='.*m\.onnx' cannot be written: File too large$"),
    ):
        export(Recurrent(), tmp_path / "m.onnx", torch.rand(2, 5, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "fills", "kept", "said"),
    [
        ({"engine": "onnxruntime"}, "compute_what_is_read", 100_000, "File too large"),
        ({"weights": "int8"}, "compute_what_is_read", 100_000, "File too large"),
        # Here the library's own file beside the whole is cut short, which it reads all the same.
        ({"weights": "int8"}, "_make_ready_", None, "a file was cut short"),
        ({"engine": "openvino"}, "compute_what_is_read", 100_000, ".*iostream error"),
    ],
)
def test_a_disk_that_is_full_behind_the_export_is_told(
    asked: dict[str, Any],
    fills: str,
    kept: int | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the folder that the user named, not of the one beside it."""
    deployment = Deployment(**asked)
    module = {"onnxruntime": onnx_runtime, "openvino": open_vino}[deployment.engine]
    real = getattr(module, fills)
    with ExitStack() as stack:

        def filled(file: Path) -> None:
            real(file)
            stack.enter_context(files_of_at_most(kept or file.stat().st_size - 100))

        monkeypatch.setattr(module, fills, filled)
        with pytest.raises(InputError, match=rf"^folder='.*/d' cannot be written: {said}"):
            deploy(nn.Linear(512, 512), tmp_path / "d", deployment, inputs=torch.rand(2, 512))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_a_disk_that_is_full_at_once_is_told_of_the_folder_given(
    engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(FILE, encoding="utf-8")
    source = Source(model=f"{tmp_path / 'net.py'}:make")
    network, x = load_source(source), torch.rand(2, 512)
    with (
        files_of_at_most(200_000),
        pytest.raises(InputError, match=r"^folder='.*/d' cannot be written: .*[Ff]ile too large"),
    ):
        deploy(network, tmp_path / "d", Deployment(engine=engine), inputs=x, source=source)


SCRIPT = """
import resource, sys, torch, prunus
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    prunus.export(torch.nn.Linear(512, 512), sys.argv[1], torch.rand(2, 512), "pt2")
except prunus.errors.InputError as error:
    print(error)
"""


def test_an_exported_program_that_does_not_fit_is_told(tmp_path: Path) -> None:
    """In a process of its own, which torch's writer of archives would end."""
    path = tmp_path / "m.pt2"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"path={str(path)!r} cannot be written: File too large"
    assert not list(tmp_path.iterdir())
