"""Single weights at zero: how many, which, when, and that they stay so."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.errors import InputError, PrunusError
from prunus.graph import certify, cut, held_connections, trace
from prunus.meter import (
    count_macs,
    count_nonzero_params,
    count_params,
    file_size_bytes,
    sparse_bytes,
)
from prunus.method import Budget, Context, Decision
from prunus.plan import Bits, ZeroConnections
from prunus.prune import MagnitudeWeights
from prunus.recipe import Compressed, Prune, Repeat, Train, compress
from prunus.zoo import build
from tests.prune import text_subjects as texts
from tests.prune.networks import mlp
from tests.recipe.subjects import few_digits, trained_cnn

INPUTS = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])


def three_layers() -> nn.Sequential:
    """Two layers of four weights, then the output."""
    net = mlp((2, 2, 2, 2))
    values = {
        "0.weight": torch.tensor([[1.0, -2.0], [3.0, 4.0]]),
        "1.weight": torch.tensor([[0.1, 0.2], [-0.3, 5.0]]),
        "2.weight": torch.tensor([[0.01, 0.02], [0.03, 0.04]]),
    }
    net.load_state_dict(values)
    return net


def context(network: nn.Module, inputs: Any = INPUTS, target: str = "params=1.0") -> Context:
    found = trace(network, inputs, verify=False)
    return Context(network, found, Budget.parse(target), seed=0)


def masks(decision: Decision) -> dict[str, list[Any]]:
    """Tensor to what stays, 1 or 0, in its shape."""
    return {
        one.tensor: torch.from_numpy(one.keep.unpack()).view(one.shape).int().tolist()
        for one in decision.connections
    }


def zeros(decision: Decision) -> int:
    return sum(int((~one.keep.unpack()).sum()) for one in decision.connections)


def after(context: Context, decision: Decision) -> nn.Module:
    return cut(context.network, context.trace.plan({}, decision.connections)).eval()


@given(st.lists(st.integers(-2, 2), min_size=12, max_size=12), st.integers(1, 11))
def test_as_in_a_stable_order_of_magnitudes(values: list[int], gone: int) -> None:
    """Many are equal: those of them that come first go first."""
    net = mlp((3, 4, 2))
    with torch.no_grad():
        net.get_parameter("0.weight").copy_(torch.tensor(values).view(4, 3))
    decision = MagnitudeWeights(sparsity=gone / 12).decide(context(net, torch.ones(2, 3)))
    order = sorted(range(12), key=lambda at: abs(values[at]))
    expected = [
        [int(3 * row + column not in order[:gone]) for column in range(3)] for row in range(4)
    ]
    assert masks(decision) == {"0.weight": expected}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Of 0.1 0.2 0.3 1 2 3 4 5 the first half; the output layer is no part of it.
        ({}, {"0.weight": [[0, 1], [1, 1]], "1.weight": [[0, 0], [0, 1]]}),
        ({"scope": "layer"}, {"0.weight": [[0, 0], [1, 1]], "1.weight": [[0, 0], [1, 1]]}),
        ({"ignore": ("1",)}, {"0.weight": [[0, 0], [1, 1]]}),
        ({"ignore": ("[0]", "0*")}, {"1.weight": [[0, 0], [1, 1]]}),
        ({"sparsity": 0.25}, {"1.weight": [[0, 0], [1, 1]]}),
    ],
)
def test_the_smallest_weights_go(options: dict[str, Any], expected: dict[str, Any]) -> None:
    decision = MagnitudeWeights(**{"sparsity": 0.5, **options}).decide(context(three_layers()))
    assert masks(decision) == expected
    assert decision.choice == {}
    assert decision.edits == ()


def test_channels_that_nothing_reads_go_with_their_weights_and_it_is_told() -> None:
    """4 of 8 weights, both that read the first unit among them: its column goes, and its row of two."""
    net = three_layers()
    with torch.no_grad():
        net.get_parameter("1.weight").copy_(torch.tensor([[0.1, 0.6], [0.2, 0.7]]))
        net.get_parameter("0.weight").copy_(torch.tensor([[0.3, 0.8], [0.4, 0.9]]))
    given = context(net)
    decision = MagnitudeWeights(sparsity=0.5).decide(given)
    assert masks(decision) == {"0.weight": [[0, 1], [0, 1]], "1.weight": [[0, 1], [0, 1]]}
    cut_one = after(given, decision)
    left = [cut_one.get_parameter(f"{k}.weight") for k in (0, 1)]
    assert [tuple(weight.shape) for weight in left] == [(1, 2), (2, 1)]
    assert sum(int((weight == 0).sum()) for weight in left) == 1
    (note,) = decision.notes
    assert (
        "4 of 8 weights are zero (50.0%), 1 of 4 (25.0%) once channels that nothing reads" in note
    )


@given(
    sparsity=st.floats(0.01, 0.99),
    done=st.floats(0.01, 1.0),
    scope=st.sampled_from(["global", "layer"]),
)
def test_as_many_go_as_the_share_says(sparsity: float, done: float, scope: str) -> None:
    net = mlp((5, 7, 3, 2))
    given = replace(context(net, torch.ones(2, 5)), done=done)
    decision = MagnitudeWeights(sparsity=sparsity, scope=scope).decide(given)
    share = sparsity * (1 - (1 - done) ** 3)
    wanted = [35 + 21] if scope == "global" else [35, 21]
    assert zeros(decision) == sum(round(share * weights) for weights in wanted)


@pytest.mark.parametrize("ignore", ["1", "1.weight"])
def test_layers_that_the_recipe_ignores_keep_their_weights(ignore: str) -> None:
    """What the option ``ignore`` of the same layer leaves, above."""
    dense = context(three_layers())
    found = trace(dense.network, INPUTS, verify=False, ignore=[ignore])
    decision = MagnitudeWeights(sparsity=0.5).decide(replace(dense, trace=found))
    assert masks(decision) == masks(MagnitudeWeights(sparsity=0.5, ignore=("1",)).decide(dense))
    assert list(masks(decision)) == ["0.weight"]


def test_equal_weights_go_in_the_order_of_their_places() -> None:
    net = three_layers()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    decision = MagnitudeWeights(sparsity=0.6).decide(context(net))  # 5 of 8
    assert masks(decision) == {"0.weight": [[0, 0], [0, 0]], "1.weight": [[0, 1], [1, 1]]}


@pytest.mark.parametrize(
    ("done", "share"),
    # Zhu and Gupta, eq. 1, from s_i = 0: s_f (1 - (1 - t)^3); 19 and 26 of 27 after thirds.
    [(1 / 3, 0.54 * 19 / 27), (2 / 3, 0.54 * 26 / 27), (1.0, 0.54)],
)
def test_rounds_follow_the_cubic_schedule(done: float, share: float) -> None:
    given = replace(context(mlp((50, 40, 2)), torch.ones(2, 50)), done=done)
    assert zeros(MagnitudeWeights(sparsity=0.54).decide(given)) == round(share * 2000)
    at_once = MagnitudeWeights(sparsity=0.54, schedule="none").decide(given)
    assert zeros(at_once) == 1080


def test_weights_that_are_held_already_are_counted_and_go_first() -> None:
    net = three_layers()
    first = context(net)
    large = ZeroConnections(  # of all the largest, and a weight that happens to be zero elsewhere
        tensor="1.weight",
        level="weight",
        shape=(2, 2),
        keep=Bits.pack(torch.tensor([True, True, True, False]).numpy()),
    )
    with torch.no_grad():
        net[0].get_parameter("weight")[0, 0] = 0.0
    again = context(cut(net, first.trace.plan({}, [large])))
    decision = MagnitudeWeights(sparsity=1 / 8).decide(again)
    assert masks(decision) == {"1.weight": [[1, 1], [1, 0]]}
    decision = MagnitudeWeights(sparsity=2 / 8).decide(again)
    assert masks(decision) == {"0.weight": [[0, 1], [1, 1]], "1.weight": [[1, 1], [1, 0]]}


def test_what_is_held_stays_where_less_is_asked_for() -> None:
    first = context(three_layers())
    half = after(first, MagnitudeWeights(sparsity=0.5, scope="layer").decide(first))
    decision = MagnitudeWeights(sparsity=0.25, scope="layer").decide(context(half))
    assert masks(decision) == {"0.weight": [[0, 0], [1, 1]], "1.weight": [[0, 0], [1, 1]]}
    assert "4 of 8 weights are zero (50.0%)" in decision.notes[0]


def test_effective_macs_fall_and_nothing_else_does() -> None:
    network = build("digits_cnn").eval()
    inputs = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    given = context(network, inputs)
    decision = MagnitudeWeights(sparsity=0.5).decide(given)
    sparse = after(given, decision)
    dense_count, sparse_count = count_macs(network, inputs[:1]), count_macs(sparse, inputs[:1])
    assert sparse_count.macs == dense_count.macs
    assert sparse_count.effective_macs < 0.75 * dense_count.macs
    assert count_params(sparse) == count_params(network)
    assert file_size_bytes(sparse) == file_size_bytes(network)
    assert count_nonzero_params(network) - count_nonzero_params(sparse) == zeros(decision)
    assert sparse_bytes(sparse) < sparse_bytes(network)
    plan = given.trace.plan({}, decision.connections)
    assert certify(network, given.trace, plan, inputs).passed
    assert "computed and stored like other numbers" in decision.notes[0]


def test_three_rounds_with_training_between_follow_the_schedule_and_hold_their_zeros() -> None:
    rounds = Repeat(
        times=3,
        steps=(
            Prune(method="magnitude-weights", options={"sparsity": 0.6}),
            Train(epochs=1, lr=0.02, batch_size=32, precision="float32", layout="contiguous"),
        ),
    )
    dense = trained_cnn()
    done: Compressed = compress(dense, [rounds], few_digits(), latency=None)
    names = {
        f"{path}.weight": module.get_parameter("weight")
        for path, module in dense.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    output = max(names, key=lambda name: list(names).index(name))
    total = sum(weight.numel() for name, weight in names.items() if name != output)
    before: dict[str, Tensor] = {}
    for plan, share in zip(done.plans, (0.6 * 19 / 27, 0.6 * 26 / 27, 0.6), strict=True):
        edits = [edit for edit in plan.edits if isinstance(edit, ZeroConnections)]
        assert sum(int((~e.keep.unpack()).sum()) for e in edits) == round(share * total)
        kept = {e.tensor: torch.from_numpy(e.keep.unpack()).view(e.shape) for e in edits}
        for name, mask in before.items():  # what was zero stays zero
            assert not (kept[name] & ~mask).any()
        before = kept
    for name, mask in before.items():
        weight = done.network.get_parameter(name)
        assert not weight[~mask].any()
        assert weight[mask].all()
        assert not torch.equal(weight, names[name])  # the others were trained
        assert torch.equal(held_connections(done.network)[name], mask)
    assert done.record.cost.macs == done.record.dense_cost.macs
    assert done.record.cost.effective_macs < done.record.dense_cost.effective_macs


@pytest.mark.parametrize("target", ["macs=0.5", "params=0.9", "size=1000"])
def test_a_target_is_refused_as_zeros_meet_none(target: str) -> None:
    given = context(build("digits_cnn").eval(), torch.ones(2, 1, 8, 8), target)
    with pytest.raises(InputError, match=rf"target {target}: .*set sparsity") as caught:
        MagnitudeWeights(sparsity=0.5).decide(given)
    assert "\n" not in str(caught.value)


def test_layers_of_a_bert_and_its_tables_where_asked_for() -> None:
    network = texts.bert_tiny().eval()
    given = texts.context(network, texts.inputs(texts.TRAIN))
    decision = MagnitudeWeights(sparsity=0.5).decide(given)
    # Query, key, value, output; feed-forward; pooler: by formula. The classifier is the output.
    layers = 4 * 16 * 16 + 2 * 16 * 64 + 16 * 16
    assert zeros(decision) == layers // 2
    assert not any("embeddings" in name or "classifier" in name for name in masks(decision))
    tables = (40 + 16 + 2) * 16
    everything = MagnitudeWeights(sparsity=0.5, embeddings=True).decide(given)
    assert zeros(everything) == (layers + tables) // 2
    assert "bert.embeddings.word_embeddings.weight" in masks(everything)
    example = given.trace.example_inputs
    plan = given.trace.plan({}, everything.connections)
    assert certify(network, given.trace, plan, example).passed


def test_tied_weights_are_counted_once_by_the_name_that_plans_know() -> None:
    net = mlp((2, 2, 2, 2))
    net[1].weight = net[0].weight
    given = context(net)
    decision = MagnitudeWeights(sparsity=0.5).decide(given)
    assert list(masks(decision)) == ["0.weight"]
    assert zeros(decision) == 2
    sparse = after(given, decision)
    assert sparse[1].weight is sparse[0].weight  # type: ignore[index]
    assert int((sparse[0].weight == 0).sum()) == 2  # type: ignore[index]


def test_a_table_that_is_the_output_layer_as_well_stays_whole() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inner = nn.Embedding(6, 4), nn.Linear(4, 4)
            self.out = nn.Linear(4, 6, bias=False)
            self.out.weight = self.table.weight

        def forward(self, input_ids: Tensor) -> Tensor:
            found: Tensor = self.out(self.inner(self.table(input_ids)).relu())
            return found

    given = context(Tied().eval(), {"input_ids": torch.tensor([[1, 2, 3], [3, 4, 5]])})
    for embeddings in (True, False):
        decision = MagnitudeWeights(sparsity=0.5, embeddings=embeddings).decide(given)
        assert list(masks(decision)) == ["inner.weight"]


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (texts.bilstm, {}, "BiLstm; take a method for its channels"),
        (texts.textcnn, {"ignore": ("convolutions.*",)}, "TextCnn that ignore leaves; mend it"),
        (
            texts.textcnn,
            {"ignore": ("convolutions.*", "convs.*")},
            r"ignore: 'convs\.\*' matches no layer to prune; layers are convolutions\.0, .*",
        ),
        (
            texts.textcnn,
            {"ignore": ("embedding",)},
            "ignore: 'embedding' matches no layer to prune",
        ),
    ],
)
def test_a_network_with_no_layer_left_is_refused(
    make: Any, options: dict[str, Any], said: str
) -> None:
    network, inputs = make().eval(), texts.inputs(texts.TRAIN)
    method = MagnitudeWeights(sparsity=0.5, **options)
    with pytest.raises(PrunusError, match=said) as caught:
        method.decide(texts.context(network, inputs))
    assert "\n" not in str(caught.value)
    with pytest.raises(PrunusError, match=said):  # before anything is trained, too
        method.require_applicable(network, inputs)


@pytest.mark.parametrize("ignore", ["embedding", "classifier"])
def test_globs_may_name_tables_that_are_pruned_and_the_output_layer(ignore: str) -> None:
    method = MagnitudeWeights(sparsity=0.5, embeddings=True, ignore=(ignore,))
    method.require_applicable(texts.textcnn().eval(), texts.inputs(texts.TRAIN))


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.5, "half", None])
def test_a_sparsity_that_cannot_be_is_refused(sparsity: object) -> None:
    with pytest.raises(InputError, match=r"sparsity=.*'magnitude-weights'"):
        MagnitudeWeights(sparsity=sparsity)
