"""Layers: which go, how many, and what cannot lose any."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.data import SearchSplit, Split
from prunus.errors import BudgetError, GraphError, InputError
from prunus.graph import certify_rebuild, cut, plan_of, trace
from prunus.meter import count_macs, count_params, file_size_bytes
from prunus.method import Budget, Context, Decision
from prunus.plan import KeepLayers
from prunus.prune import Layers
from prunus.train import Evaluation, evaluate
from tests.prune import text_subjects as texts
from tests.train.fakes import samples

DEPTH = 4
LENGTH = 5
BERT_LAYER = 4 * (16 * 16 + 16) + 2 * 2 * 16 + (16 * 64 + 64) + (64 * 16 + 16)
"""Parameters by formula, 16 wide, feed-forward 64: attention, two layer norms, feed-forward."""
BERT_LAYER_MACS = LENGTH * (4 * 16 * 16 + 2 * 16 * 64) + 2 * LENGTH * LENGTH * 16


class Feed(nn.Module):
    """Adds what a small network of its own makes of its input."""

    def __init__(self, width: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.wide, self.back = nn.Linear(width, hidden), nn.Linear(hidden, width)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.back(self.wide(x).relu()) / 8
        return out


class Stacked(nn.Module):
    """A stack of them, sure of what it says; the layers ``useless`` add nothing."""

    def __init__(self, hidden: Sequence[int], useless: Sequence[int] = ()) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Feed(4, width, at) for at, width in enumerate(hidden)))
        self.head = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(
                torch.tensor([[99.0, -99.0, 99.0, 99.0], [-99.0, 99.0, 99.0, -99.0]])
            )
            for at in useless:
                for parameter in self.layers[at].get_submodule("back").parameters():
                    parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(x))
        return out


class Narrowing(nn.Module):
    """A stack of like layers that changes the width on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(x))
        return out


@cache
def bert() -> nn.Module:
    return texts.bert_tiny(DEPTH).eval()


@cache
def traced() -> Context:
    return texts.context(bert(), texts.inputs(texts.TRAIN))


def given(target: str = "params=1.0") -> Context:
    return replace(traced(), budget=Budget.parse(target))


def points(network: nn.Module, count: int = 64) -> tuple[Tensor, Tensor]:
    """Inputs, and the classes that the network says they are."""
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(5))
    return x, network(x).argmax(dim=1)


def stacked(network: Stacked, target: str = "params=1.0") -> Context:
    x, labels = points(network)
    return texts.context(network.eval(), x[:2], target, search=SearchSplit(samples(x, labels, 2)))


def kept(decision: Decision) -> list[int]:
    (edit,) = decision.edits
    assert isinstance(edit, KeepLayers)
    found: list[int] = np.flatnonzero(edit.keep.unpack()).tolist()
    return found


def loss_without(network: Stacked, gone: Sequence[int]) -> float:
    """Loss where layers hand on what they are handed."""
    x, labels = points(network)
    with torch.no_grad():
        y = x
        for at, layer in enumerate(network.layers):
            y = y if at in gone else layer(y)
        return float(functional.cross_entropy(network.head(y), labels))


@pytest.mark.parametrize(
    ("order", "size", "keep", "stay"),
    [
        ("top", 4, 3, [0, 1, 2]),
        ("top", 4, 1, [0]),
        ("every-other", 5, 3, [0, 2, 4]),
        ("every-other", 6, 4, [0, 2, 3, 5]),  # 0, 1.67, 3.33, 5
        ("every-other", 4, 2, [0, 3]),
        ("every-other", 4, 1, [0]),
    ],
)
def test_layers_that_stay_by_place(order: str, size: int, keep: int, stay: list[int]) -> None:
    context = stacked(Stacked([3] * size))
    decision = Layers(order=order, keep=keep).decide(context)
    assert kept(decision) == stay
    assert decision.notes == (f"layers: {stay} of {size} stay (numbered from 0)",)


@pytest.mark.parametrize(("share", "count"), [(0.5, 2), (0.7, 3), (0.01, 1)])
def test_a_share_of_the_layers_is_rounded_and_at_least_one(share: float, count: int) -> None:
    method = Layers(share=share, order="top")
    assert method.sizes_itself
    assert kept(method.decide(given())) == list(range(count))


