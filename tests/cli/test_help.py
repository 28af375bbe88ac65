"""The texts of help: each command tells what its own options do."""

import re

import pytest
from typer.main import get_command

from prunus.cli.app import app
from prunus.cli.given import Training
from prunus.cli.training import make_training
from prunus.records import Source

COMMANDS = getattr(get_command(app), "commands")  # noqa: B009  # a group's, which typer hides


def _help(command: str, option: str) -> str:
    """The text of an option, by the name of its parameter."""
    (found,) = (given.help for given in COMMANDS[command].params if given.name == option)
    return str(found)


def test_a_training_is_told_of_its_own_rate_and_folder_and_of_no_cut() -> None:
    told = " ".join(given.help or "" for given in COMMANDS["train"].params)
    for foreign in ("--suite", " a cut", "after the cut", "prunus train", "workers", "scoring"):
        assert foreign not in told
    assert _help("train", "lr").startswith("Peak learning rate; by default sgd 0.1")
    assert "training.json" in _help("train", "out") and "report" not in _help("train", "out")


@pytest.mark.parametrize(("command", "option"), [("train", "lr"), ("compress", "train_lr")])
def test_the_rates_that_are_told_are_those_that_are_taken(command: str, option: str) -> None:
    sgd, pretrained, adamw, texts, pretrained_adamw = map(
        float, re.findall(r"\d[\d.e-]*\d", _help(command, option))
    )
    images, text = (Source(model=model) for model in ("digits_cnn", "bert_tiny"))
    loaded = Source(model="hf:x", arguments={"task": "text"})

    def taken(source: Source, optimizer: str) -> float:
        training = Training(1, None, None, None, 1, None, None, optimizer)
        return make_training(training, source, "x").lr

    assert (taken(images, "sgd"), taken(loaded, "sgd")) == (sgd, pretrained)
    assert (taken(images, "adamw"), taken(text, "adamw")) == (adamw, texts)
    assert taken(loaded, "adamw") == pretrained_adamw


def test_the_rate_after_a_cut_is_that_alone() -> None:
    for command in ("compress", "compare"):
        assert "after the cut" in _help(command, "lr") and "train:" not in _help(command, "lr")


@pytest.mark.parametrize("option", ["epochs", "batch_size"])
def test_only_the_command_that_has_suites_tells_of_their_rows(option: str) -> None:
    assert "--suite text" in _help("compare", option)
    assert "--suite" not in _help("compress", option)


def test_measure_has_no_workers_that_threads_are_shared_by() -> None:
    assert _help("measure", "threads") == "CPU threads of PyTorch."
    assert "workers" in _help("compress", "threads")


def test_the_engine_is_told_apart_from_the_runtime_of_deploy() -> None:
    for command in ("compress", "compare"):
        told = _help(command, "engine")
        assert told.startswith("Where candidates of a search are scored (not the runtime of")
        assert "pip install prunus" not in told  # which no index has


def test_what_a_certificate_shows_is_told_beside_the_proof() -> None:
    assert "not that accuracy was kept" in str(get_command(app).help)
