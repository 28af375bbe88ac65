"""Budgets mean what they say, and the registry fails loudly."""

from typing import Any

import numpy as np
import pytest

import prunus.method
from prunus.errors import BudgetError, InputError, SettingError
from prunus.graph import Trace, trace
from prunus.meter import file_size_bytes
from prunus.method import (
    Budget,
    Context,
    Decision,
    Method,
    make_method,
    method_class,
    method_names,
    register,
)
from tests.helpers import chain, images


@pytest.mark.parametrize(
    ("text", "quantity", "value"),
    [("macs=0.5", "macs", 0.5), ("params=1e6", "params", 1e6), ("size=2.5e6", "size", 2.5e6)],
)
def test_budget_is_read(text: str, quantity: str, value: float) -> None:
    assert Budget.parse(text) == Budget.model_validate({"quantity": quantity, "value": value})


@pytest.mark.parametrize(
    "text",
    ["", "macs", "macs=", "=0.5", "macs=half", "macs=0", "macs=-0.5", "macs=nan", "macs=inf",
     "flops=0.5", "MACS=0.5", "macs=0.5=0.5", "macs:0.5"],
)  # fmt: skip
def test_budget_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"macs, params, size \(bytes\)") as caught:
        Budget.parse(text)
    assert f"'{text}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "dense", "limit"),
    [("macs=0.5", 1001, 500), ("macs=1", 7, 7), ("params=1.5", 7, 1), ("params=500000", 7, 500000)],
)
def test_share_is_of_the_dense_network_and_rounds_down(text: str, dense: int, limit: int) -> None:
    assert Budget.parse(text).limit(dense) == limit


def test_share_of_a_whole_number_is_exact() -> None:
    assert Budget.parse("macs=0.29").limit(100) == 29


@pytest.mark.parametrize("value", [-0.5, 0.0, float("nan"), float("inf")])
def test_budget_is_checked_however_it_is_made(value: float) -> None:
    with pytest.raises(SettingError, match=r"^Budget: value=.*: input should be"):
        Budget(quantity="macs", value=value)


@pytest.fixture(scope="module")
def found() -> Trace:
    return trace(chain(), images(2, 3, 8, 8))


def test_budget_measures_by_the_trace(found: Trace) -> None:
    # conv 3x3: 36 pixels * 27 * 4; conv 1x1: 36 * 4 * 5; linear 10.
    macs = 36 * 27 * 4 + 36 * 20 + 10
    params = (27 * 4 + 4) + 8 + (20 + 5) + 12
    assert Budget.parse("macs=1").measure(found, {}) == macs
    assert Budget.parse("params=1").measure(found, {}) == params
    # The file: never more than predicted, and the slack is a few digits of each tensor's entry.
    slack = Budget.parse("size=1").measure(found, {}) - file_size_bytes(chain())
    assert 0 <= slack <= 8 + 4 * len(found.shape.tensors)


def test_budget_refuses_what_exceeds_it(found: Trace) -> None:
    choice = {"0": np.array([True, True, False, False])}
    cost = Budget.parse("macs=1").measure(found, choice)
    Budget(quantity="macs", value=cost).require(found, choice)
    with pytest.raises(BudgetError, match=f"allows {cost - 1}, the choice costs {cost}"):
        Budget(quantity="macs", value=cost - 1).require(found, choice)


class Whole(Method):
    """Keeps everything."""

    name = "whole-for-this-test"
    summary = "keeps everything"

    def decide(self, context: Context) -> Decision:
        return Decision(choice={})


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prunus.method, "_METHODS", {})


@pytest.mark.usefixtures("registry")
def test_registered_method_is_made_by_name() -> None:
    register(Whole)
    assert method_names() == ["whole-for-this-test"]
    assert method_class("whole-for-this-test") is Whole
    assert isinstance(make_method("whole-for-this-test"), Whole)


@pytest.mark.usefixtures("registry")
def test_taken_name_is_refused() -> None:
    register(Whole)
    with pytest.raises(ValueError, match="'whole-for-this-test' is taken"):
        register(Whole)


@pytest.mark.usefixtures("registry")
def test_unknown_method_lists_those_there_are() -> None:
    register(Whole)
    with pytest.raises(InputError, match="no method 'magic'; methods are whole-for-this-test"):
        make_method("magic")


def test_unknown_option_is_refused_before_any_compute() -> None:
    options: dict[str, Any] = {"strength": 3}
    with pytest.raises(InputError, match="'whole-for-this-test' has no option 'strength'"):
        Whole(**options)


def test_context_has_no_place_for_the_test_split() -> None:
    assert not [name for name in Context.__dataclass_fields__ if "test" in name]
