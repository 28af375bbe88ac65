"""Layers of ``nn.TransformerEncoder``, which in evaluation hands their weights to a kernel of its own."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus.lowrank  # noqa: F401  # registers its methods
from prunus.artifact import load, save
from prunus.graph import certify, certify_rebuild, cut, plan_of, trace
from prunus.method import Budget, Context, make_method
from prunus.plan import Factorize
from prunus.records import Source
from prunus.zoo import load_source

pytest.importorskip("tensorly")

WIDTH, INNER, LAYERS, CLASSES = 16, 24, 2, 3
OWN = f"""
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer({WIDTH}, 4, {INNER}, batch_first=True, dropout=0.0)
        self.words = nn.Embedding(50, {WIDTH}, padding_idx=0)
        self.encoder = nn.TransformerEncoder(layer, {LAYERS})
        self.out = nn.Linear({WIDTH}, {CLASSES})

    def forward(self, input_ids):
        hidden = self.encoder(self.words(input_ids), src_key_padding_mask=input_ids == 0)
        return self.out(hidden[:, 0])
"""
FORWARD = [f"encoder.layers.{k}.{n}" for k in range(LAYERS) for n in ("linear1", "linear2")]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "own.py").write_text(OWN)
    return Source(model=f"{tmp_path / 'own.py'}:Net")


@pytest.fixture
def network(source: Source) -> nn.Module:
    made = load_source(source)
    for parameter in made.parameters():  # as in deployment: only so is the kernel called
        parameter.requires_grad_(False)
    return made


@pytest.fixture
def ids() -> Tensor:
    drawn = torch.randint(1, 50, (4, 9), generator=torch.Generator().manual_seed(0))
    drawn[1:, 5:] = 0
    return drawn


def context(network: nn.Module, ids: Tensor, target: str) -> Context:
    return Context(copy.deepcopy(network), trace(network, ids), Budget.parse(target), seed=0)


def fused(network: nn.Module) -> list[bool]:
    layers = [m for m in network.modules() if isinstance(m, nn.TransformerEncoderLayer)]
    return [bool(layer.activation_relu_or_gelu) for layer in layers]


def outputs(network: nn.Module, ids: Tensor) -> Tensor:
    """With gradients on, where torch never calls its kernel."""
    out: Tensor = network.eval()(ids)
    return out.detach()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("method", ["svd", "tucker", "stacked-tucker"])
def test_layers_of_an_encoder_are_factorized_and_run(
    method: str, network: nn.Module, ids: Tensor, source: Source, tmp_path: Path
) -> None:
    decision = make_method(method, {"rank": 0.5}).decide(context(network, ids, "params=1.0"))
    assert [e.module for e in decision.edits if isinstance(e, Factorize)] == FORWARD
    plan = plan_of(network, decision.edits)
    assert certify_rebuild(network, plan, decision.tensors, ids).passed
    smaller = cut(network, plan, decision.tensors).eval()
    assert fused(smaller) == [False, False]
    assert fused(network) == [True, True]
    with torch.no_grad():
        found = smaller(ids)
    torch.testing.assert_close(found, outputs(smaller, ids))
    save(tmp_path / "net", smaller, source=source, plans=[plan], example_inputs=ids)
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "net").eval()(ids), found)


def test_a_budget_counts_the_layers_of_an_encoder(network: nn.Module, ids: Tensor) -> None:
    """Of rank r each holds r (16 + 24): 40 r for 384 weights; all else stays."""
    whole = sum(p.numel() for p in network.parameters())
    rest = whole - len(FORWARD) * WIDTH * INNER
    target = rest + len(FORWARD) * 3 * (WIDTH + INNER)  # what rank 3 of each costs
    decision = make_method("svd").decide(context(network, ids, f"params={target}"))
    ranks = [e.ranks[0] for e in decision.edits if isinstance(e, Factorize)]
    assert sum(ranks) == 3 * len(FORWARD)
    smaller = cut(network, plan_of(network, decision.edits), decision.tensors)
    assert sum(p.numel() for p in smaller.parameters()) == target


def test_factors_of_full_rank_say_what_the_whole_encoder_says(
    network: nn.Module, ids: Tensor
) -> None:
    random = torch.Generator().manual_seed(1)
    for path in FORWARD:  # a matrix of rank 4, of which rank 8 loses nothing
        weight = network.get_parameter(f"{path}.weight")
        rows, columns = weight.shape
        left, right = (torch.randn(n, 4, generator=random) / 4 for n in (rows, columns))
        weight.copy_(left @ right.T)
    decision = make_method("svd", {"rank": 0.5}).decide(context(network, ids, "params=1.0"))
    assert len(decision.edits) == len(FORWARD)
    exact = cut(network, plan_of(network, decision.edits), decision.tensors).eval()
    with torch.no_grad():
        torch.testing.assert_close(exact(ids), outputs(network, ids), atol=1e-5, rtol=1e-4)


def test_only_a_layer_with_a_chain_in_it_leaves_the_kernel(network: nn.Module, ids: Tensor) -> None:
    options = {"rank": 0.5, "ignore": ["encoder.layers.1.*"]}
    decision = make_method("svd", options).decide(context(network, ids, "params=1.0"))
    smaller = cut(network, plan_of(network, decision.edits), decision.tensors).eval()
    assert fused(smaller) == [False, True]
    with torch.no_grad():
        torch.testing.assert_close(smaller(ids), outputs(smaller, ids))


def test_a_factorized_encoder_is_pruned_further(network: nn.Module, ids: Tensor) -> None:
    decision = make_method("svd", {"rank": 0.5}).decide(context(network, ids, "params=1.0"))
    thin = cut(network, plan_of(network, decision.edits), decision.tensors).eval()
    found = trace(thin, ids)
    ranks = {f"{path}.0" for path in FORWARD}
    assert ranks <= {group.name for group in found.cuttable}
    choice = {
        g.name: np.arange(g.units) < g.units - (g.round_to if g.units > g.min_units else 0)
        for g in found.cuttable
    }
    plan = found.plan(choice)
    assert certify(thin, found, plan, ids).passed
    left = cut(thin, plan)
    assert sum(p.numel() for p in left.parameters()) == found.params(choice)
    assert found.params(choice) < sum(p.numel() for p in thin.parameters())
