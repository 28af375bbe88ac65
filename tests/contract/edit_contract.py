"""The suite for methods that replace modules, drop layers or pieces, or hold weights at zero."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prunus.errors import BudgetError, InputError, PrunusError
from prunus.graph import Trace, certify, certify_rebuild, cut, first_sample, plan_of, trace
from prunus.meter import measure_cost
from prunus.method import Decision, make_method, method_class, method_names
from prunus.plan import Plan
from tests.contract.edit_cases import (
    CASES,
    Case,
    context_of,
    data_of,
    inputs_of,
    network_of,
    tensors_equal,
)
from tests.contract.method_cases import unit_methods

ROOT = Path(__file__).parents[2]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


every_method = pytest.mark.parametrize("name", sorted({case.method for case in CASES}))
_decisions: dict[str, Decision] = {}


def _decide(case: Case) -> Decision:
    """Made once for every case."""
    if str(case) not in _decisions:
        method = make_method(case.method, case.options)
        _decisions[str(case)] = method.decide(context_of(case, network_of(case)))
    return _decisions[str(case)]


def _plan(case: Case, found: Trace, decision: Decision) -> Plan:
    if method_class(case.method).edits:
        return plan_of(network_of(case), decision.edits)
    return found.plan(decision.choice, decision.connections)


class EditContract:
    """What the rest of the house relies on, for every case."""

    def test_every_method_has_a_case_or_is_in_the_other_suite(self) -> None:
        assert {case.method for case in CASES} | set(unit_methods()) == set(method_names())

    @every_case
    def test_the_same_decision_twice_and_nothing_is_touched(self, case: Case) -> None:
        network = network_of(case)
        given, before = context_of(case, network), copy.deepcopy(network)
        state, looks = torch.get_rng_state(), data_of(case).test.evaluations
        one = make_method(case.method, case.options).decide(given)
        assert torch.equal(torch.get_rng_state(), state)
        assert data_of(case).test.evaluations == looks
        assert tensors_equal(given.network, before)
        two = _decide(case)
        assert one.edits == two.edits
        assert one.connections == two.connections
        assert one.tensors.keys() == two.tensors.keys()
        assert all(torch.equal(v, two.tensors[n]) for n, v in one.tensors.items())

    @every_case
    def test_its_plan_survives_json_and_makes_a_certified_network_of_predicted_costs(
        self, case: Case
    ) -> None:
        network, decision, inputs = network_of(case), _decide(case), inputs_of(case)
        found = trace(network, inputs)
        plan = Plan.model_validate_json(_plan(case, found, decision).model_dump_json())
        assert not plan.is_empty
        if method_class(case.method).edits:
            assert certify_rebuild(network, plan, decision.tensors, inputs).passed
        else:
            assert certify(network, found, plan, inputs).passed
        smaller = cut(network, plan, decision.tensors).eval()
        again = inputs
        if case.method == "vocabulary" and isinstance(inputs, dict):
            again = {**inputs, "input_ids": inputs["input_ids"].clamp(max=2)}
        counted = measure_cost(smaller, first_sample(again))
        predicted = trace(smaller, again, verify=False).cost({})
        assert predicted.params == counted.params
        if not predicted.uncounted:
            assert predicted.macs == counted.macs

    @every_case
    def test_a_target_is_never_exceeded(self, case: Case) -> None:
        if not case.target:
            pytest.skip("its options say how small the network gets")
        network, decision = network_of(case), _decide(case)
        budget = context_of(case, network).budget
        smaller = cut(network, plan_of(network, decision.edits), decision.tensors)
        one = first_sample(inputs_of(case))
        if case.method == "vocabulary" and isinstance(one, dict):
            one = {**one, "input_ids": one["input_ids"].clamp(max=2)}
        dense = measure_cost(network, first_sample(inputs_of(case)))
        left = budget.read(measure_cost(smaller, one))
        assert 0.5 * budget.limit(budget.read(dense)) < left <= budget.limit(budget.read(dense))

    @every_method
    def test_a_target_out_of_reach_is_refused_in_one_line_with_numbers(self, name: str) -> None:
        case = next(c for c in CASES if c.method == name)
        tiny = replace(case, target="params=0.0001", options={})
        if name == "magnitude-weights":  # meets none at all
            tiny = replace(tiny, options=case.options)
        with pytest.raises(PrunusError, match=r"params=0\.0001") as caught:
            make_method(name, tiny.options).decide(context_of(tiny, network_of(tiny)))
        assert "\n" not in str(caught.value)
        if name != "magnitude-weights":
            assert isinstance(caught.value, BudgetError)
            assert re.search(r"allows \d+.*\d+", str(caught.value))

    @every_method
    def test_unknown_options_are_refused_and_the_card_names_the_known_ones(self, name: str) -> None:
        with pytest.raises(InputError, match=f"method '{name}' has no option 'colour'") as caught:
            make_method(name, {"colour": "red"})
        assert "\n" not in str(caught.value)
        card = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
        if "As [svd](svd.md)" in card:
            card += (ROOT / "docs" / "methods" / "svd.md").read_text(encoding="utf-8")
        options = method_class(name).options_type.model_fields  # type: ignore[attr-defined]
        assert [option for option in options if f"`{option}`" not in card] == []
        assert "When not to use it" in card
