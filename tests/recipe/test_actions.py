"""A recipe laid out flat: budgets of rounds, looks at the test split, checks before any compute."""

from typing import Any

import pytest
import torch

from prunus.errors import BudgetError, InputError
from prunus.graph import trace
from prunus.method import Context, Decision
from prunus.prune import Random
from prunus.recipe import Prune, Recalibrate, Repeat, Step, Train, compress
from prunus.recipe.actions import label, lay_out, require_widths, targets
from prunus.recipe.reachable import require_reachable
from prunus.recipe.recipe import as_recipe, make_recipe
from prunus.zoo import build
from tests.recipe.subjects import few_digits, trained_cnn

CUT = Prune(method="l1", target="macs=0.25")
TRAIN = Train(epochs=1, lr=0.1)
CALM = Recalibrate()
SPARSE = Prune(method="magnitude-weights", options={"sparsity": 0.6})


def _limits(*steps: Step, dense: int = 1000) -> list[int]:
    actions = lay_out(as_recipe(steps))
    return [action.limit(dense) for action in actions if action.budget is not None]


def test_rounds_tighten_by_their_schedule() -> None:
    # geometric: 0.25^(1/2) = 0.5; linear: 1 - 0.75 / 2 = 0.625
    assert _limits(Repeat(times=2, steps=(CUT,))) == [500, 250]
    assert _limits(Repeat(times=2, schedule="linear", steps=(CUT,))) == [625, 250]
    assert _limits(Repeat(times=3, schedule=(0.9, 0.3, 0.25), steps=(CUT,))) == [900, 300, 250]


def test_an_absolute_target_has_rounds_too() -> None:
    absolute = Prune(method="l1", target="params=250")
    assert _limits(Repeat(times=2, steps=(absolute,))) == [500, 250]


@pytest.mark.parametrize(
    ("steps", "stages"),
    [
        ([CUT], ["after_cut"]),
        ([CUT, CALM], ["after_cut", "after_recalibration"]),
        ([CUT, CALM, TRAIN], ["after_cut", "after_recalibration", "after_training"]),
        ([TRAIN, CUT, CALM], [None, "after_cut", "after_recalibration"]),
        ([CUT, TRAIN, CALM], ["after_cut", None, "after_training"]),
        ([CUT, TRAIN, TRAIN], ["after_cut", None, "after_training"]),
        ([TRAIN], ["after_training"]),
        (
            [Repeat(times=2, steps=(CUT, CALM, TRAIN))],
            [None, None, None, "after_cut", "after_recalibration", "after_training"],
        ),
    ],
)
def test_each_stage_is_looked_at_once_and_last(steps: list[Step], stages: list[str | None]) -> None:
    assert [action.stage for action in lay_out(as_recipe(steps))] == stages


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Prune(method="l9", target="macs=0.5"), "steps[0].prune.method: no method 'l9'"),
        (Prune(method="l1", target="mac=0.5"), "steps[0].prune.target: target 'mac=0.5'"),
        (
            Prune(method="l1", target="macs=0.5", options={"x": 1}),
            "steps[0].prune.options: method 'l1' has no option 'x'",
        ),
        (
            Repeat(times=2, schedule=(0.5,), steps=(CUT,)),
            "steps[0].repeat.schedule: [0.5] has 1 shares for 2 rounds",
        ),
        (
            Repeat(times=2, schedule=(0.5, 0.6), steps=(CUT,)),
            "steps[0].repeat.schedule: [0.5, 0.6] must fall",
        ),
        (
            Repeat(times=1, schedule=(0.5,), steps=(CUT,)),
            "steps[0].repeat.schedule: [0.5] ends at 0.5, the target at 0.25",
        ),
        (
            Repeat(times=2, schedule=(0.9, 0.2), steps=(SPARSE, TRAIN)),
            "steps[0].repeat.schedule: [0.9, 0.2] says how far every round goes, but no prune",
        ),
        (
            Repeat(times=2, steps=(TRAIN, Prune(method="svd", target="macs=0.5"))),
            (
                "steps[0].repeat.steps[1].prune: method 'svd' would factorize its own factors in 2 "
                "rounds; put it before or after the repeat, or set times: 1"
            ),
        ),
    ],
)
def test_a_step_that_cannot_run_is_named(step: Step, said: str) -> None:
    with pytest.raises(InputError) as caught:
        lay_out(as_recipe([step]))
    assert str(caught.value).startswith(said)


def test_a_later_cut_must_ask_for_less() -> None:
    weaker = Prune(method="l1", target="macs=0.5")
    with pytest.raises(InputError, match=r"steps\[1\]\.prune\.target: macs=0\.5 leaves nothing"):
        lay_out(as_recipe([CUT, weaker]))
    assert len(lay_out(as_recipe([weaker, CUT]))) == 2


@pytest.mark.parametrize("targets", [("macs=100000", "macs=0.5"), ("macs=0.5", "macs=100000")])
def test_a_share_beside_a_number_is_refused(targets: tuple[str, str]) -> None:
    """Which of the two is tighter, and so the row's target, only the network would tell."""
    steps = [Prune(method="l1", target=target) for target in targets]
    with pytest.raises(InputError, match="give both as shares of the dense network, or both as"):
        lay_out(as_recipe(steps))
    mixed = [Prune(method="l1", target="macs=0.5"), Prune(method="l1", target="params=100000")]
    assert len(lay_out(as_recipe(mixed))) == 2


