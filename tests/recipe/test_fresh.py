"""The small network from scratch: fresh weights, and a training of its own length."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus.recipe import (
    Prune,
    Recalibrate,
    Step,
    Train,
    compress,
)
from prunus.recipe.fresh import reinitialize_
from tests.recipe.subjects import (
    SHORT,
    Killed,
    Killer,
    few_digits,
    same_state,
    trained_cnn,
)


def test_scratch_keeps_no_weight_and_trains_its_own_epochs() -> None:
    steps: list[Step] = [
        Prune(method="scratch", target="macs=0.5"),
        Train(**{**SHORT.model_dump(exclude={"step"}), "scratch_epochs": 3}),
    ]
    done = compress(trained_cnn(), steps, few_digits(), latency=None)
    assert len([p for p in done.record.history if p.phase == "train"]) == 3
    plain = compress(trained_cnn(), [steps[0]], few_digits(), latency=None)
    said = "the network from scratch was not trained, and answers by chance"
    told = [sum(said in note for note in run.record.notes) for run in (plain, done)]
    assert told == [1, 0]
    dense = trained_cnn().get_parameter("conv2.weight").flatten()
    fresh = plain.network.get_parameter("conv2.weight").flatten()
    assert not torch.isin(fresh, dense).any()
    again = compress(trained_cnn(), [steps[0]], few_digits(), latency=None)
    assert same_state(plain.network, again.network)
    other = compress(trained_cnn(), [steps[0]], few_digits(), seed=1, latency=None)
    assert not same_state(plain.network, other.network)


def test_a_later_training_of_a_network_from_scratch_is_a_fine_tuning(tmp_path: Path) -> None:
    def trained(epochs: int, scratch_epochs: int | None) -> Train:
        return SHORT.model_copy(update={"epochs": epochs, "scratch_epochs": scratch_epochs})

    steps: list[Step] = [
        Prune(method="scratch", target="macs=0.8"),
        Recalibrate(images=64),  # trains no weight
        trained(1, 3),
        Prune(method="l1", target="macs=0.6"),
        trained(2, 5),
        trained(1, None),
    ]
    done = compress(trained_cnn(), steps, few_digits(), latency=None)
    assert [p.step for p in done.record.history if p.phase == "train"] == [1, 2, 3, 1, 2, 1]
    assert not any("from scratch had" in note for note in done.record.notes)
    # 3 epochs of 8 steps each are over: a resumed run knows that the weights are trained.
    out, killer = tmp_path / "run", Killer("train", 26)
    with pytest.raises(Killed):
        compress(trained_cnn(), steps, few_digits(), out=out, latency=None, progress=killer)
    again = compress(trained_cnn(), steps, few_digits(), out=out, latency=None, resume=True)
    assert same_state(done.network, again.network)


class _Scaled(nn.Module):
    """Parameters of its own beside a layer that resets itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.token = nn.Parameter(torch.full((1, 50, 50), 7.0))
        self.scale = nn.Parameter(torch.full((4,), 7.0))
        self.own_bias = nn.Parameter(torch.full((4,), 7.0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def test_fresh_weights_of_modules_that_cannot_reset_themselves() -> None:
    network, state = _Scaled(), torch.random.get_rng_state()
    nn.init.constant_(network.layer.weight, 7.0)
    reinitialize_(network, 0)
    assert float(network.token.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert network.scale.tolist() == [1.0] * 4
    assert network.own_bias.tolist() == [0.0] * 4
    assert (
        float(network.layer.weight.detach().abs().max()) <= 3**-0.5
    )  # torch.nn.Linear: U(-1/sqrt(n), .)
    assert torch.equal(torch.random.get_rng_state(), state)