@pytest.mark.parametrize("useless", range(DEPTH))
def test_a_layer_that_adds_nothing_goes_first(useless: int) -> None:
    network = Stacked([16] * DEPTH, [useless])
    assert loss_without(network, [useless]) == loss_without(network, [])
    others = [loss_without(network, [at]) for at in range(DEPTH) if at != useless]
    assert min(others) > loss_without(network, [])  # so that it is the one to go
    decision = Layers(keep=DEPTH - 1).decide(stacked(network))
    assert kept(decision) == [at for at in range(DEPTH) if at != useless]


def test_layers_go_one_after_the_other_by_the_loss_without_them() -> None:
    network = Stacked([3] * 5)
    gone: list[int] = []
    for _ in range(3):
        rest = [at for at in range(5) if at not in gone]
        gone.append(min(rest, key=lambda at: loss_without(network, [*gone, at])))
    expected = [at for at in range(5) if at not in gone]
    assert kept(Layers(keep=2).decide(stacked(network))) == expected


def test_a_bert_layer_without_weights_of_its_own_goes_first_and_logits_stay() -> None:
    network = texts.bert_tiny(3).eval()
    layer = network.get_submodule("bert.encoder.layer.1")
    with torch.no_grad():  # a norm of what is normal already, plus zero
        for path in ("attention.output.dense", "output.dense"):
            for parameter in layer.get_submodule(path).parameters():
                parameter.zero_()
        # Sure of what it says, so that a change of any other layer costs loss.
        network.get_parameter("classifier.weight").mul_(100)
        for other in (0, 2):
            for name, value in network.get_submodule(
                f"bert.encoder.layer.{other}"
            ).named_parameters():
                if name.endswith("dense.weight"):
                    value.mul_(10)
    example = texts.inputs([(2, at, 39 - at, 3) for at in range(5, 20)])
    sure = texts.logits(network, example).argmax(dim=1)
    search = SearchSplit(texts.samples([(2, at, 39 - at, 3) for at in range(5, 20)], labels=sure))
    decision = Layers(keep=2).decide(texts.context(network, example, search=search))
    assert kept(decision) == [0, 2]
    smaller = cut(network, plan_of(network, decision.edits))
    wanted = texts.logits(network, example)
    assert torch.allclose(
        texts.logits(smaller, example), wanted, atol=1e-3 * float(wanted.abs().max())
    )


def test_what_comes_out_is_shorter_and_certified() -> None:
    context = given()
    plan = plan_of(context.network, Layers(keep=2, order="every-other").decide(context).edits)
    assert certify_rebuild(context.network, plan, {}, context.trace.example_inputs).passed
    smaller = cut(context.network, plan)
    assert smaller.config.num_hidden_layers == 2  # type: ignore[union-attr]
    assert count_params(smaller) == count_params(context.network) - 2 * BERT_LAYER


@pytest.mark.parametrize("order", ["top", "every-other", "importance"])
def test_a_budget_keeps_the_most_layers_that_it_allows(order: str) -> None:
    network = Stacked([3] * DEPTH)
    dense, layer = count_params(network), 2 * 4 * 3 + 3 + 4
    for limit, left in ((dense - layer, 3), (dense - layer - 1, 2), (dense - 3 * layer, 1)):
        context = stacked(network, f"params={limit}")
        assert len(kept(Layers(order=order).decide(context))) == left


def test_params_macs_and_bytes_of_a_bert() -> None:
    dense = count_params(bert())
    method = Layers(order="top")
    assert kept(method.decide(given(f"params={dense - 2 * BERT_LAYER}"))) == [0, 1]
    one = texts.inputs([texts.TRAIN[0]])
    macs = count_macs(bert(), one).macs - 2 * BERT_LAYER_MACS
    assert kept(method.decide(given(f"macs={macs}"))) == [0, 1]
    assert kept(method.decide(given(f"macs={macs - 1}"))) == [0]
    context = given("size=0.7")
    smaller = cut(bert(), plan_of(bert(), method.decide(context).edits))
    limit = context.budget.limit(Budget.parse("size=1").measure(context.trace, {}))
    assert file_size_bytes(smaller) <= limit < file_size_bytes(smaller) + 4 * BERT_LAYER


