"""Edits that replace modules or tables, one by one, and what they refuse."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.errors import GraphError
from prunus.graph import cut, plan_of
from prunus.graph.stacks import layer_stacks, main_stack
from prunus.plan import Bits, Factorize, KeepLayers, KeepVocabulary, Plan
from prunus.zoo import build


def bert() -> nn.Module:
    return build("bert_tiny", vocab_size=30, hidden=16, layers=3, max_length=12).eval()


def keep(size: int, kept: list[int]) -> Bits:
    return Bits.pack(np.isin(np.arange(size), kept))


@pytest.mark.parametrize(
    ("layer", "edit", "shapes"),
    [
        (nn.Linear(6, 4), {"form": "linear", "ranks": (2,)}, [(2, 6), (4, 2)]),
        (nn.Linear(6, 4), {"form": "tucker-linear", "ranks": (3, 2)}, [(3, 6), (2, 3), (4, 2)]),
        (
            nn.Conv2d(6, 4, 3, stride=2, padding=1),
            {"form": "tucker-conv", "ranks": (3, 2)},
            [(3, 6, 1, 1), (2, 3, 3, 3), (4, 2, 1, 1)],
        ),
        (nn.Embedding(9, 6), {"form": "embedding", "ranks": (2,)}, [(9, 2), (6, 2)]),
    ],
)
def test_a_layer_becomes_a_chain_with_its_bias(
    layer: nn.Module, edit: dict[str, Any], shapes: list[tuple[int, ...]]
) -> None:
    network = nn.Sequential(layer)
    plan = plan_of(network, [Factorize(module="0", **edit)])
    again = Plan.model_validate_json(plan.model_dump_json())
    tensors = {f"0.{i}.weight": torch.full(shape, 0.5) for i, shape in enumerate(shapes)}
    small = cut(network, again, tensors)
    weights = [part.get_parameter("weight") for part in small.get_submodule("0").children()]
    assert [tuple(w.shape) for w in weights] == shapes
    assert all(bool((w == 0.5).all()) for w in weights)
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor):
        last = list(small.get_submodule("0").children())[-1]
        assert torch.equal(last.get_parameter("bias"), bias)
    x = torch.randint(9, (2, 5)) if isinstance(layer, nn.Embedding) else torch.randn(2, 6, 6, 6)
    assert small(x).shape == network(x).shape


def test_layers_are_passed_by_and_the_config_knows() -> None:
    network = bert()
    edit = KeepLayers(stack="bert.encoder.layer", keep=keep(3, [0, 2]))
    small = cut(network, plan_of(network, [edit]))
    before, after = (n.get_submodule("bert.encoder.layer") for n in (network, small))
    own = list(before.children())[2].state_dict()
    assert all(torch.equal(v, own[k]) for k, v in list(after.children())[1].state_dict().items())
    assert small.config.num_hidden_layers == 2  # type: ignore[union-attr]
    assert small.get_submodule("bert").config is small.config
    assert network.config.num_hidden_layers == 3  # type: ignore[union-attr]


def test_padding_and_special_pieces_are_renumbered_wherever_they_are_kept() -> None:
    network = build("textcnn", vocab_size=30, pad_id=5, embedding=6, hidden=4).eval()
    edit = KeepVocabulary(tables=("embedding.weight",), keep=keep(30, [2, 3, 5, 8, 9, 11]))
    small = cut(network, plan_of(network, [edit])).eval()
    assert small.pad_id == 2
    assert small.get_submodule("embedding").padding_idx == 2
    old, new = torch.tensor([[8, 11, 9, 5, 5]]), torch.tensor([[3, 5, 4, 2, 2]])
    with torch.no_grad():
        assert torch.equal(network(input_ids=old), small(input_ids=new))
    model = bert()
    table = "bert.embeddings.word_embeddings.weight"
    model.config.bos_token_id = 7  # type: ignore[union-attr]
    trimmed = cut(
        model, plan_of(model, [KeepVocabulary(tables=(table,), keep=keep(30, [0, 3, 7, 9]))])
    )
    config = trimmed.config
    assert (config.vocab_size, config.pad_token_id, config.bos_token_id) == (4, 0, 2)  # type: ignore[union-attr]
    with pytest.raises(GraphError, match="the plan drops piece 0, which pads texts"):
        plan_of(model, [KeepVocabulary(tables=(table,), keep=keep(30, [3, 7]))])


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (Factorize(module="bert.nowhere", form="linear", ranks=(2,)), "no module 'bert.nowhere'"),
        (
            Factorize(module="bert.embeddings.word_embeddings", form="linear", ranks=(2,)),
            "is a Embedding, the form linear is for Linear",
        ),
        (
            Factorize(module="bert.pooler.dense", form="linear", ranks=(2,), first="classifier"),
            "shares a factor of 'classifier', which has none",
        ),
        (KeepLayers(stack="bert.encoder.layer", keep=keep(5, [0])), "no stack of 5 layers"),
        (KeepVocabulary(tables=("classifier.weight",), keep=keep(9, [0])), "no table of 9 tokens"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(edit: Any, said: str) -> None:
    with pytest.raises(GraphError, match=said) as caught:
        plan_of(bert(), [edit])
    assert "\n" not in str(caught.value)


def test_the_stack_of_a_transformer_is_found_and_rows_of_plain_layers_are_none() -> None:
    assert main_stack(bert(), "a test") == "bert.encoder.layer"
    assert layer_stacks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == ()
    with pytest.raises(GraphError, match="a test needs a stack of like layers"):
        main_stack(nn.Linear(2, 2), "a test")
