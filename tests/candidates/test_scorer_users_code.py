"""A user's network may raise, draw, count and keep what it likes: scores and the network stay the same."""

import copy
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.candidates.scorer import Scorer
from prunus.candidates.task import Task
from prunus.errors import InputError
from prunus.graph import trace
from prunus.seeding import host_states, seed_globally_
from tests.candidates.scoring import same, score, subject
from tests.candidates.subjects import (
    bits_of,
    gather,
    random_plan,
    search_split,
    train_split,
    unchanged,
)
from tests.helpers import Wired, enliven_, images


def test_scoring_goes_on_after_an_error() -> None:
    network, found, _, _, held = subject()
    scorer = Scorer(network, held)
    plan = random_plan(found, 3)
    expected = score(scorer, plan, 64)
    bad = plan.model_copy(update={"source": plan.result})
    with pytest.raises(Exception, match="another network"):
        scorer(Task("k", bad, 0, 64))
    assert same(score(scorer, plan, 64), expected)


# What is left alone


def test_network_random_state_and_threads_are_left_alone() -> None:
    network, found, _, _, held = subject()
    given_one = copy.deepcopy(network)
    given_one.get_submodule("bn2").train()
    given_one.train()
    given_one.get_submodule("bn3").eval()
    before = bits_of(given_one)
    modes = [m.training for m in given_one.modules()]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    numpy_state = repr(np.random.get_state())  # noqa: NPY002  # it is the global one
    scorer = Scorer(given_one, held)
    result = score(scorer, random_plan(found, 3), 64, 150, share=(0, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert [m.training for m in given_one.modules()] == modes
    assert unchanged(given_one, before)
    assert same(result, score(Scorer(network, held), random_plan(found, 3), 150))


def test_what_a_networks_code_keeps_elsewhere_can_be_trained_on() -> None:
    tables: dict[int, Tensor] = {}

    def wiring(m: Any, x: Tensor) -> Tensor:
        width = x.shape[-1]
        if width not in tables:
            tables[width] = torch.hann_window(width)
        out: Tensor = m.head((m.conv(x) * tables[width]).mean((2, 3)))
        return out

    layers = {"conv": nn.Conv2d(3, 4, 3, padding=1), "head": nn.Linear(4, 10)}
    network = enliven_(Wired(wiring, **layers))
    search, train = search_split(images(64, 3, 8, 8), 10), train_split(images(64, 3, 8, 8), 10)
    held, plan = gather(network, search, train, 64), trace(network, images(2, 3, 8, 8)).plan({})
    tables.clear()
    score(Scorer(network, held), plan, 64)
    assert tables
    torch.autograd.backward(network(images(2, 3, 8, 8)).sum())


class Moody(nn.Module):
    """Draws from a generator, or keeps count, in evaluation, too."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.more, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 10)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        match self.what:
            case "torch":
                x = nn.functional.dropout(x, 0.3, training=True)
            case "python":
                x = x * random.random()  # as a network may
            case "numpy":
                x = x * np.random.rand()  # noqa: NPY002  # as a network may
            case "buffer":
                seen = self.get_buffer("seen")
                x = x - seen.mul_(0.9).add_(x.max())
        out: Tensor = self.head(self.more(x).relu().mean((2, 3)))
        return out


@pytest.mark.parametrize("what", ["torch", "python", "numpy", "buffer"])
def test_a_score_is_the_candidates_own_whatever_was_drawn_or_scored_before(what: str) -> None:
    network = enliven_(Moody(what)).eval()
    search, train = search_split(images(128, 3, 8, 8), 10), train_split(images(64, 3, 8, 8), 10)
    held = gather(network, search, train, 64)
    found = trace(network, images(2, 3, 8, 8), verify=False)
    with torch.no_grad():
        network.get_buffer("seen").zero_()
    before, states = bits_of(network), host_states()
    plans = [found.plan({}), random_plan(found, 1), random_plan(found, 2)]
    alone = [score(Scorer(network, held), plan, 128) for plan in plans]
    assert host_states() == states and unchanged(network, before)
    seed_globally_(7)
    scorer = Scorer(network, held)
    assert scorer.prefix.boundaries == ()
    for plan, expected in zip(plans[::-1], alone[::-1], strict=True):
        assert same(score(scorer, plan, 128), expected)
    other = score(Scorer(network, held, seed=1), plans[0], 128)
    assert same(other, alone[0]) == (what == "buffer")


@pytest.mark.parametrize("what", ["torch", "python", "numpy"])
def test_what_is_drawn_is_the_batchs_own(what: str) -> None:
    network = enliven_(Moody(what)).eval()
    search, train = search_split(images(128, 3, 8, 8), 10), train_split(images(64, 3, 8, 8), 10)
    scorer = Scorer(network, gather(network, search, train, 64))
    plan = trace(network, images(2, 3, 8, 8), verify=False).plan({})
    assert same(score(scorer, plan, 64, 128), score(scorer, plan, 128))
    # Not those of another batch: the same images, drawn for again, are answered otherwise.
    twice = torch.cat([images(64, 3, 8, 8)] * 2)
    one = gather(network, search_split(twice, 10), train, 64)
    result = score(Scorer(network, replace(one, reference=torch.zeros(128, 10))), plan, 128)
    assert not np.isclose(result.kl[:64], result.kl[64:]).all()


def test_what_a_network_raises_is_told_in_one_line() -> None:
    def wiring(m: Any, x: Tensor) -> Tensor:
        if len(x) == 60:
            raise ValueError("odd batch\nand more")
        out: Tensor = m.head(m.conv(x).mean((2, 3)))
        return out

    network = enliven_(Wired(wiring, conv=nn.Conv2d(3, 4, 3), head=nn.Linear(4, 10)))
    search, train = search_split(images(124, 3, 8, 8), 10), train_split(images(64, 3, 8, 8), 10)
    scorer = Scorer(network, gather(network, search, train, 64))
    plan = trace(network, images(2, 3, 8, 8)).plan({})
    score(scorer, plan, 64)
    said = r"^scoring a candidate on 60 samples: the network raised ValueError: odd batch; .*$"
    with pytest.raises(InputError, match=said):
        scorer(Task("k", plan, 64, 124))
