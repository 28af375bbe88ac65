"""A score is what cutting, recalibrating and evaluating gives, however it is computed."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from prunus.candidates.execution import ScoringExecution as Execution
from prunus.candidates.scorer import Scorer, Tricks
from prunus.candidates.skeleton import Skeleton
from prunus.candidates.task import Task
from prunus.errors import InputError
from prunus.graph import cut, trace
from prunus.graph.inputs import call
from prunus.train import evaluate, recalibrate_batch_norm_
from prunus.train.forward import logits_of
from tests.candidates.scoring import BARE, LAST, require_close, same, score, subject
from tests.candidates.subjects import (
    bits_of,
    flags,
    gather,
    random_plan,
    search_split,
    some_plans,
    train_split,
    unchanged,
    zero,
)
from tests.helpers import enliven_, images


@pytest.mark.parametrize("name", ["digits_cnn", "resnet20"])
@pytest.mark.parametrize("tricks", [BARE, Tricks(), Tricks(fold=True, memory_bytes=0)])
def test_score_is_that_of_the_cut_recalibrated_network(name: str, tricks: Tricks) -> None:
    network, found, search, train, held = subject(name)
    before = bits_of(network)
    scorer = Scorer(network, held, tricks=tricks)
    for seed in range(2):
        plan = random_plan(found, seed)
        small = cut(network, plan)
        recalibrate_batch_norm_(small, train, images=128, seed=0)
        expected = evaluate(small, search)
        (inputs, labels), *_ = search.batches(150)
        logits = logits_of(call(small, inputs)).double()
        p = log_softmax(held.reference.double(), 1).exp()
        kl = (p * (p.log() - log_softmax(logits, 1))).sum(1).numpy()
        result = score(scorer, plan, 150)
        assert result.loss.mean() == pytest.approx(expected.loss, rel=1e-4)
        assert result.correct.mean() == pytest.approx(expected.top1, abs=1.01 / 150)
        np.testing.assert_allclose(result.kl, kl, rtol=1e-3, atol=1e-5)
        loss = cross_entropy(logits, labels, reduction="none").numpy()
        np.testing.assert_allclose(result.loss, loss, rtol=1e-4, atol=1e-5)
        statistics = np.frombuffer(result.statistics, dtype="<f4")
        theirs = [
            t.numpy()
            for m in small.modules()
            if isinstance(m, nn.BatchNorm2d)
            for t in (m.running_mean, m.running_var)
            if t is not None
        ]
        np.testing.assert_array_equal(statistics, np.concatenate(theirs))
    assert unchanged(network, before)


def test_dense_network_has_no_divergence_from_itself_but_for_its_statistics() -> None:
    network, found, _, train, held = subject()
    recalibrated = copy.deepcopy(network)
    recalibrate_batch_norm_(recalibrated, train, images=128, seed=0)
    again = replace(held, reference=logits_of(call(recalibrated, held.search)))
    result = score(Scorer(network, again), found.plan({}), 150)
    assert np.abs(result.kl).max() < 1e-6


@pytest.mark.parametrize("execution", [Execution(), LAST])
@pytest.mark.parametrize("tricks", [BARE, Tricks()])
def test_parts_give_the_bits_of_the_whole(execution: Execution, tricks: Tricks) -> None:
    network, found, _, _, held = subject()
    plan = random_plan(found, 5)
    whole = score(Scorer(network, held, execution=execution, tricks=tricks), plan, 150)
    scorer = Scorer(network, held, execution=execution, tricks=tricks)
    assert same(score(scorer, plan, 64, 128, 150), whole)
    assert same(score(scorer, plan, 64, 150, anew=True), whole)
    assert same(score(scorer, plan, 128, 150, share=(0, 2)), whole)


def test_layout_and_folding_round_and_nothing_more() -> None:
    network, found, _, _, held = subject("resnet20")
    plan = random_plan(found, 5)
    plain = score(Scorer(network, held, tricks=BARE), plan, 150)
    for execution in (Execution(), LAST):
        for fold in (False, True):
            tricks = Tricks(fold=fold, memory_bytes=0)
            require_close(
                score(Scorer(network, held, execution=execution, tricks=tricks), plan, 150), plain
            )


@pytest.mark.parametrize("execution", [Execution(), LAST])
@pytest.mark.parametrize("memory", [256_000_000, 1_500_000, 0])
@pytest.mark.parametrize("fold", [True, False])
def test_shared_beginnings_change_no_bit(execution: Execution, memory: int, fold: bool) -> None:
    """With room for all activations, for some of them only, and for none."""
    network, found, _, _, held = subject()
    plans = [found.plan({}), *some_plans(found, 7, groups=1)]
    alone = [
        score(Scorer(network, held, execution=execution, tricks=Tricks(fold, 0)), plan, 128, 150)
        for plan in plans
    ]
    scorer = Scorer(network, held, execution=execution, tricks=Tricks(fold, memory))
    # An engine may ask for any of them: where nothing is kept, that does nothing.
    every = tuple(range(len(Scorer(network, held).prefix.boundaries)))
    rng = np.random.default_rng(0)
    for _ in range(2):
        for index in rng.permutation(len(plans)):
            share = tuple(sorted(rng.choice(every, size=3, replace=False).tolist()))
            ends = ((150,), (64, 150), (128, 150))[rng.integers(3)]
            result = score(scorer, plans[index], *ends, share=share, anew=bool(rng.integers(2)))
            assert same(result, alone[index]), (index, share, ends)
    assert (scorer.prefix_hits > 0) == (memory > 0)


def test_sharing_in_residual_network_with_connections() -> None:
    network, found, _, _, held = subject("resnet20")
    shape = tuple(network.get_parameter("layer1.1.conv2.weight").shape[:2])
    plans = [
        *some_plans(found, 3, groups=1),
        found.plan({}, [zero("layer1.1.conv2.weight", flags(*shape))]),
        found.plan({}, [zero("layer1.1.conv2.weight", flags(*shape, seed=1))]),
    ]
    scorer = Scorer(network, held)
    every = tuple(range(len(scorer.prefix.boundaries)))
    for plan in plans:
        alone = score(Scorer(network, held), plan, 128)
        assert same(score(scorer, plan, 128, share=every), alone)
    assert scorer.prefix_hits > 0


def test_end_in_mid_batch_does_not_show_in_later_tasks() -> None:
    network, found, _, _, held = subject()
    plan = found.plan({})
    scorer = Scorer(network, held)
    whole = score(Scorer(network, held), plan, 150)
    short = score(scorer, plan, 70, share=(0, 1))
    assert len(short.kl) == 70
    assert same(score(scorer, plan, 150, share=(0, 1)), whole)
    again = score(scorer, plan, 65, share=(0, 1))
    np.testing.assert_allclose(again.kl, whole.kl[:65], rtol=1e-4, atol=1e-6)


def test_statistics_of_fewer_images() -> None:
    """The first of two batches: what recalibrating on that many images gives."""
    network, found, search, train, held = subject()
    plan = random_plan(found, 1)
    small = cut(network, plan)
    recalibrate_batch_norm_(small, train, images=64, seed=0)
    result = score(Scorer(network, held), plan, 150, calibration=1)
    assert result.loss.mean() == pytest.approx(evaluate(small, search).loss, rel=1e-4)


@pytest.mark.parametrize("execution", [Execution(), Execution("bfloat16", "channels_last")])
@pytest.mark.parametrize("shared", [False, True])
def test_statistics_go_on_from_the_first_images(execution: Execution, shared: bool) -> None:
    """Of two batches: the bits of both at once, whatever others have shared meanwhile."""
    network, found, _, _, held = subject("resnet20")
    scorer = Scorer(network, held, execution=execution)
    share = tuple(range(len(scorer.prefix.boundaries))) if shared else ()
    for plan in some_plans(found, 3, groups=1):
        first = scorer(Task("k", plan, 0, 64, calibration=1, share=share))
        whole = Scorer(network, held, execution=execution)(Task("k", plan, 0, 64))
        assert first.statistics != whole.statistics
        task = Task("k", plan, 0, 64, statistics=first.statistics, measured=1, share=share)
        assert same(scorer(task), whole)


class Recurrent(nn.Module):
    """A convolution and its batch norm that run three times."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        for _ in range(3):
            x = self.norm(self.b(x)).relu()
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def test_statistics_go_on_where_a_batch_norm_runs_more_than_once() -> None:
    network = enliven_(Recurrent())
    search, train = search_split(images(64, 3, 8, 8), 10), train_split(images(128, 3, 8, 8), 10)
    held = gather(network, search, train)
    plan = random_plan(trace(network, images(2, 3, 8, 8), verify=False), 0)
    scorer = Scorer(network, held)
    first = scorer(Task("k", plan, 0, 64, calibration=1))
    gone_on = scorer(Task("k", plan, 0, 64, statistics=first.statistics, measured=1))
    assert same(gone_on, scorer(Task("k", plan, 0, 64)))


