"""The certificate of edits that replace modules: holds for what a plan says, fails for all else."""

import random
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import CertificateError, GraphError
from prunus.graph import Inputs, certify_rebuild, cut, plan_of
from prunus.plan import Bits, Factorize, KeepLayers, KeepVocabulary, Plan, Rebuild
from prunus.seeding import host_states
from prunus.zoo import build
from tests.helpers import Wired

under_test = import_module("prunus.graph.certify_rebuild")  # the package's name is the function
BERT: dict[str, Any] = {"vocab_size": 40, "hidden": 16, "layers": 3, "max_length": 12, "seed": 2}
STACK = "bert.encoder.layer"
TABLE = "bert.embeddings.word_embeddings.weight"
VALUES = [f"{STACK}.{k}.attention.self.value" for k in range(3)]


def texts(samples: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 40, (samples, 8), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def values(network: nn.Module, edits: list[Rebuild]) -> tuple[Plan, dict[str, Tensor]]:
    """A plan, and random values of its factors."""
    plan = plan_of(network, edits)
    before = plan.source.tensors
    generator = torch.Generator().manual_seed(0)
    fresh = {n: s for n, s in plan.result.tensors.items() if n not in before and "weight" in n}
    return plan, {n: torch.randn(s, generator=generator) / 3 for n, s in fresh.items()}


def factors() -> tuple[nn.Module, Plan, dict[str, Tensor], Inputs]:
    """Of a BERT: shared factors, a chain of two, a table."""
    network = build("bert_tiny", **BERT).eval()
    edits: list[Rebuild] = [
        Factorize(
            module=path, form="tucker-linear", ranks=(5, 3), first=VALUES[0] * (k > 0), last=own
        )
        for k, (path, own) in enumerate(zip(VALUES, ["", VALUES[0], VALUES[1]], strict=True))
    ]
    edits.append(Factorize(module="bert.pooler.dense", form="linear", ranks=(4,)))
    edits.append(Factorize(module=TABLE.removesuffix(".weight"), form="embedding", ranks=(6,)))
    return network, *values(network, edits), texts()


def convolutions() -> tuple[nn.Module, Plan, dict[str, Tensor], Inputs]:
    """Of kernels that are not square, stride and padding among them."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), stride=2, padding=(1, 2), padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, dilation=2, bias=False),
        nn.Flatten(),
    ).eval()
    edits: list[Rebuild] = [
        Factorize(module="0", form="tucker-conv", ranks=(2, 4)),
        Factorize(module="2", form="tucker-conv", ranks=(5, 3)),
    ]
    x = torch.randn(3, 3, 14, 16, generator=torch.Generator().manual_seed(0))
    return network, *values(network, edits), x


MADE = {"bert": factors, "convolutions": convolutions}


@pytest.mark.parametrize("name", list(MADE))
def test_any_values_of_factors_are_certified_and_stand_for_their_product(name: str) -> None:
    network, plan, tensors, inputs = MADE[name]()
    found = certify_rebuild(network, plan, tensors, inputs)
    assert found.passed
    assert found.eval_difference is not None
    if found.eval_difference_float64 is None:
        assert found.eval_difference < 1e-5
    else:  # small columns of random factors, which float32 rounds
        assert found.eval_difference_float64 < 1e-10
    assert found.train_difference is None
    assert found.samples == (4 if name == "bert" else 3)


def test_a_network_that_draws_numbers_gets_the_same_twice_and_leaves_the_states_alone() -> None:
    network = Wired(lambda n, x: n.a(x) * (1 + random.random()), a=nn.Linear(6, 4)).eval()
    plan, tensors = values(network, [Factorize(module="a", form="linear", ranks=(2,))])
    before = host_states()
    assert certify_rebuild(network, plan, tensors, torch.ones(2, 6)).passed
    assert host_states() == before


@pytest.mark.parametrize("name", list(MADE))
def test_every_factor_must_be_given(name: str) -> None:
    network, plan, tensors, inputs = MADE[name]()
    for missing in tensors:
        others = {n: v for n, v in tensors.items() if n != missing}
        with pytest.raises(CertificateError, match=f"factor '{missing}' of .* has no value") as e:
            certify_rebuild(network, plan, others, inputs)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", list(MADE))
@pytest.mark.parametrize("change", ["scaled", "not a number"])
def test_a_network_with_one_altered_factor_is_refused(
    name: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, plan, tensors, inputs = MADE[name]()
    for altered in tensors:

        def spoiled(
            dense: nn.Module, plan: Plan, given: Mapping[str, Tensor], name: str = altered
        ) -> nn.Module:
            smaller = cut(dense, plan, given)
            with torch.no_grad():
                smaller.get_parameter(name).mul_(1.01 if change == "scaled" else float("nan"))
            return smaller

        monkeypatch.setattr(under_test, "cut", spoiled)
        with pytest.raises(CertificateError, match="disagree .* leave these out with ignore"):
            certify_rebuild(network, plan, tensors, inputs)


def test_a_factor_shared_with_the_wrong_layer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network, plan, tensors, inputs = factors()

    def crossed(dense: nn.Module, plan: Plan, given: Mapping[str, Tensor]) -> nn.Module:
        smaller = cut(dense, plan, given)
        one, two = (smaller.get_submodule(f"{path}.1") for path in VALUES[:2])
        one.weight, two.weight = two.weight, one.weight
        return smaller

    monkeypatch.setattr(under_test, "cut", crossed)
    with pytest.raises(CertificateError, match="disagree"):
        certify_rebuild(network, plan, tensors, inputs)


def test_the_network_and_the_random_state_are_left_alone() -> None:
    network, plan, tensors, inputs = factors()
    network.train()
    before = {n: v.clone() for n, v in network.state_dict().items()}
    state = torch.get_rng_state()
    certify_rebuild(network, plan, tensors, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in network.modules())
    assert not any(m._forward_hooks for m in network.modules())
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())


@pytest.mark.parametrize("flags", [(True, False, True), (False, True, False), (True, True, False)])
def test_dropped_layers_are_those_that_pass_on(
    flags: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build("bert_tiny", **BERT).eval()
    plan = plan_of(network, [KeepLayers(stack=STACK, keep=Bits.pack(flags))])
    assert certify_rebuild(network, plan, {}, texts()).passed

    def swapped(dense: nn.Module, plan: Plan, given: Mapping[str, Tensor]) -> nn.Module:
        smaller = cut(dense, plan, given)
        wrong = dense.get_submodule(STACK).get_submodule(str(flags.index(False)))
        smaller.get_submodule(STACK)._modules["0"] = wrong
        return smaller

    monkeypatch.setattr(under_test, "cut", swapped)
    with pytest.raises(CertificateError, match="disagree"):
        certify_rebuild(network, plan, {}, texts())


def test_layers_of_a_sequential_of_blocks_are_certified() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            added: Tensor = x + self.linear(x).tanh()
            return added

    network = nn.Sequential(nn.Sequential(*(Block() for _ in range(4))), nn.Linear(5, 2)).eval()
    keep = KeepLayers(stack="0", keep=Bits.pack([False, True, True, False]))
    assert certify_rebuild(network, plan_of(network, [keep]), {}, torch.randn(6, 5)).passed


@pytest.mark.parametrize("kept", [6, 21, 39])
def test_texts_of_kept_pieces_have_the_same_logits(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build("bert_tiny", **BERT).eval()
    order = torch.randperm(39, generator=torch.Generator().manual_seed(kept)) + 1
    flags = torch.zeros(40, dtype=torch.bool)
    flags[0] = True  # pads
    flags[order[: kept - 1]] = True
    plan = plan_of(network, [KeepVocabulary(tables=(TABLE,), keep=Bits.pack(flags.numpy()))])
    assert certify_rebuild(network, plan, {}, texts()).passed

    def shifted(dense: nn.Module, plan: Plan, given: Mapping[str, Tensor]) -> nn.Module:
        smaller = cut(dense, plan, given)
        with torch.no_grad():
            smaller.get_parameter(TABLE).copy_(smaller.get_parameter(TABLE).roll(1, 0))
        return smaller

    monkeypatch.setattr(under_test, "cut", shifted)
    with pytest.raises(CertificateError, match="disagree"):
        certify_rebuild(network, plan, {}, texts())


def test_a_vocabulary_without_texts_is_refused() -> None:
    network = nn.Sequential(nn.Embedding(6, 3)).eval()
    edit = KeepVocabulary(tables=("0.weight",), keep=Bits.pack([True] * 4 + [False] * 2))
    with pytest.raises(CertificateError, match="give inputs with 'input_ids'"):
        certify_rebuild(network, plan_of(network, [edit]), {}, torch.tensor([[0, 1]]))


def test_a_rebuilt_network_that_does_not_run_is_refused_in_one_line() -> None:
    class Tied(nn.Module):
        """An output layer with the weights of the table and a bias of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(6, 3)
            self.out = nn.Linear(3, 6)
            self.out.weight = self.words.weight

        def forward(self, input_ids: Tensor) -> Tensor:
            logits: Tensor = self.out(self.words(input_ids))
            return logits

    network = Tied().eval()
    keep = Bits.pack([True] * 4 + [False] * 2)
    plan = plan_of(network, [KeepVocabulary(tables=("words.weight",), keep=keep)])
    with pytest.raises(CertificateError, match="the rebuilt network does not run: ") as caught:
        certify_rebuild(network, plan, {}, {"input_ids": torch.tensor([[0, 1], [2, 3]])})
    assert "\n" not in str(caught.value)


def test_a_plan_that_both_factorizes_and_drops_layers_is_refused() -> None:
    network = build("bert_tiny", **BERT).eval()
    edits: list[Rebuild] = [
        Factorize(module=VALUES[2], form="linear", ranks=(2,)),
        KeepLayers(stack=STACK, keep=Bits.pack([True, False, True])),
    ]
    plan, tensors = values(network, edits)
    with pytest.raises(GraphError, match="make two plans, one after the other"):
        certify_rebuild(network, plan, tensors, texts())
