import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.data import Samples, TrainSplit
from prunus.errors import InputError
from prunus.graph import trace
from prunus.method import Budget, Context
from prunus.prune import Taylor
from prunus.prune.importance import importance_scores
from prunus.prune.scores import FloatArray
from tests.helpers import Biased
from tests.prune.networks import weight_of
from tests.train.fakes import FloatStore

INPUTS = torch.tensor(
    [[1.0, 2.0, -1.0], [0.5, -1.0, 2.0], [-2.0, 0.3, 1.0], [1.5, 1.0, 0.2]], dtype=torch.float32
)
LABELS = torch.tensor([0, 1, 1, 0])


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    generator = torch.Generator().manual_seed(3)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return net


def split(inputs: Tensor = INPUTS) -> TrainSplit:
    return TrainSplit(Samples("points", FloatStore(inputs, LABELS), torch.arange(4), 2))


def first_order_terms(net: nn.Module) -> tuple[FloatArray, FloatArray]:
    """``g * w`` of both layers for each image, by the chain rule: ``[4, 4, 3]`` and ``[4, 2, 4]``."""
    W, V = (weight_of(net, name).numpy() for name in ("0.weight", "2.weight"))
    first, second = [], []
    for x, y in zip(INPUTS.double().numpy(), LABELS.tolist(), strict=True):
        before = W @ x
        hidden = np.maximum(before, 0)
        z = V @ hidden
        slope = np.exp(z) / np.exp(z).sum() - np.eye(2)[y]  # dL/dz = p - onehot
        back = (V.T @ slope) * (before > 0)
        first.append(np.outer(back, x) * W)
        second.append(np.outer(slope, hidden) * V)
    return np.array(first), np.array(second)


def scores(net: nn.Module, **options: object) -> list[float]:
    found = trace(net, INPUTS)
    context = Context(net, found, Budget.parse("params=0.5"), seed=0, train=split())
    ranked: list[float] = Taylor(**options).rank(context).scores["0"].tolist()
    return ranked


def test_elements_of_the_filter_by_the_chain_rule() -> None:
    net = network()
    first, _ = first_order_terms(net)
    expected = (first**2).sum(axis=2).mean(axis=0)  # one image per gradient
    assert scores(net, batch_size=1) == pytest.approx(expected.tolist(), rel=1e-5)


def test_gradients_are_of_the_mean_loss_of_a_batch() -> None:
    net = network()
    first, _ = first_order_terms(net)
    expected = (first.mean(axis=0) ** 2).sum(axis=1)  # all four images in one gradient
    assert scores(net, batch_size=64) == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_unit_as_a_whole_squares_the_sum_of_its_terms() -> None:
    net = network()
    first, second = first_order_terms(net)
    filters = (first.sum(axis=2) ** 2).mean(axis=0)
    assert scores(net, batch_size=1, combine="unit") == pytest.approx(filters.tolist(), rel=1e-5)
    both = ((first.sum(axis=2) + second.sum(axis=1)) ** 2).mean(axis=0)
    everything = scores(net, batch_size=1, combine="unit", axes="all")
    assert everything == pytest.approx(both.tolist(), rel=1e-5)


def test_biases_are_slices_of_a_unit_where_all_count() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    for name, parameter in network().named_parameters():
        net.get_parameter(name).data = parameter.data
    # With biases of 1 and one image: g b of the bias of unit k is dL/d(before)_k.
    x = INPUTS[:1].double().numpy()[0]
    W, V = (weight_of(net, name).numpy() for name in ("0.weight", "2.weight"))
    net.get_parameter("0.bias").data.fill_(1.0)
    before = W @ x + 1
    z = V @ np.maximum(before, 0)
    slope = np.exp(z) / np.exp(z).sum() - np.eye(2)[0]
    back = (V.T @ slope) * (before > 0)
    filters, biases = (back[:, None] * x * W).sum(axis=1), back
    columns = (slope[:, None] * np.maximum(before, 0) * V).sum(axis=0)
    one = TrainSplit(Samples("points", FloatStore(INPUTS[:1], LABELS[:1]), torch.arange(1), 2))
    context = Context(net, trace(net, INPUTS), Budget.parse("params=0.5"), seed=0, train=one)
    found = Taylor(combine="unit", axes="all").rank(context).scores["0"]
    assert found.tolist() == pytest.approx(((filters + biases + columns) ** 2).tolist(), rel=1e-5)


