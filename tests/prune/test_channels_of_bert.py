"""Channel methods on a BERT that is called with a dictionary: heads, feed-forward, hidden width."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunus.data import SearchSplit, TrainSplit
from prunus.graph import Trace, certify, cut, trace
from prunus.meter import count_macs, count_params
from prunus.method import Budget, Context, Decision, make_method
from tests.prune import text_subjects as texts

HIDDEN, HEADS, HEAD, FORWARD, LAYERS, LENGTH = 32, 4, 8, 64, 2, 6
METHODS: dict[str, dict[str, Any]] = {
    "l1": {},
    "taylor": {"images": 16, "batch_size": 8},
    "genetic": {
        "population": 6,
        "parents": 2,
        "generations": 1,
        "images": 16,
        "recalibration_images": 16,
    },
}
every_method = pytest.mark.parametrize("name", list(METHODS))


@cache
def network() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FORWARD,
        max_position_embeddings=16,
        initializer_range=0.3,
        num_labels=2,
    )
    return texts.seeded(transformers.BertForSequenceClassification, config)


def some_texts(count: int, seed: int) -> list[tuple[int, ...]]:
    """Texts of two to six pieces, the first one as long as any."""
    draw = np.random.default_rng(seed)
    lengths = [LENGTH, *draw.integers(2, LENGTH + 1, count - 1).tolist()]
    return [tuple(draw.integers(5, 60, length).tolist()) for length in lengths]


@cache
def traced() -> Trace:
    return trace(network(), texts.inputs(some_texts(4, 0)))


@cache
def decided(name: str, target: str = "macs=0.5") -> Decision:
    given = Context(
        network(),
        traced(),
        Budget.parse(target),
        seed=0,
        train=TrainSplit(texts.samples(some_texts(32, 1))),
        search=SearchSplit(texts.samples(some_texts(16, 2))),
    )
    return make_method(name, METHODS[name]).decide(given)


def macs(hidden: int, heads: list[int], forward: list[int], pooled: int) -> int:
    """Of a BERT with these widths, by formula, for one text of six pieces."""
    total = hidden * pooled + pooled * 2  # pooler and classifier, at the first piece
    for n, wide in zip(heads, forward, strict=True):
        inner = n * HEAD
        total += LENGTH * (4 * hidden * inner + 2 * hidden * wide) + 2 * LENGTH**2 * inner
    return total


def widths(smaller: nn.Module) -> tuple[int, list[int], list[int], int]:
    """Hidden width, heads and feed-forward width of every layer, pooled width; read off weights."""
    hidden = smaller.get_parameter("bert.embeddings.word_embeddings.weight").shape[1]
    layers = [smaller.get_submodule(f"bert.encoder.layer.{at}") for at in range(LAYERS)]
    inner = [layer.get_parameter("attention.self.query.weight").shape[0] for layer in layers]
    assert all(width % HEAD == 0 for width in inner)  # heads go whole
    forward = [layer.get_parameter("intermediate.dense.weight").shape[0] for layer in layers]
    pooled = smaller.get_parameter("bert.pooler.dense.weight").shape[0]
    return hidden, [width // HEAD for width in inner], forward, pooled


def test_the_whole_network_has_the_macs_of_the_formula() -> None:
    dense = macs(HIDDEN, [HEADS] * LAYERS, [FORWARD] * LAYERS, HIDDEN)
    assert traced().macs({}) == dense
    assert count_macs(network(), texts.inputs(some_texts(1, 0))).macs == dense


@every_method
def test_half_the_macs_are_left_in_narrower_parts_of_every_kind(name: str) -> None:
    plan = traced().plan(decided(name).choice, decided(name).connections)
    smaller = cut(network(), plan).eval()
    hidden, heads, forward, pooled = widths(smaller)
    assert hidden < HIDDEN
    assert min(heads) < HEADS
    assert min(forward) < FORWARD
    left = macs(hidden, heads, forward, pooled)
    limit = traced().macs({}) // 2
    assert left == traced().macs(decided(name).choice)
    assert 0.95 * limit < left <= limit
    assert count_macs(smaller, texts.inputs(some_texts(1, 0))).macs == left
    assert count_params(smaller) == traced().params(decided(name).choice)


@every_method
def test_the_cut_is_certified_and_answers_texts_of_any_length(name: str) -> None:
    plan = traced().plan(decided(name).choice, decided(name).connections)
    assert certify(network(), traced(), plan, texts.inputs(some_texts(5, 3))).passed
    smaller = cut(network(), plan)
    found = texts.logits(smaller, texts.inputs([(5, 6, 7), (8, 9)]))
    assert found.shape == (2, 2)
    assert torch.isfinite(found).all()
    alone = texts.logits(smaller, texts.inputs([(8, 9)]))
    assert torch.allclose(found[1:], alone, atol=1e-5)  # padding is left out as before


@every_method
def test_texts_change_nothing_in_the_network(name: str) -> None:
    before = {key: value.clone() for key, value in network().state_dict().items()}
    decided(name, "params=0.6")
    after = network().state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(parameter.grad is None for parameter in network().parameters())