def test_a_target_that_is_met_edits_nothing() -> None:
    assert Layers().decide(given("params=1.0")).edits == ()
    assert Layers(keep=DEPTH).decide(given()).edits == ()


@pytest.mark.parametrize("order", ["top", "importance"])
def test_a_target_below_one_layer_says_what_is_left(order: str) -> None:
    dense = count_params(bert())
    least = dense - 3 * BERT_LAYER
    said = rf"params={least - 1} allows {least - 1}; with 1 of 4 layers {least} of {dense} are left"
    with pytest.raises(BudgetError, match=said) as caught:
        Layers(order=order).decide(given(f"params={least - 1}"))
    assert "\n" not in str(caught.value)


def test_a_number_of_layers_that_a_target_does_not_allow_is_refused() -> None:
    dense = count_params(bert())
    with pytest.raises(BudgetError, match=rf"with 3 of 4 layers {dense - BERT_LAYER} of {dense}"):
        Layers(keep=3, order="top").decide(given(f"params={dense - 2 * BERT_LAYER}"))


@pytest.mark.parametrize("order", ["top", "every-other", "importance"])
def test_layers_of_unlike_widths_keep_to_the_budget(order: str) -> None:
    network = Stacked([2, 2, 40, 2], [0, 1, 3])  # all loss is in the large one
    feed = {width: 2 * 4 * width + width + 4 for width in (2, 40)}
    limit = count_params(network) - 2 * feed[2]
    decision = Layers(order=order).decide(stacked(network, f"params={limit}"))
    smaller = cut(network, plan_of(network, decision.edits))
    assert count_params(smaller) <= limit
    if order == "importance":
        assert kept(decision) in ([0, 2], [1, 2], [2, 3])
    narrow = count_params(network) - 3 * feed[2]  # nothing but the wide one, or without it
    decision = Layers(order=order).decide(stacked(network, f"params={narrow}"))
    assert count_params(cut(network, plan_of(network, decision.edits))) <= narrow


def ignoring(context: Context, *ignore: str) -> Context:
    found = trace(context.network, context.trace.example_inputs, ignore=ignore)
    return replace(context, trace=found)


@pytest.mark.parametrize(
    ("keep", "stay"), [(None, [[0], [2]]), (1, [[0], [2]]), (2, [[0, 2], [2, 0]])]
)
def test_the_layers_that_matter_most_go_where_the_target_is_below_them(
    keep: int | None, stay: list[list[int]]
) -> None:
    """All loss is in the wide ones, which would stay to the last: the target takes narrow ones alone."""
    network = Stacked([2, 40, 2, 40], [0, 2])
    feed = {width: 2 * 4 * width + width + 4 for width in (2, 40)}
    limit = count_params(network) - 2 * feed[40] - (2 - (keep or 1)) * feed[2]
    decision = Layers(order="importance", keep=keep).decide(stacked(network, f"params={limit}"))
    assert kept(decision) in stay


@pytest.mark.parametrize(
    ("order", "ignore", "stay"),
    [
        ("top", "*.2.*", [0, 2]),
        ("every-other", "*.1.*", [0, 1]),  # of 0, 2 and 3 the first
        ("importance", "*.3.*", [2, 3]),
    ],
)
def test_layers_that_the_recipe_ignores_stay(order: str, ignore: str, stay: list[int]) -> None:
    context = ignoring(stacked(Stacked([3] * DEPTH, [0, 1, 3])), ignore)
    decision = Layers(order=order, keep=2).decide(context)
    assert kept(decision) == stay
    assert f"ignore names layers [{ignore[2]}]" in decision.notes[1]
    assert kept(Layers(order=order, keep=1).decide(context)) == [int(ignore[2])]


def test_fewer_layers_than_the_recipe_ignores_are_refused() -> None:
    context = ignoring(stacked(Stacked([3] * DEPTH)), "layers.0.wide", "layers.2.wide")
    with pytest.raises(InputError, match="keep 1 of 4 layers, and ignore names 2 of them"):
        Layers(order="top", keep=1).decide(context)
    dense = count_params(context.network)
    least = dense - 2 * (2 * 4 * 3 + 3 + 4)
    low = replace(context, budget=Budget.parse(f"params={least - 1}"))
    with pytest.raises(BudgetError, match=f"with 2 of 4 layers {least} of {dense} are left"):
        Layers(order="top").decide(low)


