"""Texts are scored in batches of similar length, and get the scores that one padded batch gives."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax
from torch.nn.utils.rnn import pack_padded_sequence

from prunus.candidates.execution import ScoringExecution
from prunus.candidates.options import Scoring
from prunus.candidates.scorer import Images, Scorer, Tricks
from prunus.candidates.setup import Blueprint, Setup, make_scorer
from prunus.candidates.task import Result, Task
from prunus.candidates.workplace import gather_images
from prunus.compute import Compute
from prunus.data import DataSplits, Inputs
from prunus.graph import Trace, cut, trace
from prunus.method import Budget, Context
from prunus.zoo import build
from tests.candidates.subjects import random_plan
from tests.helpers import all_but, enliven_
from tests.recipe import texts


def padded(lengths: list[int], longest: int) -> Images:
    """Texts whose tokens are their own position plus one, padded with 0."""
    size = torch.tensor(lengths)
    mask = (torch.arange(longest) < size[:, None]).long()
    ids = mask * (torch.arange(len(lengths)) + 1)[:, None]
    zeros = torch.zeros(len(lengths))
    return Images(
        {"input_ids": ids, "attention_mask": mask}, zeros.long(), zeros[:, None], zeros, (), size
    )


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=200),
    size=st.sampled_from([4, 16, 64]),
    ends=st.tuples(st.integers(0, 199), st.integers(1, 200)),
)
def test_every_text_comes_once_and_no_batch_is_longer_than_its_longest(
    lengths: list[int], size: int, ends: tuple[int, int]
) -> None:
    start = min(ends[0], len(lengths) - 1)
    stop = max(start + 1, min(ends[1], len(lengths)))
    seen: list[int] = []
    for positions, inputs in padded(lengths, 30).batches(start, stop, size):
        assert isinstance(inputs, dict)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        mine = [lengths[i] for i in positions.tolist()]
        assert mask.sum(dim=1).tolist() == mine
        assert ids.shape == mask.shape == (len(mine), max(mine))
        assert ids[:, 0].tolist() == [i + 1 for i in positions.tolist()]
        assert len(mine) <= size
        seen += positions.tolist()
    assert sorted(seen) == list(range(start, stop))
    assert [lengths[i] for i in seen] == sorted(lengths[i] for i in seen)


@pytest.mark.parametrize(
    ("texts_of_task", "size", "sizes"),
    [
        (160, 64, [20] * 8),  # an eighth of the task
        (100, 64, [16] * 6 + [4]),  # but not under 16
        (1024, 64, [64] * 16),  # nor over what is asked for
        (100, 8, [8] * 12 + [4]),
    ],
)
def test_a_task_has_eight_batches_where_they_hold_sixteen_texts(
    texts_of_task: int, size: int, sizes: list[int]
) -> None:
    found = padded([1 + k % 7 for k in range(texts_of_task)], 7).batches(0, texts_of_task, size)
    assert [len(positions) for positions, _ in found] == sizes


def test_an_empty_text_is_padding_alone() -> None:
    ((_, inputs),) = padded([0, 0], 5).batches(0, 2, 4)
    assert isinstance(inputs, dict)
    assert inputs["input_ids"].shape == (2, 1)


def test_images_are_not_copied() -> None:
    data = torch.rand(10, 1, 2, 2)
    zeros = torch.zeros(10)
    held = Images(data, zeros.long(), zeros[:, None], zeros, ())
    found = list(held.batches(4, 10, 4))
    assert [positions.tolist() for positions, _ in found] == [[4, 5, 6, 7], [8, 9]]
    for positions, inputs in found:
        assert isinstance(inputs, Tensor)
        assert inputs.data_ptr() == data[int(positions[0]) :].data_ptr()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSplits:
    return texts.load(tmp_path_factory.mktemp("texts"))


def subject(data: DataSplits, model: str) -> tuple[nn.Module, Trace, Context]:
    assert data.tokenizer is not None
    vocabulary = data.tokenizer.vocab_size
    sizes = {"bilstm": {"hidden": 6}, "textcnn": {"hidden": 8}}[model]
    network = enliven_(build(model, vocab_size=vocabulary, embedding=12, num_classes=2, **sizes))
    inputs, _ = next(data.train.batches(4))
    found = trace(network.eval(), inputs, verify=False)
    context = Context(
        network=network,
        trace=found,
        budget=Budget.parse("macs=0.5"),
        seed=0,
        train=data.train,
        search=data.search,
        compute=Compute(batch_size=32, precision="float32", layout="contiguous", threads=1),
    )
    return network, found, context


def by_hand(network: nn.Module, held: Images) -> tuple[Any, Any, Any]:
    """KL to the reference, loss and hits, from one batch that is padded to the longest text."""
    assert isinstance(held.search, dict)
    with torch.no_grad():
        logits: Tensor = network(**held.search).double()
    dense = log_softmax(held.reference.double(), dim=1)
    kl = (dense.exp() * (dense - log_softmax(logits, dim=1))).sum(dim=1)
    loss = cross_entropy(logits, held.labels, reduction="none")
    return kl.numpy(), loss.numpy(), (logits.argmax(dim=1) == held.labels).numpy()


def scored(scorer: Scorer, task: Task) -> Iterator[Result]:
    """The task in two parts and as a whole."""
    half = replace(task, stop=32)
    yield scorer(half)
    yield scorer(task)


@pytest.mark.parametrize("model", ["bilstm", "textcnn"])
def test_scores_are_those_of_one_padded_batch_in_the_order_of_the_texts(
    data: DataSplits, model: str
) -> None:
    network, found, context = subject(data, model)
    held = gather_images(context, Scoring(images=len(data.search)))
    assert held.lengths is not None
    assert isinstance(held.search, dict)
    assert torch.equal(held.search["attention_mask"].sum(dim=1), held.lengths)
    with torch.no_grad():
        np.testing.assert_allclose(held.reference, network(**held.search), rtol=1e-4, atol=1e-5)
    plan = random_plan(found, 1)
    kl, loss, correct = by_hand(cut(network, plan).eval(), held)
    assert len(set(kl.round(6))) > len(kl) // 2  # an order that is wrong would show
    shared = Scorer(network, held, batch_size=32)
    task = Task("k", plan, 0, len(held), share=tuple(range(len(shared.prefix.boundaries))))
    plain = Scorer(network, held, batch_size=32, tricks=Tricks(fold=False, memory_bytes=0))
    for scorer in (plain, shared):
        for result in [*scored(scorer, task), *scored(scorer, task)]:
            stop = result.stop
            np.testing.assert_allclose(result.kl, kl[:stop], rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(result.loss, loss[:stop], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(result.correct, correct[:stop])


class Reader(nn.Module):
    """One LSTM over a text: packed, so that it ends at its last word, or on through the padding."""

    def __init__(self, vocabulary: int, *, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self.embedding = nn.Embedding(vocabulary, 12)
        self.lstm = nn.LSTM(12, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x: Any = self.embedding(input_ids)
        if self.packed:
            lengths = attention_mask.sum(dim=1)
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, (h, _) = self.lstm(x)
        logits: Tensor = self.head(torch.cat([h[-2], h[-1]], dim=1))
        return logits


@pytest.mark.parametrize("packed", [True, False])
def test_what_reads_its_padding_gets_one_padding_for_all(data: DataSplits, packed: bool) -> None:
    assert data.tokenizer is not None
    network = enliven_(Reader(data.tokenizer.vocab_size, packed=packed)).eval()
    inputs, _ = next(data.train.batches(4))
    found = trace(network, inputs)
    context = replace(subject(data, "textcnn")[2], network=network, trace=found)
    held = gather_images(context, Scoring(images=len(data.search)))
    assert (held.lengths is not None) == packed
    plan = found.plan({group.name: all_but(group.units, 0) for group in found.cuttable})
    scorer = Scorer(network, held, batch_size=32)
    share = tuple(range(len(scorer.prefix.boundaries)))
    for now in (found.plan({}), plan):
        kl, loss, _ = by_hand(cut(network, now).eval(), held)
        for task in (Task("k", now, 0, len(held)), Task("k", now, 0, len(held), share=share)):
            result = scorer(task)
            np.testing.assert_allclose(result.kl, kl, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(result.loss, loss, rtol=1e-4, atol=1e-5)
    assert scorer(Task("k", found.plan({}), 0, len(held))).kl.max() < 1e-6


def test_lengths_are_those_of_the_texts_that_were_drawn(data: DataSplits) -> None:
    _, _, context = subject(data, "textcnn")
    held = gather_images(context, Scoring(images=len(data.search) // 2))
    assert len(held) < len(data.search)
    assert held.lengths is not None
    assert isinstance(held.search, dict)
    assert torch.equal(held.search["attention_mask"].sum(dim=1), held.lengths)


def test_workers_know_the_lengths(data: DataSplits) -> None:
    network, found, context = subject(data, "textcnn")
    held = gather_images(context, Scoring(images=len(data.search)))
    plain = ScoringExecution.of("float32", "contiguous")
    setup = Setup.of(Blueprint.of(network), held, plain, 32, Tricks(), "cpu")
    widths: list[int] = []

    def seen(scorer: Scorer) -> Result:
        place = scorer._placed

        def spied(inputs: Inputs) -> Inputs:
            assert isinstance(inputs, dict)
            widths.append(inputs["input_ids"].shape[1])
            return place(inputs)

        scorer._placed = spied  # type: ignore[method-assign]
        return scorer(Task("k", random_plan(found, 1), 0, len(held)))

    theirs = seen(make_scorer(setup))
    mine = seen(Scorer(network, held, execution=plain, batch_size=32))
    assert theirs.kl.tobytes() == mine.kl.tobytes()
    assert widths[: len(widths) // 2] == widths[len(widths) // 2 :]
    assert min(widths) < max(widths)
