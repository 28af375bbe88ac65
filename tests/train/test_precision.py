from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus.train import Execution, TrainConfig
from prunus.train.precision import candidates, choose_execution, fastest, has_bfloat16
from tests.train.fakes import same_state, small_cnn, train_digits

CPU = torch.device("cpu")
PLAIN = Execution("float32", "contiguous")
LAST = Execution("float32", "channels_last")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model name\t: X\nflags\t\t: fpu avx2 avx512_bf16 sse\n", True),
        ("flags\t\t: amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("model name\t: bf16 imitator\nflags\t\t: avx2\n", False),
        ("", False),
    ],
    ids=["avx512", "amx", "arm", "without", "name only", "nothing"],
)
def test_bfloat16_is_read_from_the_flags_of_the_cpu(tmp_path: Path, text: str, found: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    assert has_bfloat16(CPU, tmp_path / "cpuinfo") is found
    assert not has_bfloat16(CPU, tmp_path / "absent")


def test_pinned_values_are_kept_without_a_trial() -> None:
    class Unrunnable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError

    config = TrainConfig(epochs=1, lr=0.1, precision="bfloat16", layout="channels_last")
    sample = next(train_digits(0, 4).batches(4))
    chosen = choose_execution(Unrunnable(), sample, config, CPU)
    assert chosen == Execution("bfloat16", "channels_last")


def test_layouts_are_tried_only_where_there_are_images(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(epochs=1, lr=0.1, precision="float32")
    assert candidates(nn.Linear(2, 2), config, CPU) == [PLAIN]
    assert candidates(small_cnn(), config, CPU) == [PLAIN, LAST]
    monkeypatch.setattr("prunus.train.precision.has_bfloat16", lambda _: True)
    auto = candidates(small_cnn(), TrainConfig(epochs=1, lr=0.1), CPU)
    assert auto[0] == PLAIN
    assert {c.precision for c in auto} == {"float32", "bfloat16"}
    assert len(auto) == 4


def test_only_a_clear_gain_displaces_the_plain_choice() -> None:
    assert fastest({PLAIN: 1.0, LAST: 0.97}, PLAIN) == PLAIN
    assert fastest({PLAIN: 1.0, LAST: 0.80}, PLAIN) == LAST
    assert fastest({LAST: 2.0}, PLAIN) == LAST
    assert fastest({}, PLAIN) == PLAIN


class Viewer(nn.Module):
    """Cannot run in channels_last: ``view`` of such an activation fails."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.linear = nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.conv(x).view(len(x), 144))
        return out


def test_a_layout_that_the_network_cannot_run_in_is_left_out() -> None:
    sample = next(train_digits(0, 8).batches(8))
    config = TrainConfig(epochs=1, lr=0.1, precision="float32")
    assert choose_execution(Viewer(), sample, config, CPU) == PLAIN


def test_the_trial_changes_neither_network_nor_global_random_state() -> None:
    network, twin = small_cnn(dropout=0.5).eval(), small_cnn(dropout=0.5)
    state = torch.get_rng_state()
    config = TrainConfig(epochs=1, lr=0.1)
    choose_execution(network, next(train_digits(0, 8).batches(8)), config, CPU)
    assert same_state(network, twin)
    assert not any(m.training for m in network.modules())
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