@pytest.mark.parametrize(
    ("ignore", "stay"),
    [("bert.embeddings.*", [0, 1]), ("bert.encoder.layer.2.output.dense", [0, 2])],
)
def test_a_layer_stays_of_which_something_is_ignored_and_no_other(
    ignore: str, stay: list[int]
) -> None:
    assert kept(Layers(order="top", keep=2).decide(ignoring(given(), ignore))) == stay


def test_a_stack_that_changes_the_shape_is_refused() -> None:
    network = Narrowing().eval()
    context = texts.context(network, torch.ones(2, 8))
    with pytest.raises(GraphError, match="'layers' change the shape") as caught:
        Layers(keep=1).decide(context)
    assert "\n" not in str(caught.value)


def test_swin_whose_stages_halve_the_image_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=16,
        patch_size=2,
        num_channels=1,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=2,
        num_labels=2,
    )
    network = texts.seeded(transformers.SwinForImageClassification, config)
    context = texts.context(network, torch.randn(2, 1, 16, 16))
    with pytest.raises(GraphError, match="change the shape"):
        Layers(keep=1).decide(context)


def test_a_network_without_a_stack_is_refused() -> None:
    context = texts.context(texts.textcnn().eval(), texts.inputs(texts.TRAIN))
    with pytest.raises(GraphError, match="TextCnn has none"):
        Layers(keep=1).decide(context)


def test_losses_are_of_the_search_split_and_modes_are_left_alone() -> None:
    network = Stacked([3] * 3)
    context = stacked(network)
    network.train()
    Layers(keep=2, images=16).decide(context)
    assert network.training
    with pytest.raises(InputError, match="search data"):
        Layers(keep=2).decide(texts.context(network.eval(), torch.ones(2, 4), search=None))


def test_losses_are_on_as_many_search_samples_as_asked_for_drawn_by_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, list[int]]] = []

    def spied(network: nn.Module, split: Split, **options: Any) -> Evaluation:
        seen.append((split.role, split.samples.indices.tolist()))
        return evaluate(network, split, **options)

    monkeypatch.setattr("prunus.prune.layers.evaluate", spied)
    context = stacked(Stacked([3] * 3))
    for seed in (0, 0, 1):
        Layers(keep=2, images=16).decide(replace(context, seed=seed))
    roles, drawn = zip(*seen, strict=True)
    assert set(roles) == {"search"}
    assert [len(one) for one in drawn] == [16] * 9  # without each of three layers
    assert drawn[0] == drawn[2] == drawn[3] == drawn[5]
    assert drawn[6] == drawn[8] != drawn[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": 0}, "option keep=0"),
        ({"share": 0.0}, r"option share=0\.0"),
        ({"share": 1.5}, r"option share=1\.5"),
        ({"keep": 1, "share": 0.5}, "keep=1 and share=0.5: give one"),
        ({"order": "bottom"}, "option order='bottom'"),
        ({"images": 0}, "option images=0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Layers(**options)


def test_more_layers_than_there_are_is_refused() -> None:
    assert not Layers().sizes_itself
    with pytest.raises(InputError, match="keep=5 .* there are 4 layers"):
        Layers(keep=5).decide(given())


@pytest.mark.parametrize("loss", [float("nan"), float("-inf")])
def test_a_loss_that_is_no_number_is_the_worst(
    loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without layer 0 the others are lost: it stays, though nothing is less than its NaN."""
    network, calls = Stacked((4, 4, 4), useless=(1,)), []

    def broken(*given: Any, **options: Any) -> Evaluation:
        calls.append(given)
        found = evaluate(*given, **options)
        return found.model_copy(update={"loss": loss}) if len(calls) == 1 else found

    monkeypatch.setattr("prunus.prune.layers.evaluate", broken)
    assert kept(Layers(keep=2).decide(stacked(network))) == [0, 2]
