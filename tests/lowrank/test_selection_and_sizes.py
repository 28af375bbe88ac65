"""Which layers are factorized, what their inputs weigh, how the budget is shared out."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.artifact import load, save
from prunus.data import TrainSplit, load_data
from prunus.errors import BudgetError, InputError
from prunus.graph import certify, certify_rebuild, cut, plan_of, trace
from prunus.lowrank.layers import Layer, select_layers
from prunus.lowrank.moments import input_moments
from prunus.lowrank.sizing import Sizing
from prunus.lowrank.tucker_blocks import StackBlock
from prunus.method import Budget, Context, make_method
from prunus.plan import BoolArray, Factorize
from prunus.progress import Silent
from prunus.records import Source
from prunus.zoo import build
from tests.prune import text_subjects

pytest.importorskip("tensorly")

BERT: dict[str, Any] = {"vocab_size": 60, "hidden": 32, "layers": 3, "max_length": 16, "seed": 1}
KINDS = (nn.Linear, nn.Conv2d, nn.Embedding)


class Mixed(nn.Module):
    """A layer of every sort that stays whole, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 16, max_norm=1.0)
        self.point = nn.Conv2d(1, 4, 1)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.kernel = nn.Conv2d(4, 4, 3)
        self.tied, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.tied.weight
        self.read, self.idle, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)[:, None]
        x = self.kernel(self.grouped(self.point(x))).mean((2, 3))
        x = self.other(self.tied(x))
        x = nn.functional.linear(x, self.read.weight, self.read.bias)
        logits: Tensor = self.last(self.read(x))
        return logits


IDS = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 1, 2, 3, 4]])


def test_layers_that_cannot_be_replaced_stay_whole_and_it_is_said_why() -> None:
    found = select_layers(Mixed().eval(), IDS, KINDS, ignore=(), classifier=False)
    assert [la.path for la in found.layers] == ["kernel"]
    told = " ".join(found.notes)
    for path, reason in (
        ("table", "it renormalizes its rows"),
        ("point", "it has a kernel of 1x1"),
        ("grouped", "it has groups=2"),
        ("tied", "it shares its weight"),
        ("other", "it shares its weight"),
        ("read", "another module reads its weight"),
        ("idle", "it does not run on the example"),
        ("last", "it is the last layer"),
    ):
        assert f"'{path}' stays whole: {reason}" in told
    # Six words of 16 values: 4 x 14 positions come in, and leave 2 x 12.
    assert (found.layers[0].inputs, found.layers[0].outputs) == (4 * 14, 2 * 12)


class Own(nn.Conv2d):
    """A user's, which may compute something else."""


