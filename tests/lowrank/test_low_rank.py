"""Factors of low rank: exact at full rank, nearer with every rank, shared where the plan says so."""

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus.lowrank  # noqa: F401  registers the methods
from prunus.data import DataSplits, TrainSplit, load_data
from prunus.errors import BudgetError, CertificateError, InputError
from prunus.graph import Inputs, certify_rebuild, cut, plan_of, trace
from prunus.lowrank.layers import Layer
from prunus.lowrank.moments import Moments, input_moments
from prunus.lowrank.options import LowRankOptions
from prunus.meter import measure_cost
from prunus.method import Budget, Context, Decision, make_method
from prunus.plan import Factorize, Plan
from prunus.zoo import build

SIZES: dict[str, Any] = {"vocab_size": 60, "hidden": 32, "layers": 3, "max_length": 16, "seed": 1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "svd": ("bert_tiny", {}),
    "stacked-tucker": ("bert_tiny", {}),
    "tucker": ("digits_cnn", {}),
}


def network_of(name: str) -> nn.Module:
    return build(name, **(SIZES if name == "bert_tiny" else {})).eval()


def inputs_of(name: str, samples: int = 6) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    if name != "bert_tiny":
        return torch.randn(samples, 1, 8, 8, generator=generator)
    ids = torch.randint(5, 60, (samples, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:2, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def decide(method: str, target: str = "params=1.0", **options: Any) -> tuple[nn.Module, Decision]:
    name = CASES[method][0]
    network = network_of(name)
    given = Context(
        network=copy.deepcopy(network),
        trace=trace(network, inputs_of(name)),
        budget=Budget.parse(target),
        seed=0,
        train=digits().train if name == "digits_cnn" else None,
    )
    return network, make_method(method, options).decide(given)


@cache
def digits() -> DataSplits:
    return load_data("digits")


def outputs(network: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        found = network(**inputs) if isinstance(inputs, dict) else network(inputs)
    return found if isinstance(found, Tensor) else found.logits


def rebuilt(network: nn.Module, decision: Decision) -> nn.Module:
    return cut(network, plan_of(network, decision.edits), decision.tensors).eval()


@pytest.mark.parametrize("method", list(CASES))
def test_nearly_all_energy_is_nearly_exact_and_little_is_not(method: str) -> None:
    inputs = inputs_of(CASES[method][0])
    dense = network_of(CASES[method][0])
    wanted = outputs(dense, inputs)
    errors = []
    for energy in (0.3, 0.999999):
        network, decision = decide(method, energy=energy)
        errors.append(float((outputs(rebuilt(network, decision), inputs) - wanted).abs().max()))
    assert errors[1] < 0.02 * float(wanted.abs().max()) < errors[0]


@pytest.mark.parametrize("energy", [0.3, 0.5, 0.8])
def test_of_every_matrix_as_much_energy_is_kept_as_is_asked_for(energy: float) -> None:
    network, decision = decide("svd", energy=energy)
    assert len(decision.edits) > 5
    for edit in decision.edits:
        assert isinstance(edit, Factorize)
        dense = network.get_submodule(edit.module).get_parameter("weight").detach().double()
        first, last = (decision.tensors[f"{edit.module}.{k}.weight"].double() for k in (0, 1))
        values = torch.linalg.svdvals(dense).square()
        rank = edit.ranks[0]
        # Eckart and Young: what is lost is the tail of the squared singular values.
        lost = float((dense - last @ first).square().sum())
        assert lost == pytest.approx(float(values[rank:].sum()), rel=1e-3)
        assert values[:rank].sum() >= energy * values.sum() * (1 - 1e-6)
        assert rank == 1 or values[: rank - 1].sum() < energy * values.sum()


@pytest.mark.parametrize("energy", [0.5, 0.8])
def test_of_every_kernel_as_much_energy_is_kept_as_is_asked_for(energy: float) -> None:
    network, decision = decide("tucker", energy=energy)
    kernels = [e for e in decision.edits if isinstance(e, Factorize) and e.form == "tucker-conv"]
    assert len(kernels) > 1
    for edit in kernels:
        dense = network.get_submodule(edit.module).get_parameter("weight").detach().double()
        first, core, last = (
            decision.tensors[f"{edit.module}.{k}.weight"].double() for k in range(3)
        )
        product = torch.einsum("or,rqhw,qi->oihw", last[..., 0, 0], core, first[..., 0, 0])
        lost = float((dense - product).square().sum() / dense.square().sum())
        assert 1 - lost >= energy - 1e-6


@pytest.mark.parametrize("method", list(CASES))
@pytest.mark.parametrize("target", ["params=0.6", "macs=0.6", "size=0.7"])
def test_a_budget_is_met_within_one_percent_and_never_exceeded(method: str, target: str) -> None:
    network, decision = decide(method, target)
    budget = Budget.parse(target)
    one = inputs_of(CASES[method][0], 1)
    dense = budget.read(measure_cost(network, one))
    left = budget.read(measure_cost(rebuilt(network, decision), one))
    assert left <= budget.limit(dense)
    assert left >= 0.94 * budget.limit(dense)  # one rank of the widest layer is 2 % here
    name = CASES[method][0]
    smaller = rebuilt(network, decision)
    predicted = trace(smaller, inputs_of(name, 2), verify=False).cost({})
    assert predicted.params == measure_cost(smaller, one).params


@pytest.mark.parametrize("method", list(CASES))
def test_an_impossible_budget_says_what_is_reachable(method: str) -> None:
    with pytest.raises(
        BudgetError, match=r"params=0\.001 allows \d+, but at least \d+ remain"
    ) as caught:
        decide(method, "params=0.001")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", list(CASES))
def test_the_certificate_holds_for_the_factors_of_the_decision_and_for_no_less(method: str) -> None:
    network, decision = decide(method, rank=0.4)
    plan = Plan.model_validate_json(plan_of(network, decision.edits).model_dump_json())
    inputs = inputs_of(CASES[method][0])
    assert certify_rebuild(network, plan, decision.tensors, inputs).passed
    first = next(iter(decision.tensors))
    fewer = {name: value for name, value in decision.tensors.items() if name != first}
    with pytest.raises(CertificateError, match=f"factor '{first}' of .* has no value"):
        certify_rebuild(network, plan, fewer, inputs)


def test_layers_of_one_shape_share_their_outer_factors() -> None:
    network, decision = decide("stacked-tucker", rank=0.5)
    smaller = rebuilt(network, decision)
    layers = [f"bert.encoder.layer.{k}.attention.self.query" for k in range(3)]
    chains = [list(smaller.get_submodule(path).children()) for path in layers]
    for chain in chains[1:]:
        assert chain[0].weight is chains[0][0].weight
        assert chain[2].weight is chains[0][2].weight
        assert chain[1].weight is not chains[0][1].weight
    # By hand, of 32 wide layers at rank 16: 12 cores, one pair of factors; 128 inner twice.
    square = 12 * 16 * 16 + 2 * 16 * 32
    oblong = 3 * 16 * 16 + 16 * (32 + 128)
    pooler = 32 * 32  # at rank 16 its two factors would be as large as it is
    factors = sum(
        p.numel()
        for n, p in smaller.named_parameters()
        if (".encoder." in n or "pooler" in n) and p.ndim == 2
    )
    assert factors == square + 2 * oblong + pooler


def test_a_matrix_of_rank_one_is_exact_at_rank_one() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(12, 10), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.last(self.first(x).relu())
            return hidden

    network = Net().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        row, column = torch.randn(12, generator=generator), torch.randn(10, generator=generator)
        network.first.weight.copy_(column[:, None] * row)
    x = torch.randn(5, 12, generator=generator)
    given = Context(
        network=network,
        trace=trace(network, x),
        budget=Budget(quantity="params", value=1.0),
        seed=0,
    )
    decision = make_method("svd", {"energy": 0.99}).decide(given)
    assert [(e.module, e.ranks) for e in decision.edits] == [("first", (1,))]  # type: ignore[union-attr]
    smaller = rebuilt(network, decision)
    assert torch.allclose(outputs(smaller, x), outputs(network, x), atol=1e-5)


def test_what_is_measured_on_inputs_is_nearer_on_these_inputs() -> None:
    """Inputs of the second layer of digits lie in few directions: weighting by them must help."""
    split = digits().train
    batch = next(iter(split.batches(128)))[0]
    assert isinstance(batch, Tensor)
    network = network_of("digits_cnn")
    plain = make_method("tucker", {"rank": 0.5}).decide(_context(network))
    seen = make_method("tucker", {"rank": 0.5, "calibration": 128}).decide(_context(network))
    wanted = outputs(network, batch)
    distance = {
        name: float((outputs(rebuilt(network, found), batch) - wanted).square().mean())
        for name, found in (("plain", plain), ("seen", seen))
    }
    assert distance["seen"] < 0.99 * distance["plain"]  # equal: what was measured was not used


def _context(network: nn.Module) -> Context:
    return Context(
        network=copy.deepcopy(network),
        trace=trace(network, inputs_of("digits_cnn")),
        budget=Budget(quantity="params", value=1.0),
        seed=0,
        train=digits().train,
    )


def test_calibration_is_on_as_many_samples_as_asked_for_drawn_by_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[list[int]] = []

    def spied(
        network: nn.Module, layers: list[Layer], split: TrainSplit, **options: Any
    ) -> Moments:
        drawn.append(split.samples.indices.tolist())
        assert options["batch_size"] == 7
        return input_moments(network, layers, split, **options)

    monkeypatch.setattr("prunus.lowrank.base.input_moments", spied)
    method = make_method("tucker", {"rank": 0.5, "calibration": 20, "batch_size": 7})
    for seed in (0, 0, 1):
        method.decide(replace(_context(network_of("digits_cnn")), seed=seed))
    assert [len(one) for one in drawn] == [20, 20, 20]
    assert drawn[0] == drawn[1] != drawn[2]


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match=r"rank=0\.5 and energy=0\.9"):
        make_method("svd", {"rank": 0.5, "energy": 0.9})
    with pytest.raises(InputError, match="no option 'ranks'"):
        make_method("svd", {"ranks": 0.5})


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("fc", ("fc",)),
        (0, ("0",)),
        ([0, "layer*"], ("0", "layer*")),
        (["*3"], ("*3",)),
        ((), ()),
    ],
)
def test_globs_are_read_as_a_command_line_gives_them(given: Any, read: tuple[str, ...]) -> None:
    assert LowRankOptions(ignore=given).ignore == read


@pytest.mark.parametrize("given", [1.10, True, None, [["fc"]]])
def test_what_is_no_glob_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match="option ignore=.* of method 'svd': .*string"):
        make_method("svd", {"ignore": given})


def test_a_certificate_is_for_any_weights_of_the_network() -> None:
    network, decision = decide("svd", rank=0.4)
    plan = plan_of(network, decision.edits)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.get_parameter("bert.embeddings.LayerNorm.weight").mul_(1.5)
    # Another dense network is another promise: both sides are made from it.
    assert certify_rebuild(other, plan, decision.tensors, inputs_of("bert_tiny")).passed
