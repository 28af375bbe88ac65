"""The suite that every registered method must pass: derive ``TestX(MethodContract)`` to run it."""

import copy
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prunus.errors import BudgetError, InputError
from prunus.graph import certify, cut
from prunus.method import TOLERANCE, Budget, Context, make_method, method_class
from prunus.plan import Plan
from tests.contract.method_cases import (
    QUICK,
    context,
    decide,
    digest,
    digests,
    example,
    splits,
    traced,
    unit_methods,
)

ROOT = Path(__file__).parents[2]
METHODS = unit_methods()
SEEDED = frozenset({"random"})  # whose choice must change with the seed
every_method = pytest.mark.parametrize("name", METHODS)


def _random_states() -> list[str]:
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  the one others may use
    assert isinstance(numpy_state, dict)
    keys = numpy_state["state"]["key"].tolist(), numpy_state["state"]["pos"]
    return [str(random.getstate()), str(keys), str(torch.get_rng_state().tolist())]


class MethodContract:
    """What the rest of the house relies on, for every method by name."""

    @every_method
    def test_same_seed_same_choice(self, name: str) -> None:
        given = context(seed=5)
        assert digest(decide(name, given).choice) == digest(decide(name, given).choice)

    def test_same_seed_same_choice_in_another_process(self) -> None:
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-m", "tests.contract.method_cases", "3"],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "77"},
        )
        assert done.returncode == 0, done.stderr
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            assert json.loads(done.stdout) == digests(3)
        finally:
            torch.set_num_threads(threads)

    @pytest.mark.parametrize("name", sorted(SEEDED))
    def test_another_seed_another_choice(self, name: str) -> None:
        choices = {digest(decide(name, context(seed=seed)).choice) for seed in range(4)}
        assert len(choices) == 4

    @every_method
    def test_network_and_global_random_states_are_left_alone(self, name: str) -> None:
        given = context()
        before = copy.deepcopy(given.network.state_dict())
        flags = [m.training for m in given.network.modules()]
        states = _random_states()
        decide(name, given)
        after = given.network.state_dict()
        assert list(before) == list(after)
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert [m.training for m in given.network.modules()] == flags
        assert all(p.grad is None and p.requires_grad for p in given.network.parameters())
        assert _random_states() == states

    @pytest.mark.parametrize("target", ["macs=0.5", "params=0.4", "size=15000"])
    @every_method
    def test_budget_is_met(self, name: str, target: str) -> None:
        given = context(target)
        choice = dict(decide(name, given).choice)
        budget, trace = given.budget, given.trace
        limit = budget.limit(budget.measure(trace, {}))
        cost = budget.measure(trace, choice)
        assert cost <= limit
        if cost >= (1 - TOLERANCE) * limit:
            return
        for group, keep in choice.items():  # coarser than the tolerance: not one unit more
            for unit in np.flatnonzero(~keep):
                wider = keep.copy()
                wider[unit] = True
                assert budget.measure(trace, {**choice, group: wider}) > limit

    @every_method
    def test_plan_survives_json_and_makes_a_certified_network(self, name: str) -> None:
        given = context()
        decision = decide(name, given)
        plan = given.trace.plan(decision.choice, decision.connections)
        again = Plan.model_validate_json(plan.model_dump_json())
        assert again.digest == plan.digest
        smaller = cut(given.network, again)
        assert smaller(example()).shape == (4, 10)
        assert sum(p.numel() for p in smaller.parameters()) == given.trace.params(decision.choice)
        assert certify(given.network, given.trace, again, example()).passed

    @every_method
    def test_smallest_legal_network(self, name: str) -> None:
        trace = traced(4)
        least = trace.params({g.name: np.arange(g.units) < 4 for g in trace.cuttable})
        given = context(f"params={least}", width_step=4)
        choice = decide(name, given).choice
        assert {group: int(keep.sum()) for group, keep in choice.items()} == {
            g.name: 4 for g in trace.cuttable
        }
        assert cut(given.network, trace.plan(choice))(example()).shape == (4, 10)

    @every_method
    def test_unreachable_budget_is_refused_with_what_is_reachable(self, name: str) -> None:
        trace = traced(4)
        least = trace.params({g.name: np.arange(g.units) < 4 for g in trace.cuttable})
        with pytest.raises(BudgetError, match=rf"params={least - 1}\b.*\b{least}\b"):
            decide(name, context(f"params={least - 1}", width_step=4))

    @every_method
    def test_widths_keep_to_the_grid(self, name: str) -> None:
        given = context(width_step=4)
        for group, keep in decide(name, given).choice.items():
            assert int(keep.sum()) % 4 == 0, group

    @every_method
    def test_no_method_looks_at_the_test_split(self, name: str) -> None:
        assert not any("test" in f.name for f in fields(Context))
        before = splits().test.evaluations
        decide(name, context())
        assert splits().test.evaluations == before

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @every_method
    def test_it_works_on_cuda(self, name: str) -> None:
        given = replace(context(), device="cuda")
        decision = decide(name, given)
        limit = given.budget.limit(given.budget.measure(given.trace, {}))
        assert given.budget.measure(given.trace, decision.choice) <= limit
        given.network.cpu()
        plan = given.trace.plan(decision.choice, decision.connections)
        assert certify(given.network, given.trace, plan, example()).passed

    @every_method
    def test_unknown_option_is_refused_by_name(self, name: str) -> None:
        with pytest.raises(InputError, match="no_such_option"):
            make_method(name, {"no_such_option": 1})

    @every_method
    def test_it_is_quick_on_a_tiny_network(self, name: str) -> None:
        given = context()
        started = time.process_time()
        decide(name, given)
        assert time.process_time() - started < 10, QUICK.get(name)

    @every_method
    def test_missing_data_is_refused(self, name: str) -> None:
        given, kind = context(), method_class(name)
        bare = Context(given.network, given.trace, Budget.parse("macs=0.5"), seed=0)
        if kind.needs:
            with pytest.raises(InputError, match="data"):
                decide(name, bare)
        else:
            assert digest(decide(name, bare).choice) == digest(decide(name, given).choice)

    @every_method
    def test_it_has_a_card_that_names_every_option(self, name: str) -> None:
        card = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert card.startswith(f"# {name}\n")
        options = getattr(method_class(name), "options_type", None)
        for option in options.model_fields if options else ():
            assert f"`{option}`" in card
