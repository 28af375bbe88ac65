import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunus.data import SearchSplit, TestSplit
from prunus.errors import InputError
from prunus.train import evaluate
from tests.train.fakes import FloatStore, digits, same_state, samples, search_digits, small_cnn


def test_top1_and_loss_by_hand() -> None:
    # Rows (0, ln 3): softmax (1/4, 3/4); labels 1, 1, 0: two hits, losses ln(4/3), ln(4/3), ln 4.
    logits = torch.tensor([[0.0, math.log(3)]]).repeat(3, 1)
    found = evaluate(
        nn.Identity(), SearchSplit(samples(logits, torch.tensor([1, 1, 0]))), batch_size=2
    )
    assert found.samples == 3
    assert found.top1 == pytest.approx(2 / 3, abs=1e-15)
    assert found.loss == pytest.approx((2 * math.log(4 / 3) + math.log(4)) / 3, rel=1e-6)


@given(st.integers(1, 20))
def test_batch_size_does_not_show(batch_size: int) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(17, 4, generator=generator)
    split = SearchSplit(samples(logits, torch.randint(4, (17,), generator=generator)))
    whole = evaluate(nn.Identity(), split, batch_size=17)
    parts = evaluate(nn.Identity(), split, batch_size=batch_size)
    assert parts.top1 == whole.top1
    assert parts.loss == pytest.approx(whole.loss, rel=1e-14)


def test_network_runs_in_eval_mode_and_is_left_as_it_was() -> None:
    network, twin = small_cnn(dropout=0.9), small_cnn(dropout=0.9)
    network[1].eval()
    flags = [m.training for m in network.modules()]
    split = search_digits(0, 50)
    first, second = evaluate(network, split), evaluate(network, split, channels_last=True)
    assert first.top1 == second.top1
    assert first.loss == pytest.approx(second.loss, rel=1e-5)  # dropout would make them differ
    assert [m.training for m in network.modules()] == flags
    assert same_state(network, twin)  # batch norm has not moved
    assert all(p.grad is None and not p.is_inference() for p in network.parameters())


def test_split_is_read_once_per_evaluation_and_a_test_split_counts_one() -> None:
    split = TestSplit(digits(0, 10))
    evaluate(small_cnn(), split, batch_size=4)
    assert isinstance(split.samples.store, FloatStore)
    assert split.samples.store.sizes == [4, 4, 2]
    assert split.evaluations == 1


def test_no_batch_size_below_one() -> None:
    split = TestSplit(digits(0, 10))
    with pytest.raises(InputError, match="batch_size=0"):
        evaluate(small_cnn(), split, batch_size=0)
    assert split.evaluations == 0
