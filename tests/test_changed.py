"""What has changed between two runs is told so that it can be seen."""

import pytest

from prunus.changed import flatten, told_change, without_idle

HOME = "text:/home/somebody/a/folder/of/very/many/files/of/texts/of/letters/"


@pytest.mark.parametrize(
    ("saved", "asked", "told"),
    [
        ({"seed": 0, "lr": 0.1}, {"seed": 0, "lr": 0.1}, ""),
        ({}, {}, ""),
        ({"seed": 0}, {"seed": 1}, "seed was 0 and is 1"),
        ({"seed": 0}, {"seed": 0, "tau": 0.5}, "tau was absent and is 0.5"),
        ({"seed": 0, "tau": ""}, {"seed": 0}, "tau was '' and is absent"),
        # In the order of what is asked for; what is no longer asked for comes last.
        ({"old": 1, "b": 1, "a": 1}, {"a": 2, "b": 2}, "a was 1 and is 2 (and 2 more)"),
        # As long as what is shown at most, then longer by one.
        ({"m": "x" * 60}, {"m": "y" * 60}, f"m was {'x' * 60} and is {'y' * 60}"),
        ({"m": "x" * 61}, {"m": "y" * 61}, f"m was {'x' * 60}... and is {'y' * 60}..."),
        # Eight letters ahead of the first that differs.
        (
            {"data": f"{HOME}one.csv"},
            {"data": f"{HOME}two.csv"},
            "data was ...letters/one.csv and is ...letters/two.csv",
        ),
        ({"data": HOME}, {"data": f"{HOME}b"}, "data was ...letters/ and is ...letters/b"),
        ({"data": HOME}, {}, f"data was {HOME[:60]}... and is absent"),
    ],
)
def test_the_first_change_is_told(
    saved: dict[str, object], asked: dict[str, object], told: str
) -> None:
    assert told_change(saved, asked) == told


def test_a_number_is_one_however_it_is_written() -> None:
    """Folders of before hold 1e-3 as it was written, and later ones as it is read."""
    assert not told_change({"tolerance": "1e-3"}, {"tolerance": "0.001"})
    assert not told_change({"rate": "1e-05"}, {"rate": "1E-5"})
    assert told_change({"tolerance": "1e-3"}, {"tolerance": "0.002"})
    assert told_change({"torch": "2.1"}, {"torch": "2.10"})  # a version
    assert told_change({"digest": "1e9999999"}, {"digest": "2e9999999"})  # both infinite


def test_settings_of_fresh_weights_count_where_there_are_some() -> None:
    train = {"train": {"epochs": 1, "scratch_epochs": 3, "scratch_lr": 0.1}}
    for first, kept in (
        ({"prune": {"method": "l1"}}, False),
        ({"prune": {"method": "scratch"}}, True),
        ({"prune": {"method": "own.py:Fresh"}}, True),
        ({"student": {"model": "resnet20"}}, True),
    ):
        flat = dict(flatten({"steps": [first, train]}))
        left = without_idle(flat)
        assert (left == flat) is kept
        assert left["steps[1].train.epochs"] == "1"
