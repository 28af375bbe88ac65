"""What edits that replace modules leave as it was, share, and refuse."""

import copy

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import GraphError
from prunus.graph import cut, plan_of
from prunus.plan import Bits, Factorize, KeepLayers, KeepVocabulary, Rebuild


class Block(nn.Module):
    """Adds a linear layer of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.linear(x)
        return added


class Twice(nn.Sequential):
    """Runs its layers two times over."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            for layer in self:
                x = layer(x)
        return x


def linear(module: str = "0", **shared: str) -> Factorize:
    return Factorize.model_validate({"module": module, "form": "linear", "ranks": (2,), **shared})


FACTORS: dict[str, tuple[nn.Module, Factorize]] = {
    "linear": (nn.Linear(6, 4), linear()),
    "tucker-linear": (nn.Linear(6, 4), Factorize(module="0", form="tucker-linear", ranks=(3, 2))),
    "tucker-conv": (nn.Conv2d(6, 4, 3), Factorize(module="0", form="tucker-conv", ranks=(3, 2))),
    "embedding": (nn.Embedding(9, 6), Factorize(module="0", form="embedding", ranks=(2,))),
}


@pytest.mark.parametrize("name", list(FACTORS))
def test_no_random_number_is_drawn_and_the_network_is_as_it_was(name: str) -> None:
    layer, edit = FACTORS[name]
    network = nn.Sequential(copy.deepcopy(layer))
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    smaller = cut(network, plan_of(network, [edit]))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    weights = [p for n, p in smaller.named_parameters() if n.endswith("weight")]
    assert all(bool((w == 0).all()) for w in weights)  # until they are filled in


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_have_the_mode_precision_and_gradients_of_the_layer(
    training: bool, dtype: torch.dtype
) -> None:
    network = nn.Sequential(nn.Linear(6, 4)).to(dtype).train(training)
    network.get_parameter("0.weight").requires_grad_(False)
    chain = cut(network, plan_of(network, [linear()]))
    assert {m.training for m in chain.modules()} == {training}
    assert {p.dtype for p in chain.parameters()} == {dtype}
    grads = {n: p.requires_grad for n, p in chain.named_parameters()}
    assert grads == {"0.0.weight": False, "0.1.weight": False, "0.1.bias": True}


def test_shared_factors_are_one_parameter() -> None:
    network = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    edits = [linear("0"), linear("1", first="0"), linear("2", first="0", last="1")]
    smaller = cut(network, plan_of(network, edits))
    first = [smaller.get_parameter(f"{k}.0.weight") for k in range(3)]
    last = [smaller.get_parameter(f"{k}.1.weight") for k in range(3)]
    assert first[0] is first[1] is first[2]
    assert last[0] is not last[1] is last[2]
    # 2 x 6 once, 6 x 2 twice, three biases.
    assert sum(p.numel() for p in smaller.parameters()) == 12 + 2 * 12 + 18


REFUSED: dict[str, tuple[Rebuild, str]] = {
    "a linear layer as kernel": (
        Factorize(module="0", form="tucker-conv", ranks=(1, 1)),
        "'0' is a Linear, the form tucker-conv is for Conv2d",
    ),
    "groups": (Factorize(module="1", form="tucker-conv", ranks=(1, 1)), "'1' has groups=2"),
    "max_norm": (Factorize(module="2", form="embedding", ranks=(1,)), "renormalizes its rows"),
    "an owner without weights": (linear(first="3"), "'3', which has none; factorize '3' before it"),
    "an owner that is not there": (linear(last="8"), "has no module '8'"),
    "no table": (
        KeepVocabulary(tables=("3.weight",), keep=Bits.pack([True] * 5)),
        r"'3\.weight' is no table of 5 tokens",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_does_not_fit_is_refused_in_one_line(name: str) -> None:
    network = nn.Sequential(
        nn.Linear(6, 4),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Embedding(5, 3, max_norm=1.0),
        nn.Sequential(nn.ReLU()),
    )
    edit, told = REFUSED[name]
    with pytest.raises(GraphError, match=told) as caught:
        plan_of(network, [edit])
    assert "\n" not in str(caught.value)


def test_factors_of_unlike_shapes_are_not_shared() -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6))
    with pytest.raises(GraphError, match="of another shape; plan both anew"):
        plan_of(network, [linear("0"), linear("1", first="0")])


def test_layers_that_stay_are_the_same_and_a_stack_keeps_its_class_and_mode() -> None:
    network = nn.Sequential(Twice(Block(), Block(), Block())).eval()
    edit = KeepLayers(stack="0", keep=Bits.pack([True, False, True]))
    smaller = cut(network, plan_of(network, [edit]))
    assert isinstance(smaller.get_submodule("0"), Twice)
    assert not any(m.training for m in smaller.modules())
    x = torch.randn(3, 4)
    first, _, last = network.get_submodule("0").children()
    assert torch.equal(smaller(x), last(first(last(first(x)))))