def seeded_scores(net: nn.Module, seed: int, **options: object) -> list[float]:
    context = Context(net, trace(net, INPUTS), Budget.parse("params=0.5"), seed, train=split())
    ranked: list[float] = Taylor(**options).rank(context).scores["0"].tolist()
    return ranked


def which(found: list[float], expected: list[FloatArray]) -> int:
    (number,) = (
        k for k, one in enumerate(expected) if found == pytest.approx(one.tolist(), rel=1e-5)
    )
    return number


def test_the_seed_draws_the_images_by_class() -> None:
    net = network()
    first, _ = first_order_terms(net)
    pairs = [[0, 1], [0, 2], [3, 1], [3, 2]]  # one image of each class
    expected = [(first[pair].mean(axis=0) ** 2).sum(axis=1) for pair in pairs]
    drawn = [which(seeded_scores(net, seed, images=2), expected) for seed in range(8)]
    assert drawn[0] == which(seeded_scores(net, 0, images=2), expected)
    assert len(set(drawn)) > 1


def test_the_seed_draws_which_images_share_a_gradient() -> None:
    net = network()
    first, _ = first_order_terms(net)
    ways = [([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 3], [1, 2])]
    expected = [
        np.mean([(first[batch].mean(axis=0) ** 2).sum(axis=1) for batch in way], axis=0)
        for way in ways
    ]
    drawn = [which(seeded_scores(net, seed, batch_size=2), expected) for seed in range(8)]
    assert len(set(drawn)) > 1


def test_frozen_parameters_and_a_caller_without_gradients_make_no_difference() -> None:
    net = network()
    expected = scores(net)
    net.requires_grad_(False)
    with torch.no_grad():
        assert scores(net) == expected
    assert not any(p.requires_grad for p in net.parameters())


def test_gradients_are_those_of_eval_mode_and_modes_are_given_back() -> None:
    net = network()
    dropping = nn.Sequential(net[0], net[1], net[2], nn.Dropout(0.5)).train()
    assert scores(dropping) == pytest.approx(scores(net))
    assert all(module.training for module in dropping.modules())


def test_a_last_smaller_batch_is_left_out_and_images_are_limited() -> None:
    net = network()
    context = Context(net, trace(net, INPUTS), Budget.parse("params=0.5"), seed=0, train=split())
    for options, sizes in (({"batch_size": 3}, [3]), ({"images": 2, "batch_size": 1}, [1, 1])):
        watched = split()
        store = watched.samples.store
        assert isinstance(store, FloatStore)
        given = Context(net, context.trace, context.budget, seed=0, train=watched)
        Taylor(**options).rank(given)
        assert store.sizes == sizes


def test_a_diverged_network_is_refused() -> None:
    net = network()
    net.get_parameter("0.weight").data.fill_(float("inf"))
    found = trace(network(), INPUTS)
    context = Context(net, found, Budget.parse("params=0.5"), seed=0, train=split())
    with pytest.raises(InputError, match="not finite in 0"):
        Taylor().rank(context)
    with pytest.raises(InputError, match="not finite in 0"):  # and where a search is guided by it
        importance_scores(context, "taylor")


def test_what_a_module_keeps_between_batches_has_its_gradient_in_each() -> None:
    """As in training, where nothing is kept; and whether or not the network has run before."""
    torch.manual_seed(0)
    inputs = torch.randn(4, 5, 6)
    fresh = nn.Sequential(Biased(), nn.Flatten(), nn.Linear(15, 2)).eval()
    used = copy.deepcopy(fresh)
    with torch.no_grad():
        used(inputs)
    never = copy.deepcopy(fresh).train()
    heads = []
    for net in (fresh, used, never):
        found = trace(net, inputs)
        context = Context(net, found, Budget.parse("params=0.5"), seed=0, train=split(inputs))
        heads.append(Taylor(batch_size=2, axes="all").rank(context).scores["0.qkv"].tolist())
    assert heads[0] == heads[1] == pytest.approx(heads[2])