class Kinds(nn.Module):
    """Convolutions of every kind, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(2, 4, 3, padding=1)
        self.own = Own(4, 4, 3, padding=1)
        self.back = nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.volume = nn.Conv3d(4, 4, 3, padding=1)
        self.line = nn.Conv1d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.volume(self.back(self.own(self.image(x)))[:, :, None])[:, :, 0]
        logits: Tensor = self.last(self.line(x.flatten(2)).mean(2))
        return logits


def test_of_convolutions_those_of_images_alone_are_factorized_and_it_is_said() -> None:
    network, x = Kinds().eval(), torch.randn(2, 2, 5, 5)

    def noted(kinds: Any, ignore: Sequence[str] = (), held: Sequence[str] = ()) -> list[str]:
        found = select_layers(network, x, kinds, ignore=ignore, held=held, classifier=False)
        why = "stays whole: only 2-D convolutions are factorized (nn.Conv2d)"
        return [
            path for path in ("own", "back", "volume", "line") if f"'{path}' {why}" in found.notes
        ]

    assert noted((nn.Conv2d, nn.Linear)) == ["own", "back", "volume", "line"]
    assert noted((nn.Conv2d, nn.Linear), ignore=["*a*e*", "l*"]) == ["own", "back", "volume"]
    assert noted((nn.Conv2d, nn.Linear), held=["back"]) == ["own", "volume", "line"]
    assert noted((nn.Linear,)) == []
    decision = make_method("tucker", {"rank": 0.5}).decide(context(network, x, "params=1.0"))
    assert [edit.module for edit in decision.edits] == ["image"]  # type: ignore[union-attr]
    assert any("'line' stays whole" in note for note in decision.notes)


class Bound(nn.Module):
    """A table that the network itself reads under another name, and two layers with one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 32)
        self.rows = self.table.weight
        self.free, self.one, self.two = (nn.Linear(32, 32) for _ in range(3))
        self.two.bias = self.one.bias
        self.last = nn.Linear(60, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.relu(self.free(self.table(ids).mean(1)))
        logits: Tensor = self.last(self.two(torch.relu(self.one(x))) @ self.rows.T)
        return logits


def test_layers_stay_whole_whose_tensors_others_hold_under_any_name() -> None:
    network = Bound().eval()
    found = select_layers(network, IDS, KINDS, ignore=(), classifier=False)
    assert [la.path for la in found.layers] == ["free"]
    told = " ".join(found.notes)
    for path in ("table", "one", "two"):
        assert f"'{path}' stays whole: it shares its weight or bias" in told
    options = {"rank": 0.25, "embeddings": True}
    decision = make_method("svd", options).decide(context(network, IDS, "params=1.0"))
    plan = plan_of(network, decision.edits)
    assert certify_rebuild(network, plan, decision.tensors, IDS).passed
    # 32 x 32 become 8 x 32 twice, and nothing else changes.
    smaller = cut(network, plan, decision.tensors)
    sizes = [sum(p.numel() for p in n.parameters()) for n in (network, smaller)]
    assert sizes[0] - sizes[1] == 32 * 32 - 2 * 8 * 32


def test_the_last_layer_is_factorized_where_that_is_asked_for_and_globs_hold_layers_back() -> None:
    network = Mixed().eval()
    asked = select_layers(network, IDS, KINDS, ignore=("ker*",), classifier=True)
    assert [la.path for la in asked.layers] == ["last"]
    with pytest.raises(InputError, match="ignore: 'nothing' matches no layer") as caught:
        select_layers(network, IDS, KINDS, ignore=("nothing",), classifier=True)
    assert "\n" not in str(caught.value)


def context(network: nn.Module, inputs: Any, target: str, ignore: Sequence[str] = ()) -> Context:
    found = trace(network, inputs, verify=False, ignore=ignore)
    return Context(copy.deepcopy(network), found, Budget.parse(target), seed=0)


@pytest.mark.parametrize("method", ["svd", "stacked-tucker"])
def test_layers_that_the_recipe_ignores_stay_whole(method: str) -> None:
    network = build("bert_tiny", **BERT).eval()
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    given = context(network, inputs, "params=1.0", ["bert.encoder.layer.0.*"])
    decision = make_method(method, {"rank": 0.2}).decide(given)
    done = {edit.module for edit in decision.edits if isinstance(edit, Factorize)}
    held = {path for path in done if path.startswith("bert.encoder.layer.0.")}
    assert not held
    inner = ("attention.self.query", "attention.self.key", "attention.self.value")
    outer = ("attention.output.dense", "intermediate.dense", "output.dense")
    wanted = {f"bert.encoder.layer.{k}.{n}" for k in (1, 2) for n in (*inner, *outer)}
    assert wanted == {path for path in done if path.startswith("bert.encoder")}


def test_convolutions_that_the_recipe_ignores_stay_whole() -> None:
    network, image = build("digits_cnn").eval(), torch.zeros(2, 1, 8, 8)
    for ignore in ([], ["conv2"]):
        given = context(network, image, "params=1.0", ignore)
        edits = make_method("tucker", {"rank": 0.3}).decide(given).edits
        done = {edit.module for edit in edits if isinstance(edit, Factorize)}
        assert ("conv2" in done) == (not ignore)
        assert done


def test_a_network_without_a_layer_to_factorize_is_refused_with_a_way_out() -> None:
    network = build("textcnn", vocab_size=40).eval()
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with pytest.raises(BudgetError, match="'svd' finds no layer to factorize: let it factorize"):
        make_method("svd").decide(context(network, inputs, "params=0.5"))


@pytest.mark.parametrize("option", ["rank", "energy"])
def test_a_rank_or_energy_above_the_budget_is_refused(option: str) -> None:
    network = build("bert_tiny", **BERT).eval()
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with pytest.raises(BudgetError, match=f"params=0.3 allows .*{option}=0.6 of method 'svd'") as e:
        make_method("svd", {option: 0.6}).decide(context(network, inputs, "params=0.3"))
    assert "\n" not in str(e.value)


def test_calibration_without_training_data_is_refused() -> None:
    network = build("bert_tiny", **BERT).eval()
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with pytest.raises(InputError, match="train"):
        make_method("svd", {"rank": 0.3, "calibration": 8}).decide(
            context(network, inputs, "params=1.0")
        )


def test_moments_count_pieces_and_leave_padding_out() -> None:
    """Of an embedding and the linear layer behind it: pieces 1, 2, 2 and twice padding."""
    network = nn.Sequential()
    network.add_module("words", nn.Embedding(4, 2))
    network.add_module("first", nn.Linear(2, 3))
    with torch.no_grad():
        network.get_parameter("words.weight").copy_(
            torch.tensor([[9.0, 9.0], [1.0, 0.0], [1.0, 2.0], [7.0, 7.0]])
        )

    class Texts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            del attention_mask
            logits: Tensor = self.net(input_ids).mean(1)
            return logits

    owner = Texts()
    layers = [Layer(f"net.{n}", owner.get_submodule(f"net.{n}"), 3, 3) for n in ("words", "first")]
    split = TrainSplit(text_subjects.samples([[1, 2], [2]]))
    found = input_moments(owner, layers, split, batch_size=2, device="cpu", progress=Silent())
    torch.testing.assert_close(found["net.words"], torch.tensor([0, 1 / 3, 2 / 3, 0]).double())
    # Rows (1, 0), (1, 2), (1, 2): X^T X / 3.
    torch.testing.assert_close(found["net.first"], torch.tensor([[3.0, 4.0], [4.0, 8.0]]) / 3)


def test_moments_of_a_convolution_are_over_channels() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3)).eval()
    split = load_data("digits").train.subset(5, 0)
    layers = [Layer("0", network[0], 1, 1)]
    found = input_moments(network, layers, split, batch_size=2, device="cpu", progress=Silent())
    images = torch.cat([x for x, _ in split.batches(5) if isinstance(x, Tensor)])
    torch.testing.assert_close(found["0"], images.square().mean().reshape(1, 1))


