"""The engine on networks: scores are those of cut, recalibrated ones, and nothing else changes."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from prunus.candidates import Candidate, Engine, Scoring, ranked, workplace
from prunus.candidates.scorer import Scorer
from prunus.candidates.workplace import gather_images, spread_order
from prunus.compute import Compute
from prunus.data import DataSplits, tensors_digest
from prunus.errors import InputError
from prunus.graph import Trace, cut, trace
from prunus.graph.inputs import call
from prunus.method import Budget, Context
from prunus.train import evaluate, recalibrate_batch_norm_
from tests.candidates.engines import PLAIN, SMALL, summary
from tests.candidates.subjects import bits_of, unchanged
from tests.helpers import Wired, enliven_, images, random_choice
from tests.recipe.subjects import few_digits, trained_cnn


@cache
def digits() -> DataSplits:
    return few_digits()


def context(network: nn.Module | None = None, **given: Any) -> Context:
    network = trained_cnn() if network is None else network
    found = trace(network, images(2, 1, 8, 8), verify=False)
    defaults: dict[str, Any] = {
        "budget": Budget.parse("macs=0.5"),
        "seed": 0,
        "train": digits().train,
        "search": digits().search,
        "compute": PLAIN,
    }
    return Context(network=network, trace=found, **(defaults | given))


def real_candidates(found: Trace, count: int = 6) -> list[Candidate]:
    some = [Candidate(random_choice(found, seed, 0.8)) for seed in range(count - 1)]
    shared = {"conv2": some[0].choice["conv2"], "conv4": some[1].choice["conv4"]}
    return [*some, Candidate(shared)]


@pytest.mark.parametrize("memory_mb", [0, 256])
def test_scores_are_those_of_cut_recalibrated_evaluated_networks(memory_mb: int) -> None:
    """And KL is to the original where the network is not it."""
    original = trained_cnn()
    network = enliven_(trained_cnn(), 5)
    given_one = context(
        network, original=original, compute=PLAIN.model_copy(update={"memory_mb": memory_mb})
    )
    some = real_candidates(given_one.trace)
    scoring = Scoring(images=10_000, calibration_images=128)
    with Engine.open(given_one, scoring) as engine:
        scored = engine.score(some)
    (inputs, _), *_ = digits().search.batches(64)
    p = log_softmax(call(original, inputs).double(), 1).exp()
    for found in scored:
        small = cut(network, given_one.trace.plan(found.candidate.choice))
        recalibrate_batch_norm_(small, digits().train, images=128, seed=0)
        expected = evaluate(small, digits().search)
        q = log_softmax(call(small, inputs).double(), 1)
        assert found.complete and found.images == 64
        assert found.top1 == pytest.approx(expected.top1, abs=1.01 / 64)
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
        assert found.kl == pytest.approx(float((p * (p.log() - q)).sum(1).mean()), rel=1e-3)


def test_a_network_that_works_on_its_input_in_place_is_scored_on_the_images() -> None:
    """The same function as one that does not: the same logits of the dense network, and scores."""

    def context_of(in_place: bool) -> Context:
        def wiring(m: Any, x: Tensor) -> Tensor:
            out: Tensor = m.rest(x.sub_(0.3).div_(0.5) if in_place else x.sub(0.3).div(0.5))
            return out

        return context(Wired(wiring, rest=trained_cnn()).eval())

    plain, working = context_of(False), context_of(True)
    some = [Candidate(random_choice(plain.trace, seed, 0.8)) for seed in range(2)]
    found = []
    for one in (plain, working):
        held = gather_images(one, SMALL)
        with Engine.open(one, SMALL) as engine:
            scores = summary(engine.score(some))
        assert isinstance(held.search, Tensor)
        seen = tensors_digest({"images": held.search, "answers": held.reference})
        found.append((seen, scores))
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch's own, of a copy
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", ["sparse", "quantized"])
def test_a_network_with_a_buffer_of_another_kind_is_scored_as_with_a_plain_one(kind: str) -> None:
    def context_of(mix: Tensor) -> Context:
        network = Wired(lambda m, x: m.rest(x) @ dense(m.mix), rest=trained_cnn())
        network.register_buffer("mix", mix, persistent=False)
        return context(network.eval())

    def dense(mix: Tensor) -> Tensor:
        return mix.dequantize() if mix.is_quantized else mix.to_dense()

    plain = torch.eye(10)
    other = {
        "sparse": plain.to_sparse(),
        "quantized": torch.quantize_per_tensor(plain, 1.0, 0, torch.qint8),
    }
    as_plain, as_other = context_of(plain), context_of(other[kind])
    some = [Candidate(random_choice(as_other.trace, 0, 0.8))]
    found = []
    for one in (as_plain, as_other):
        with Engine.open(one, SMALL) as engine:
            found.append(summary(engine.score(some))[0][1:])  # plans name the networks
    assert found[0] == found[1]


def test_an_error_of_the_dense_network_is_told_in_one_line() -> None:
    def wiring(m: Any, x: Tensor) -> Tensor:
        if len(x) == 60:
            raise ValueError("odd batch")
        out: Tensor = m.rest(x)
        return out

    given_one = context(Wired(wiring, rest=trained_cnn()).eval())
    said = "^digits: on 60 samples of the search split the network raised ValueError: odd batch; "
    with pytest.raises(InputError, match=said):
        gather_images(given_one, SMALL.model_copy(update={"images": 60}))


@pytest.mark.parametrize("top", [None, 2])
def test_order_of_candidates_does_not_matter(top: int | None) -> None:
    given_one = context()
    some = real_candidates(given_one.trace)
    with Engine.open(given_one, SMALL) as engine:
        expected = engine.score(some, top)
    for order in (some[::-1],):
        with Engine.open(context(), SMALL) as engine:
            found = engine.score(order, top)
        assert sorted(summary(found)) == sorted(summary(expected))


def test_resumed_engine_gives_the_same_and_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_one = replace(context(), folder=tmp_path)
    some = real_candidates(given_one.trace)
    with Engine.open(given_one, SMALL) as engine:
        expected = engine.score(some, top=2)
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "__call__", None)
        with Engine.open(replace(context(), folder=tmp_path), SMALL) as engine:
            found = engine.score(some, top=2)
    assert summary(found) == summary(expected)
    with Engine.open(given_one, SMALL), pytest.raises(InputError):
        Engine.open(given_one, SMALL)  # one at a time


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "network": ({"network": None}, {}),
    "original": ({"original": None}, {}),
    "seed": ({"seed": 1}, {}),
    "calibration": ({}, {"calibration_images": 64}),
    "quick calibration": ({}, {"quick_calibration_images": 32}),
    "images": ({}, {"images": 48}),
    "batch": ({"compute": PLAIN.model_copy(update={"batch_size": 32})}, {}),
    "layout": ({"compute": PLAIN.model_copy(update={"layout": "channels_last"})}, {}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_folder_of_another_search_is_refused(change: str, tmp_path: Path) -> None:
    """All that decides a stored number."""
    given_one = replace(context(), folder=tmp_path)
    with Engine.open(given_one, SMALL) as engine:
        engine.score([Candidate({})])
    other, scoring = CHANGES[change]
    if "network" in other or "original" in other:
        other = {next(iter(other)): enliven_(trained_cnn(), 7)}
    with pytest.raises(InputError):
        Engine.open(replace(given_one, **other), SMALL.model_copy(update=scoring))


@pytest.mark.parametrize(
    "scoring",
    [{"fitness": "accuracy"}, {"first_images": 32}, {"growth": 3.0}, {"quick_images": 16}],
)
def test_what_decides_no_number_may_change(scoring: dict[str, Any], tmp_path: Path) -> None:
    given_one = replace(context(), folder=tmp_path)
    some = real_candidates(given_one.trace)
    with Engine.open(given_one, SMALL) as engine:
        engine.score(some, top=1)
    changed = SMALL.model_copy(update=scoring)
    with Engine.open(given_one, changed) as engine:
        found = engine.score(some, top=1)
    with Engine.open(context(), changed) as engine:
        assert ranked(found)[0].key == ranked(engine.score(some, top=1))[0].key


def test_missing_data_is_named_and_the_folder_stays_free(tmp_path: Path) -> None:
    given_one = replace(context(), folder=tmp_path)
    for name in ("train", "search"):
        missing: dict[str, Any] = {name: None}
        with pytest.raises(InputError, match=f"{name}="):
            Engine.open(replace(given_one, **missing), SMALL)
    with pytest.raises(InputError):
        Engine.open(
            replace(given_one, network=nn.Sequential(), original=trained_cnn(), source=None), SMALL
        ).score([Candidate({"nowhere": np.ones(3, dtype=bool)})])


def test_nothing_of_the_caller_changes() -> None:
    """Weights, modes of the original, the random state, and the number of threads."""
    original, network = trained_cnn().train(), trained_cnn()
    original.get_submodule("bn2").eval()
    modes = [m.training for m in original.modules()]
    before, original_before = bits_of(network), bits_of(original)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    given_one = context(
        network,
        original=original,
        compute=PLAIN.model_copy(update={"threads": 2, "layout": "auto"}),
    )
    with Engine.open(given_one, SMALL) as engine:
        engine.score(real_candidates(given_one.trace), top=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert unchanged(network, before)
    assert unchanged(original, original_before)
    assert [m.training for m in original.modules()] == modes


def test_modes_of_the_network_stay() -> None:
    network = trained_cnn().train()
    network.get_submodule("bn2").eval()
    modes, before = [m.training for m in network.modules()], bits_of(network)
    with Engine.open(replace(context(trained_cnn()), network=network), SMALL) as engine:
        engine.score([Candidate({})])
    assert [m.training for m in network.modules()] == modes
    assert unchanged(network, before)


@pytest.mark.slow
def test_processes_give_what_the_serial_run_gives() -> None:
    given_one = context(compute=PLAIN.model_copy(update={"threads": 1}))
    some = real_candidates(given_one.trace)
    with Engine.open(given_one, SMALL) as engine:
        expected = engine.score(some, top=2)
    two = Compute(**(given_one.compute.model_dump() | {"engine": "processes", "workers": 2}))
    for source in (None, "digits_cnn"):
        from prunus.records import Source

        named = None if source is None else Source(model=source)
        with Engine.open(replace(given_one, compute=two, source=named), SMALL) as engine:
            found = engine.score(some, top=2)
        assert summary(found) == summary(expected)


# The order of images


@given(st.integers(1, 300), st.integers(0, 100))
def test_every_beginning_is_spread_evenly(count: int, seed: int) -> None:
    """Any first n of the images leave no gap much wider than one of count / n."""
    values = torch.from_numpy(np.random.default_rng(seed).permutation(count).astype(np.float64))
    order = spread_order(values)
    assert sorted(order.tolist()) == list(range(count))
    for n in range(1, count + 1):
        ranks = np.sort(values[order[:n]].numpy())
        gaps = np.diff(np.concatenate([[-1.0], ranks, [float(count)]]))
        assert gaps.max() <= 2 * count / n + 2


def test_images_keep_their_labels_and_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workplace, "_BATCH", 10)  # which 64 images are no multiple of
    given_one = context()
    held = gather_images(given_one, SMALL)
    logits = call(given_one.network, held.search)
    assert torch.allclose(logits, held.reference, atol=1e-5)
    pairs = {(x.numpy().tobytes(), int(y)) for x, y in zip(held.search, held.labels, strict=True)}
    (inputs, labels), *_ = digits().search.batches(64)
    assert pairs == {(x.numpy().tobytes(), int(y)) for x, y in zip(inputs, labels, strict=True)}
    entropy = -(log_softmax(logits.double(), 1).exp() * log_softmax(logits.double(), 1)).sum(1)
    np.testing.assert_array_equal(
        np.argsort(held.difficulty.numpy(), kind="stable")[:5],
        np.argsort((entropy * 1e4).round().numpy(), kind="stable")[:5],
    )


def test_beginnings_are_as_hard_as_the_whole_on_average() -> None:
    """A beginning that takes the easiest of every stretch would be too easy."""
    difficulty = torch.from_numpy(np.random.default_rng(0).lognormal(0.0, 1.5, 2000))
    order = spread_order(difficulty)
    whole = float(difficulty.mean())
    for first in (64, 128, 256, 512):
        assert float(difficulty[order[:first]].mean()) == pytest.approx(whole, rel=0.15)
