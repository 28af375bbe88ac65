import numpy as np
import pytest
import torch

from prunus.errors import InputError
from prunus.graph import Trace, trace
from prunus.prune import unit_scores
from prunus.prune.magnitude import magnitude_scores
from prunus.prune.scores import normalized
from prunus.zoo import build
from tests.prune.networks import two_layers, weight_of


@pytest.fixture(scope="module")
def residual() -> tuple[torch.nn.Module, Trace]:
    network = build("digits_cnn").eval()
    return network, trace(network, torch.randn(2, 1, 8, 8), verify=False)


def test_a_coupled_unit_sums_its_slices_over_all_layers_of_the_residual(
    residual: tuple[torch.nn.Module, Trace],
) -> None:
    network, found = residual
    squares = {n: p.detach() ** 2 for n, p in network.named_parameters() if "bias" not in n}
    unit = 5  # channel 5 of the stem: made by conv1 and conv3, scaled by two norms, read by two
    parts = [
        (weight_of(network, "conv1.weight")[unit] ** 2).sum(),
        weight_of(network, "bn1.weight")[unit] ** 2,
        (weight_of(network, "conv2.weight")[:, unit] ** 2).sum(),
        (weight_of(network, "conv3.weight")[unit] ** 2).sum(),
        weight_of(network, "bn3.weight")[unit] ** 2,
        (weight_of(network, "conv4.weight")[:, unit] ** 2).sum(),
    ]
    total = unit_scores(found, squares, reduce="sum")["conv1"]
    assert total[unit] == pytest.approx(float(sum(parts)))
    assert unit_scores(found, squares)["conv1"][unit] == pytest.approx(float(sum(parts)) / 6)
    filters = unit_scores(found, squares, axes="out")["conv1"]
    assert filters[unit] == pytest.approx(float(parts[0] + parts[3]) / 2)


def test_positions_of_one_unit_add_up() -> None:
    # 3 channels of 2x2 pixels flattened: each unit reads 4 columns of the linear layer.
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 1), torch.nn.Flatten(), torch.nn.Linear(12, 2)
    )
    found = trace(network, torch.randn(2, 1, 2, 2))
    ones = {"2.weight": torch.arange(24.0).reshape(2, 12)}
    columns = np.arange(24.0).reshape(2, 3, 4)
    assert unit_scores(found, ones)["0"].tolist() == columns.sum(axis=(0, 2)).tolist()


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("model", ["digits_cnn", "resnet18"])
@pytest.mark.filterwarnings("ignore")
def test_group_scores_equal_those_of_torch_pruning(model: str, p: int) -> None:
    # Elsewhere they differ: it leaves out depthwise filters, and mistakes padded shortcuts.
    tp = pytest.importorskip("torch_pruning")
    network = build(model, width=0.5).eval()
    inputs = torch.randn(2, 1, 8, 8) if model == "digits_cnn" else torch.randn(2, 3, 32, 32)
    found = trace(network, inputs, verify=False)
    mine = magnitude_scores(network, found, norm="l1" if p == 1 else "l2-squared", axes="all")
    graph = tp.DependencyGraph().build_dependency(network, example_inputs=inputs)
    score = tp.importance.GroupMagnitudeImportance(p=p)
    for group in found.cuttable:
        layer = network.get_submodule(group.name)
        theirs = graph.get_pruning_group(
            layer, tp.prune_conv_out_channels, idxs=list(range(group.units))
        )
        np.testing.assert_allclose(
            normalized(mine, "mean")[group.name], score(theirs).numpy(), rtol=1e-5
        )


def test_normalized_divides_by_the_mean_of_the_group() -> None:
    scores = {"a": np.array([1.0, 3.0]), "b": np.zeros(2)}
    assert normalized(scores, "mean")["a"].tolist() == [0.5, 1.5]
    assert normalized(scores, "mean")["b"].tolist() == [0.0, 0.0]
    assert normalized(scores, "none")["a"].tolist() == [1.0, 3.0]


def test_wrong_shapes_and_groups_without_a_score_are_refused() -> None:
    network = two_layers()
    found = trace(network, torch.randn(2, 2, 3, 3))
    with pytest.raises(InputError, match=r"'0\.weight'.*shape \[3\].*\[3, 2, 1, 1\]"):
        unit_scores(found, {"0.weight": torch.ones(3)})
    with pytest.raises(InputError, match="no parameter of group '0'"):
        unit_scores(found, {})