def test_an_unreachable_target_is_refused_with_what_is_reachable() -> None:
    network = build("digits_cnn")
    found = trace(network, torch.randn(2, 1, 8, 8), min_units=12)
    actions = lay_out(as_recipe([Prune(method="l1", target="macs=0.01")]))
    with pytest.raises(
        BudgetError, match=r"macs=0\.01 cannot be reached.*macs=0\.\d+ or more"
    ) as e:
        require_reachable(actions, found)
    share = float(str(e.value).rpartition("macs=")[2].split()[0])
    again = lay_out(as_recipe([Prune(method="l1", target=f"macs={share}")]))
    require_reachable(again, found)


def test_a_row_is_named_after_its_methods() -> None:
    assert label(as_recipe([Repeat(times=2, steps=(CUT,)), TRAIN])) == "l1"
    assert label(as_recipe([TRAIN])) == "train"
    assert targets(lay_out(as_recipe([Prune(method="l1", target="macs=0.5"), CUT]))) == {
        "macs": 0.25
    }


@pytest.mark.parametrize(
    ("settings", "target", "said", "or_more"),
    [
        ({"round_to": 64}, 0.5, r"change round_to=64 \(--round-to\), which", False),
        ({"min_units": 99}, 0.5, r"change min_units=99 \(--min-units\), which", False),
        ({"ignore": ("*",)}, 0.5, r"change ignore \(--ignore\), which keeps 3 groups", False),
        ({"round_to": 12}, 0.05, r"change round_to=12 .* or ask for macs=0\.\d+ or more", True),
        (
            {"round_to": 64, "ignore": ("conv1", "conv2", "conv3")},
            0.01,
            r"round_to=64 \(--round-to\) and ignore",
            False,
        ),
        ({}, 0.0001, r"left; ask for macs=0\.\d+ or more", True),
    ],
)
def test_the_setting_that_stands_in_the_way_is_named(
    settings: dict[str, Any], target: float, said: str, or_more: bool
) -> None:
    found = trace(build("digits_cnn"), torch.randn(2, 1, 8, 8), **settings)
    actions = lay_out(as_recipe([Prune(method="l1", target=f"macs={target}")]))
    with pytest.raises(BudgetError, match=said) as caught:
        require_reachable(actions, found)
    assert ("or more" in str(caught.value)) == or_more


def test_what_a_step_leaves_that_does_more_than_to_cut_units_is_not_foretold() -> None:
    """Its least widths leave a fifth; behind a factorization a tenth may be reached."""
    found = trace(build("digits_cnn"), torch.randn(2, 1, 8, 8), min_units=6)
    narrow = Prune(method="l1", target="macs=0.01")
    with pytest.raises(BudgetError, match="cannot be reached"):
        require_reachable(lay_out(as_recipe([narrow])), found)
    thin = Prune(method="svd", options={"rank": 0.5})
    require_reachable(lay_out(as_recipe([thin, narrow])), found)
    with pytest.raises(BudgetError, match="cannot be reached"):
        require_reachable(lay_out(as_recipe([narrow, thin])), found)


def test_a_network_without_channels_to_cut_says_why() -> None:
    found = trace(torch.nn.Linear(4, 3), torch.randn(2, 4))
    actions = lay_out(as_recipe([Prune(method="l1", target="macs=0.5")]))
    with pytest.raises(BudgetError, match=r"nothing of this network can be cut \(.+\); give"):
        require_reachable(actions, found)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([Prune(method="svd", options={"rank": 0.5})], "and here are svd; leave it out"),
        ([SPARSE, TRAIN], "and here are magnitude-weights; leave it out"),
        ([TRAIN], "and here is none; leave it out"),
    ],
)
def test_widths_that_no_step_chooses_are_refused(steps: list[Step], said: str) -> None:
    recipe = make_recipe({"steps": tuple(steps), "round_to": 8})
    with pytest.raises(InputError, match=rf"round_to=8 \(--round-to\) .*{said}"):
        require_widths(recipe, [lay_out(recipe)])
    # Beside a row that chooses channels the setting is that row's.
    require_widths(recipe, [lay_out(recipe), lay_out(as_recipe([CUT]))])


def test_widths_are_refused_before_the_dense_network_is_looked_at() -> None:
    data = few_digits()
    recipe = make_recipe({"steps": (Prune(method="svd", options={"rank": 0.5}),), "min_units": 4})
    with pytest.raises(InputError, match=r"min_units=4 \(--min-units\)"):
        compress(build("digits_cnn"), recipe, data, latency=None)


def test_problems_are_counted_without_what_they_cause() -> None:
    wrong = {"steps": [{"train": {"epochs": 0, "lr": 1.0}}]}
    with pytest.raises(InputError, match=r"steps\[0\]\.train\.epochs: 0: [^()]*$"):
        make_recipe(wrong)
    with pytest.raises(InputError, match=r"train\.epochs: 0: .* \(and 1 more\)$"):
        make_recipe({"steps": [{"train": {"epochs": 0, "lr": -1.0}}]})


def test_every_round_of_a_repeat_draws_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one stream for all, who survives a round is likelier to fall in the next."""
    seen: list[int] = []
    original = Random.decide

    def spied(self: Random, context: Context) -> Decision:
        seen.append(context.seed)
        return original(self, context)

    monkeypatch.setattr(Random, "decide", spied)
    rounds = Repeat(times=3, steps=(Prune(method="random", target="macs=0.3"),))
    for _ in range(2):
        compress(trained_cnn(), [rounds], few_digits(), seed=7, latency=None)
    assert seen[:3] == seen[3:]  # the same in every process
    assert seen[0] == 7
    assert len(set(seen)) == 3