def test_a_rank_that_waits_for_its_other_mode_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two cores hold at most twice r_out directions: r_in waits until r_out has grown."""
    network = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).eval()
    layers = tuple(Layer(str(k), m, 1, 1) for k, m in enumerate(network))
    found = trace(network, torch.randn(2, 16), verify=False)
    # Ranks (r, q) cost 16 (r + q) + 2 r q + 32 biases. From (2, 1) only q can grow, then either.
    budget = Budget(quantity="params", value=170)
    monkeypatch.setattr(
        StackBlock, "at_energy", lambda block, energy: (2, 1) if energy < 1 else block.full
    )
    sizes = Sizing([StackBlock(layers, {})], found, budget, "it")
    ranks = sizes.by_options(make_method("svd").options)  # type: ignore[attr-defined]
    (got,) = ranks
    assert got is not None
    assert sum(got) == 7  # 168 at (3, 4) and (4, 3), and 144 at (2, 4), where q alone would end
    assert sizes.cost(ranks) == 16 * 7 + 2 * 12 + 32


@pytest.mark.parametrize("method", ["svd", "stacked-tucker"])
def test_shared_factors_are_stored_once_and_the_size_of_the_file_is_known(
    method: str, tmp_path: Any
) -> None:
    network = build("bert_tiny", **BERT).eval()
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    decision = make_method(method, {"rank": 0.4}).decide(context(network, inputs, "params=1.0"))
    plan = plan_of(network, decision.edits)
    smaller = cut(network, plan, decision.tensors).eval()
    source = Source(model="bert_tiny", arguments=BERT)
    save(tmp_path / "net", smaller, source=source, plans=[plan], example_inputs=inputs)
    stored = tmp_path / "net" / "model.safetensors"
    head = int.from_bytes(stored.read_bytes()[:8], "little")
    tensors = {**dict(smaller.named_parameters()), **dict(smaller.named_buffers())}
    kept = {n: v for n, v in tensors.items() if n in smaller.state_dict()}
    values = sum(v.numel() * v.element_size() for v in kept.values())
    assert stored.stat().st_size == 8 + head + values
    if method == "stacked-tucker":  # two for all 12 square layers together
        squares = [n for n in kept if ".attention." in n and n.endswith((".0.weight", ".2.weight"))]
        assert len(squares) == 2
    again = load(tmp_path / "net")
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in smaller.state_dict().items())
    pairs = [n for n, _ in smaller.named_parameters(remove_duplicate=False)]
    assert len({id(again.get_parameter(n)) for n in pairs}) == len(
        {id(smaller.get_parameter(n)) for n in pairs}
    )


@pytest.mark.parametrize(("name", "method"), [("bert", "stacked-tucker"), ("digits", "tucker")])
def test_sizes_of_files_are_foretold_and_never_too_small(
    name: str, method: str, tmp_path: Any
) -> None:
    arguments = BERT if name == "bert" else {}
    model = "bert_tiny" if name == "bert" else "digits_cnn"
    network = build(model, **arguments).eval()
    inputs: Any = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    inputs = inputs if name == "bert" else torch.randn(2, 1, 8, 8)
    given = context(network, inputs, "size=0.6")
    decision = make_method(method).decide(given)
    plan = plan_of(network, decision.edits)
    smaller = cut(network, plan, decision.tensors)
    save(tmp_path / "a", network, source=Source(model=model, arguments=arguments))
    save(tmp_path / "b", smaller, source=Source(model=model, arguments=arguments), plans=[plan])
    dense, left = ((tmp_path / f / "model.safetensors").stat().st_size for f in "ab")
    assert 0.97 * 0.6 * dense < left <= 0.6 * dense
    assert dense <= given.budget.measure(given.trace, {}) <= 1.01 * dense


CUTS = [("bert_tiny", "svd"), ("bert_tiny", "stacked-tucker"), ("digits_cnn", "tucker")]


@pytest.mark.parametrize(("name", "method"), CUTS)
def test_what_is_factorized_is_pruned_further(name: str, method: str) -> None:
    """Its trace finds groups, shared factors among them, and a cut of all is certified."""
    network = build(name, **(BERT if name == "bert_tiny" else {})).eval()
    inputs: Any = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    inputs = inputs if name == "bert_tiny" else torch.randn(3, 1, 8, 8)
    decision = make_method(method, {"rank": 0.5}).decide(context(network, inputs, "params=1.0"))
    smaller = cut(network, plan_of(network, decision.edits), decision.tensors).eval()
    found = trace(smaller, inputs)
    ranks = {f"{edit.module}.0": min(edit.ranks) for edit in decision.edits}  # type: ignore[union-attr]
    inner = [group for group in found.cuttable if group.name in ranks]
    assert inner  # the units between two factors: one less is one rank less
    assert all(group.units >= ranks[group.name] for group in inner)
    choice: dict[str, BoolArray] = {}
    for group in found.cuttable:
        keep = np.ones(group.units, dtype=bool)
        if group.units > group.min_units and group.round_to == 1:
            keep[-1] = False
        choice[group.name] = keep
    plan = found.plan(choice)
    assert certify(smaller, found, plan, inputs).passed
    left = sum(p.numel() for p in cut(smaller, plan).parameters())
    assert left == found.params(choice) < sum(p.numel() for p in smaller.parameters())
