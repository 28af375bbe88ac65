import pytest
import torch
from torch import nn

from prunus.errors import InputError
from prunus.train import TrainConfig
from prunus.train.optimizer import make_optimizer, split_parameters


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LayerNorm([4, 4]), nn.Linear(4, 3)
    )


def test_biases_and_norms_are_told_from_weights() -> None:
    net = network()
    names = {id(p): n for n, p in net.named_parameters()}
    decayed, exempt = split_parameters(net)
    assert [names[id(p)] for p in decayed] == ["0.weight", "3.weight"]
    assert [names[id(p)] for p in exempt] == [
        "0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.bias",
    ]  # fmt: skip


def test_frozen_parameters_are_left_out_and_shared_ones_listed_once() -> None:
    one = nn.Linear(3, 3)
    net = nn.Sequential(one, one, nn.Linear(3, 3).requires_grad_(False))
    decayed, exempt = split_parameters(net)
    assert [id(p) for p in decayed + exempt] == [id(one.weight), id(one.bias)]
    with pytest.raises(InputError, match="requires a gradient"):
        make_optimizer(net.requires_grad_(False), TrainConfig(epochs=1, lr=0.1))


@pytest.mark.parametrize(("exempt", "bias_after"), [(True, 1.0), (False, 0.9)])
def test_decay_of_a_step_without_gradient(exempt: bool, bias_after: float) -> None:
    # SGD, gradient 0: w <- w - lr * decay * w = 1 - 0.5 * 0.2
    net = nn.Linear(1, 1)
    config = TrainConfig(
        epochs=1, lr=0.5, momentum=0, weight_decay=0.2, exempt_norm_and_bias=exempt
    )
    for parameter in net.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(net, config).step()
    assert net.weight.item() == pytest.approx(0.9)
    assert net.bias.item() == pytest.approx(bias_after)


@pytest.mark.parametrize("nesterov", [True, False])
def test_two_steps_of_momentum_by_hand(nesterov: bool) -> None:
    # g = 1 twice, lr 0.1, m = 0.5: buffers 1, 1.5; plain steps 1 + 1.5, Nesterov's
    # (g + m * buffer) 1.5 + 1.75.
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    config = TrainConfig(epochs=1, lr=0.1, momentum=0.5, nesterov=nesterov, weight_decay=0)
    optimizer = make_optimizer(net, config)
    for _ in range(2):
        net.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert net.weight.item() == pytest.approx(-0.325 if nesterov else -0.25)


def test_adamw_is_chosen() -> None:
    optimizer = make_optimizer(network(), TrainConfig(epochs=1, lr=0.1, optimizer="adamw"))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [5e-4, 0.0]
