"""Scores of the ranking methods against values computed by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from prunus.errors import InputError
from prunus.graph import trace
from prunus.method import Budget, Context, make_method, method_class
from prunus.prune import L1, L2, BnScale, GroupL2, L1Global, L2Global, Random, Scratch
from prunus.prune.base import GlobalRanking, UniformRanking
from tests.prune.networks import two_layers

# The filters are (3, -4), (1, 0), (-5, 12); the linear layer reads them with columns (1, -1),
# (2, 0), (3, 4); scales are -0.5, 2, 0.25. Biases are large and must not count.
FILTERS_L1 = [7.0, 1.0, 17.0]
FILTERS_L2 = [5.0, 1.0, 13.0]
ALL_L1 = [(7 + 0.5 + 2) / 3, (1 + 2 + 2) / 3, (17 + 0.25 + 7) / 3]
ALL_SQUARED = [(25 + 0.25 + 2) / 3, (1 + 4 + 4) / 3, (169 + 0.0625 + 25) / 3]


def on(network: nn.Module, seed: int = 0) -> Context:
    found = trace(network, torch.randn(2, 2, 3, 3))
    return Context(network, found, Budget.parse("params=0.7"), seed)


def score(method: UniformRanking | GlobalRanking, context: Context) -> list[float]:  # type: ignore[type-arg]
    mine: list[float] = method.rank(context).scores["0"].tolist()
    return mine


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (L1(), FILTERS_L1),
        (L2(), FILTERS_L2),
        (L1Global(), FILTERS_L1),
        (L2Global(), FILTERS_L2),
        (L1(axes="all"), ALL_L1),
        (L2Global(axes="all"), np.sqrt(ALL_SQUARED).tolist()),
        (GroupL2(), ALL_SQUARED),
        (BnScale(), [0.5, 2.0, 0.25]),
    ],
    ids=["l1", "l2", "l1-global", "l2-global", "l1 all", "l2-global all", "group-l2", "bn-scale"],
)
def test_scores_by_hand(
    method: UniformRanking | GlobalRanking,  # type: ignore[type-arg]
    expected: list[float],
) -> None:
    assert score(method, on(two_layers())) == pytest.approx(expected)


def test_methods_disagree_where_their_scores_do() -> None:
    # 3 units cost 9 + 6 + 8 = 23 parameters; 2 units cost 6 + 4 + 6 = 16, which is 0.7 of it.
    context = on(two_layers())
    assert context.trace.params({}) == 23
    kept = {m: make_method(m).decide(context).choice["0"].tolist() for m in ("l1", "bn-scale")}
    assert kept == {"l1": [True, False, True], "bn-scale": [True, True, False]}


class _Mixed(nn.Module):
    """A convolution with a batch norm after it, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(2)
        self.b = nn.Conv2d(2, 2, 1, bias=False)
        self.c = nn.Conv2d(2, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.c(self.b(self.bn(self.a(x)).relu()).relu())
        return out


def test_a_group_without_batch_norm_is_ranked_by_relative_l2_norm() -> None:
    network = _Mixed().eval()
    with torch.no_grad():
        network.bn.weight.copy_(torch.tensor([-0.2, 0.6]))
        network.b.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 15.0]]).reshape(2, 2, 1, 1))
    ranked = BnScale().rank(on(network))
    assert ranked.scores["a"].tolist() == pytest.approx([0.2, 0.6])
    # Norms 5 and 15 relative to their mean are 0.5 and 1.5; the mean scale is 0.4.
    assert ranked.scores["b"].tolist() == pytest.approx([0.2, 0.6])
    assert ranked.notes == ("no batch norm, ranked by relative L2 norm: b",)


def scaled_layers() -> nn.Sequential:
    """Two convolutions of 4 channels; scales of the first are a tenth of those of the second."""
    network = nn.Sequential(
        *(nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Conv2d(4, 1, 1, bias=False),
    )
    scales = torch.arange(1.0, 5.0)
    network.load_state_dict({"1.weight": scales / 10, "4.weight": scales}, strict=False)
    return network.eval()


def test_bn_scale_has_one_threshold_for_all_layers_unless_told_otherwise() -> None:
    # With a and b channels 2 a + 2 a + a b + 2 b + b parameters: 44; 0.7 of it is 30.
    found = trace(scaled_layers(), torch.randn(2, 2, 3, 3))
    context = Context(scaled_layers(), found, Budget.parse("params=0.7"), 0)
    assert context.trace.params({}) == 44
    kept = {
        how: {name: int(keep.sum()) for name, keep in method.decide(context).choice.items()}
        for how, method in (("none", BnScale()), ("mean", BnScale(normalize="mean")))
    }
    # The scales of 0.1 to 0.4 go first: 2 and 4 channels cost 28. Relative to their layers' means
    # both layers are alike: 3 and 3 cost 30.
    assert kept == {"none": {"0": 2, "3": 4}, "mean": {"0": 3, "3": 3}}


def test_mean_scale_is_that_of_all_units_whatever_their_layer() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU()),
        *(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1)),
    )
    with torch.no_grad():
        network.get_parameter("1.weight").copy_(torch.tensor([0.2, 0.6]))
        network.get_parameter("6.weight").copy_(torch.eye(2, 4).reshape(2, 4, 1, 1))
    # (0.2 + 0.6 + 4 * 1) / 6; both units of the layer without a batch norm have its mean norm.
    assert BnScale().rank(on(network)).scores["6"].tolist() == pytest.approx([0.8, 0.8])


