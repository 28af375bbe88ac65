"""Layers, vocabularies and single weights: what goes, and why."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import BudgetError, GraphError, InputError
from prunus.graph import cut, held_connections, plan_of, trace
from prunus.meter import measure_cost
from prunus.method import Budget, Context, make_method
from prunus.plan import KeepLayers, KeepVocabulary
from prunus.recipe import Repeat, compress
from prunus.zoo import build
from tests.contract.edit_cases import Case, context_of, inputs_of, network_of, words
from tests.recipe import texts

BERT = Case("layers", "bert_tiny")


def _decide(case: Case, network: nn.Module, **options: Any) -> Any:
    return make_method(case.method, options).decide(context_of(case, network))


@pytest.mark.parametrize("name", ["bert_tiny", "textcnn", "bilstm"])
def test_texts_of_kept_pieces_have_the_same_logits_by_their_new_numbers(name: str) -> None:
    case = Case("vocabulary", name)
    network = network_of(case)
    (edit,) = _decide(case, network, keep_top=70).edits
    assert isinstance(edit, KeepVocabulary)
    keep = torch.from_numpy(edit.keep.unpack())
    assert int(keep.sum()) >= 70
    smaller = cut(network, plan_of(network, [edit])).eval()
    kept = keep.nonzero().flatten()
    new = torch.randint(5, len(kept), (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(new)
    with torch.no_grad():
        one = network(input_ids=kept[new], attention_mask=mask)
        two = smaller(input_ids=new, attention_mask=mask)
    mine, theirs = (x if isinstance(x, Tensor) else x.logits for x in (one, two))
    assert torch.equal(mine, theirs)


def test_frequent_pieces_stay_and_those_that_any_text_is_spelled_with() -> None:
    case = Case("vocabulary", "textcnn")
    data, tokenizer = words(), words().tokenizer
    assert tokenizer is not None
    counts = torch.zeros(tokenizer.vocab_size, dtype=torch.int64)
    for split in (data.train, data.search):
        for inputs, _ in split.batches(64):
            assert isinstance(inputs, dict)
            counts += inputs["input_ids"].flatten().bincount(minlength=len(counts))
    network = network_of(case)
    (edit,) = _decide(case, network, min_count=30).edits
    keep = torch.from_numpy(edit.keep.unpack())
    always = torch.zeros_like(keep)
    always[list(tokenizer.fallback_pieces())] = True
    assert torch.equal(keep, always | (counts >= 30))
    with pytest.raises(BudgetError, match="rows of a table cost no MACs"):
        make_method("vocabulary").decide(
            context_of(Case("vocabulary", "textcnn", "macs=0.5"), network)
        )
    with pytest.raises(BudgetError, match="with special tokens and characters alone"):
        make_method("vocabulary").decide(
            context_of(Case("vocabulary", "textcnn", "params=0.05"), network)
        )
    with pytest.raises(GraphError, match="it is for networks that take input_ids"):
        make_method("vocabulary").decide(
            context_of(Case("vocabulary", "digits_cnn"), build("digits_cnn").eval())
        )


def _useless(network: nn.Module, layer: int) -> nn.Module:
    """The network with one layer that adds noise: without it the loss is least."""
    generator = torch.Generator().manual_seed(0)
    spoiled = copy.deepcopy(network)
    with torch.no_grad():
        block = spoiled.get_submodule(f"bert.encoder.layer.{layer}.output.dense")
        weight = block.get_parameter("weight")
        weight.copy_(3 * torch.randn(weight.shape, generator=generator))
    return spoiled


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    from prunus.train import TrainConfig, fit

    network = network_of(BERT)
    config = TrainConfig(
        epochs=4, lr=3e-3, batch_size=16, optimizer="adamw", precision="float32", augment=False
    )
    fit(network, words().train, words().search, config, seed=0)
    return network.eval()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_layer_that_does_harm_goes_first(trained: nn.Module, layer: int) -> None:
    (edit,) = _decide(BERT, _useless(trained, layer), keep=2).edits
    assert isinstance(edit, KeepLayers)
    assert (~edit.keep.unpack()).nonzero()[0].tolist() == [layer]


def test_layers_by_place_by_share_and_by_target(trained: nn.Module) -> None:
    def kept(**options: Any) -> list[int]:
        edits = _decide(BERT, trained, **options).edits
        return list(edits[0].keep.unpack().nonzero()[0]) if edits else [0, 1, 2]

    assert kept(keep=2, order="top") == [0, 1]
    assert kept(keep=2, order="every-other") == [0, 2]
    assert kept(share=0.34, order="top") == [0]
    assert kept(keep=3) == [0, 1, 2]
    dense = measure_cost(trained, inputs_of(BERT, 1)).macs
    one = (
        dense
        - measure_cost(
            cut(trained, plan_of(trained, _decide(BERT, trained, keep=2).edits)), inputs_of(BERT, 1)
        ).macs
    )
    # Room for one layer less and not for two: exactly one goes.
    target = f"macs={(dense - one) / dense + 0.001:.4f}"
    case = Case("layers", "bert_tiny", target)
    (edit,) = make_method("layers").decide(context_of(case, trained)).edits
    assert int(edit.keep.unpack().sum()) == 2  # type: ignore[union-attr]
    with pytest.raises(BudgetError, match="of 3"):
        make_method("layers").decide(context_of(Case("layers", "bert_tiny", "macs=0.01"), trained))
    with pytest.raises(InputError, match="keep=7.*there are 3 layers"):
        _decide(BERT, trained, keep=7)
    with pytest.raises(InputError, match=r"keep=2 and share=0\.5: give one"):
        make_method("layers", {"keep": 2, "share": 0.5})


def test_a_stack_that_changes_widths_is_refused() -> None:
    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.linear = nn.Linear(inputs, outputs)

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.linear(x).relu()
            return hidden

    network = nn.Sequential(
        nn.Flatten(), nn.Sequential(Block(64, 20), Block(20, 12)), nn.Linear(12, 10)
    ).eval()
    x = torch.randn(4, 1, 8, 8)
    given = Context(
        network=network,
        trace=trace(network, x),
        budget=Budget(quantity="params", value=1.0),
        seed=0,
        search=words().search,
    )
    with pytest.raises(GraphError, match="change the shape of what they are given"):
        make_method("layers", {"keep": 1}).decide(given)


def _three() -> tuple[nn.Module, Context]:
    """6 weights of size 1 to 6 in the first layer, 4 of size 10 in the second, 2 outputs."""
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        network[0].get_parameter("weight").copy_(torch.tensor([[1.0, -2, 3], [-4, 5, -6]]))
        network[2].get_parameter("weight").copy_(torch.tensor([[10.0, -11], [12, -13]]))
    given = Context(
        network=network.eval(),
        trace=trace(network, torch.randn(3, 3)),
        budget=Budget(quantity="params", value=1.0),
        seed=0,
    )
    return network, given


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({"sparsity": 0.5}, [0, 0, 0, 0, 0, 1], [1, 1, 1, 1]),  # the five smallest of ten
        ({"sparsity": 0.5, "scope": "layer"}, [0, 0, 0, 1, 1, 1], [0, 0, 1, 1]),
    ],
)
def test_the_smallest_weights_go_across_the_network_or_layer_by_layer(
    options: dict[str, Any], first: list[int], second: list[int]
) -> None:
    _, given = _three()
    decision = make_method("magnitude-weights", options).decide(given)
    kept = {edit.tensor: edit.keep.unpack().astype(int).tolist() for edit in decision.connections}
    assert kept.get("0.weight", [1] * 6) == first
    assert kept.get("2.weight", [1] * 4) == second
    assert "4.weight" not in kept  # it gives the output
    assert "zeros are computed and stored" in decision.notes[0]


def test_zeros_meet_no_target() -> None:
    _, given = _three()
    small = Budget.parse("macs=0.5")
    from dataclasses import replace

    with pytest.raises(InputError, match="no target is met by them; leave it out"):
        make_method("magnitude-weights", {"sparsity": 0.5}).decide(replace(given, budget=small))


def test_rounds_follow_the_cubic_schedule_and_zeros_stay_zero() -> None:
    steps = [
        Repeat.model_validate(
            {
                "times": 3,
                "steps": [
                    {"prune": {"method": "magnitude-weights", "options": {"sparsity": 0.8}}},
                    texts.training(1),
                ],
            }
        )
    ]
    done = compress(
        texts.NETWORK,
        steps,
        words(),
        train_first=texts.training(2).config(fresh=False),
        latency=None,
    )
    # Zhu and Gupta, eq. 1, from 0: 0.8 (1 - (1 - k/3)^3).
    wanted = [0.8 * (1 - (1 - k / 3) ** 3) for k in (1, 2, 3)]
    told = [
        float(n.split("(")[1].split("%")[0]) / 100 for n in done.record.notes if "are zero" in n
    ]
    assert told == pytest.approx(wanted, abs=0.001)
    held = held_connections(done.network)
    weights = dict(done.network.named_parameters())
    assert held
    assert all(bool((weights[name][~mask] == 0).all()) for name, mask in held.items())
    total = sum(mask.numel() for mask in held.values())
    assert sum(int((~mask).sum()) for mask in held.values()) / total == pytest.approx(
        0.8, abs=0.001
    )
    cost, dense = done.record.cost, done.record.dense_cost
    assert (cost.macs, cost.params) == (dense.macs, dense.params)
    assert cost.effective_macs < 0.5 * dense.macs