class TwoBlocks(nn.Module):
    """The second block uses the batch norm of the first, behind a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.middle = nn.Conv2d(6, 4, 1)
        self.second = nn.Sequential(nn.Conv2d(4, 6, 1), self.first.get_submodule("1"), nn.ReLU())
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(3 * self.middle(self.first(x)).relu())
        out: Tensor = self.head(y.mean((2, 3)))
        return out


def test_statistics_of_a_batch_norm_that_runs_again_are_not_shared() -> None:
    """Candidates that agree in the first block, and not in what its batch norm is given later."""
    network = enliven_(TwoBlocks())
    search, train = search_split(images(64, 3, 8, 8), 10), train_split(images(64, 3, 8, 8), 10)
    held = gather(network, search, train, 64)
    found = trace(network, images(2, 3, 8, 8), verify=False)
    plans = [found.plan({"middle": np.arange(4) < count}) for count in (4, 1, 2)]
    scorer = Scorer(network, held)
    every = tuple(range(len(scorer.prefix.boundaries)))
    for plan in plans:
        alone = score(Scorer(network, held, tricks=Tricks(memory_bytes=0)), plan, 64)
        assert same(score(scorer, plan, 64, share=every), alone)


def test_statistics_of_few_and_of_many_images_are_never_mixed() -> None:
    network, found, _, _, held = subject()
    plans = [found.plan({}), *some_plans(found, 4, groups=1)]
    scorer = Scorer(network, held)
    every = tuple(range(len(scorer.prefix.boundaries)))
    for plan in (*plans, *plans[::-1]):
        for count in (1, None):
            alone = score(Scorer(network, held), plan, 150, calibration=count)
            assert same(score(scorer, plan, 64, 150, share=every, calibration=count), alone)


def test_network_without_batch_norm() -> None:
    network = enliven_(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    )
    found = trace(network, images(2, 3, 8, 8))
    search, train = search_split(images(70, 3, 8, 8), 10), train_split(images(9, 3, 8, 8), 10)
    scorer = Scorer(network, gather(network, search, train, 2))
    plan = random_plan(found, 0)
    result = score(scorer, plan, 64, 70)
    assert result.statistics == b""
    expected = evaluate(cut(network, plan), search)
    assert result.loss.mean() == pytest.approx(expected.loss, rel=1e-5)
    assert result.correct.mean() == expected.top1
    assert scorer(Task("k", plan, 0, 64, statistics=b"")).statistics == b""


def test_batch_norm_without_statistics_is_left_alone() -> None:
    network = enliven_(
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4, track_running_stats=False),
            nn.Conv2d(4, 5, 3),
            nn.BatchNorm2d(5, affine=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 3),
        )
    )
    found = trace(network, images(2, 3, 8, 8), verify=False)
    search, train = search_split(images(64, 3, 8, 8), 3), train_split(images(64, 3, 8, 8), 3)
    plan = random_plan(found, 1)
    result = score(Scorer(network, gather(network, search, train, 64)), plan, 64)
    small = cut(network, plan)
    recalibrate_batch_norm_(small, train, images=64, seed=0)
    assert result.loss.mean() == pytest.approx(
        evaluate(small, search, batch_size=64).loss, rel=1e-4
    )


def test_broken_weights_give_no_number_and_no_error() -> None:
    network, found, search, train, _ = subject()
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.get_parameter("conv1.weight")[3, 0, 0, 0] = torch.nan
    held = gather(network, search, train)
    scorer = Scorer(broken, held)
    every = tuple(range(len(scorer.prefix.boundaries)))
    result = score(scorer, found.plan({}), 150, share=every)
    assert np.isnan(result.kl).all() and np.isnan(result.loss).all()
    keep = np.ones(16, dtype=bool)
    keep[3] = False
    group = next(
        g.name
        for g in found.groups
        if any(a.tensor == "conv1.weight" and a.dim == 0 for a in g.axes)
    )
    healthy = score(scorer, found.plan({group: keep}), 150, share=every)
    assert np.isfinite(healthy.kl).all()
    assert same(
        healthy,
        score(Scorer(network, held, tricks=Tricks(fold=False)), found.plan({group: keep}), 150),
    ) or (
        np.allclose(
            healthy.kl, score(Scorer(network, held), found.plan({group: keep}), 150).kl, rtol=1e-4
        )
    )


def test_inputs_by_name_and_outputs_with_logits(architectures: Any) -> None:
    network, example = architectures("Bert")
    network.eval()
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": torch.randint(3, 119, (20, 12), generator=generator),
        "attention_mask": torch.ones(20, 12, dtype=torch.int64),
    }
    search, train = search_split(inputs, 3), train_split(inputs, 3)
    held = gather(network, search, train, 2)
    found = trace(network, example, verify=False)
    scorer = Scorer(network, held, batch_size=8)
    every = tuple(range(len(scorer.prefix.boundaries)))
    for seed in range(2):
        plan = some_plans(found, 2, groups=1)[seed]
        result = score(scorer, plan, 16, 20, share=every)
        expected = evaluate(cut(network, plan), search)
        assert result.loss.mean() == pytest.approx(expected.loss, rel=1e-4)
        assert result.correct.mean() == pytest.approx(expected.top1, abs=0.051)


# Refusals


def test_statistics_of_another_plan_are_refused() -> None:
    network, found, _, _, held = subject()
    scorer = Scorer(network, held)
    of_dense = score(scorer, found.plan({}), 64).statistics
    plan = random_plan(found, 3, share=0.4)
    with pytest.raises(InputError, match="statistics"):
        scorer(Task("k", plan, 0, 64, of_dense))
    own = score(scorer, plan, 64)
    for wrong in (b"", own.statistics[:-4], own.statistics + b"\0\0\0\0", own.statistics[:-1]):
        with pytest.raises(InputError, match="statistics"):
            scorer(Task("k", plan, 0, 64, wrong))
    assert same(score(scorer, plan, 64), own)


@pytest.mark.parametrize(
    ("start", "stop"), [(3, 64), (0, 0), (64, 64), (64, 10), (0, 151), (192, 200)]
)
def test_task_that_does_not_fit_is_refused(start: int, stop: int) -> None:
    network, found, _, _, held = subject()
    with pytest.raises(InputError, match=f"a task on images {start} to {stop} does not fit 150"):
        Scorer(network, held, tricks=BARE)(Task("k", found.plan({}), start, stop))


def test_order_of_batch_norms_is_that_of_definition() -> None:
    network, *_ = subject()
    assert Skeleton(network).norms == ["bn1", "bn2", "bn3", "bn4"]


class Masked(nn.Module):
    """A class that is never said: its logit is minus infinity; or all are NaN."""

    def __init__(self, last: float) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 3)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, last]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.a(x).relu()) + self.mask
        return out


def test_a_class_that_is_never_said_costs_nothing() -> None:
    """KL over the two others, by hand: the third has probability 0 on both sides."""
    network = Masked(-torch.inf).eval()
    x = images(40, 8, seed=1)
    search, train = search_split(x, 2), train_split(images(40, 8, seed=2), 2)
    found = trace(network, x[:2], verify=False)
    data = gather(network, search, train)
    scorer = Scorer(network, data, execution=LAST, batch_size=40, tricks=BARE)
    assert np.abs(score(scorer, found.plan({}), 40).kl).max() < 1e-6
    choice = {found.cuttable[0].name: np.arange(6) < 3}
    with torch.inference_mode():
        dense = log_softmax(network(data.search)[:, :2].double(), dim=1)
        smaller = log_softmax(cut(network, found.plan(choice))(data.search)[:, :2].double(), dim=1)
    expected = (dense.exp() * (dense - smaller)).sum(dim=1)
    assert expected.max() > 1e-3
    assert score(scorer, found.plan(choice), 40).kl == pytest.approx(expected.numpy(), abs=1e-6)


def test_answers_that_are_no_numbers_are_wrong() -> None:
    sound = Masked(0.0).eval()
    x = images(40, 8, seed=1)
    search, train = search_split(x, 2), train_split(images(40, 8, seed=2), 2)
    data = gather(sound, search, train)
    broken = Masked(torch.nan).eval()
    scorer = Scorer(broken, data, execution=LAST, batch_size=40, tricks=BARE)
    assert not score(scorer, trace(sound, x[:2], verify=False).plan({}), 40).correct.any()