def test_bn_scale_of_a_unit_of_several_channels_is_their_mean() -> None:
    """Channels of a group go together: their scales do not add up to a more important unit."""
    network = nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, groups=2), nn.BatchNorm2d(8)
    )
    network.extend([nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)])
    network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    context = on(network)
    assert {group.units for group in context.trace.cuttable} == {4, 6}  # one of each group of 4
    scores = BnScale().rank(context).scores
    for group in context.trace.cuttable:
        assert scores[group.name].tolist() == [1.0] * group.units


class _SideBySide(nn.Module):
    """Channels of a layer of groups beside those of a plain one, each with a batch norm; then both."""

    def __init__(self, *, swapped: bool) -> None:
        super().__init__()
        self.swapped = swapped
        self.a, self.plain = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
        self.b, self.wide = nn.Conv2d(2, 8, 1), nn.BatchNorm2d(8)
        self.grouped, self.behind = nn.Conv2d(8, 8, 1, groups=2), nn.BatchNorm2d(8)
        self.both, self.last = nn.BatchNorm2d(12), nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = self.plain(self.a(x)), self.behind(self.grouped(self.wide(self.b(x))))
        side = [other, one] if self.swapped else [one, other]
        out: torch.Tensor = self.last(self.both(torch.cat(side, 1)).relu())
        return out


@pytest.mark.parametrize("swapped", [False, True])
def test_bn_scale_of_branches_side_by_side_is_a_mean_in_each(swapped: bool) -> None:
    """One batch norm over both: a unit has one of its channels, or two."""
    context = on(_SideBySide(swapped=swapped).eval())
    scores = BnScale().rank(context).scores
    channels = {
        (a.tensor, g.name): int((a.units >= 0).sum()) / g.units
        for g in context.trace.cuttable
        for a in g.axes
    }
    assert {channels["both.weight", name] for name in ("a", "grouped")} == {1, 2}
    for name in ("a", "b", "grouped"):
        assert scores[name].tolist() == [1.0] * 4


class _Recurrent(nn.Module):
    """Reads the outputs of a layer one after another."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], *, both: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.cells = kind(4, 5, batch_first=True, bidirectional=both)
        self.last = nn.Linear(10 if both else 5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.cells(self.first(x))[0][:, -1])
        return out


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("method", [L1(axes="all"), L2Global(axes="all"), GroupL2()], ids=type)
def test_biases_of_recurrent_layers_do_not_count(
    method: UniformRanking | GlobalRanking,  # type: ignore[type-arg]
    kind: type[nn.LSTM | nn.GRU],
    both: bool,
) -> None:
    network, x = _Recurrent(kind, both=both).eval(), torch.randn(2, 6, 3)
    context = Context(network, trace(network, x), Budget.parse("params=0.7"), 0)
    before = method.rank(context).scores
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "bias" in name:
                parameter.fill_(1000.0)
    after = method.rank(context).scores
    assert any("cells" in name for name in before)
    for name, mine in before.items():
        assert after[name].tolist() == mine.tolist()


def test_bn_scale_refuses_a_network_without_batch_norm() -> None:
    with pytest.raises(InputError, match="needs batch norms"):
        BnScale().rank(on(two_layers(norm=False)))
    with pytest.raises(InputError, match="needs batch norms"):  # before anything is trained
        BnScale().require_applicable(two_layers(norm=False), torch.randn(2, 2, 3, 3))
    BnScale().require_applicable(two_layers(), torch.randn(2, 2, 3, 3))


def test_random_is_uniform_over_units() -> None:
    context = on(two_layers())
    kept = np.zeros(3)
    for seed in range(600):
        given = Context(context.network, context.trace, context.budget, seed)
        kept += Random().decide(given).choice["0"]
    # 2 of 3 stay: 400 expected each, standard deviation sqrt(600 * 2/9) = 11.5.
    assert np.abs(kept - 400).max() < 4 * 11.5


def test_scratch_keeps_the_first_units_and_asks_for_fresh_weights() -> None:
    assert Scratch().decide(on(two_layers())).choice["0"].tolist() == [True, True, False]
    assert method_class("scratch").reinitialize


def test_null_baselines_are_marked() -> None:
    nulls = {"random", "random-search", "scratch"}
    assert {name for name in nulls if method_class(name).null} == nulls
    assert not any(method_class(n).null for n in ("l1", "l2", "group-l2", "bn-scale", "taylor"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1(axes="in"), r"option axes='in' of method 'l1'"),
        (lambda: GroupL2(least_share=1.5), r"option least_share=1\.5 of method 'group-l2'"),
        (lambda: L2Global(normalize="max"), r"option normalize='max'"),
        (lambda: L1(axis="out"), r"'l1' has no option 'axis'; its options: axes"),
        (lambda: Random(seed=1), r"'random' has no option 'seed'; its options: none"),
        (lambda: make_method("taylor", {"images": 0}), r"option images=0 of method 'taylor'"),
        (lambda: make_method("random-search", {"jitter": "much"}), r"option jitter='much'"),
    ],
)
def test_options_are_validated_at_construction(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
