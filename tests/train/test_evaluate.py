import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support
from torch import Tensor, nn
from torch.nn.functional import one_hot

from prunus.data import Inputs, SearchSplit, TestSplit, UnlabeledSplit
from prunus.errors import InputError
from prunus.train import answers, evaluate, evaluation_of, predictions
from tests.train.fakes import (
    FloatStore,
    digits,
    same_state,
    samples,
    search_digits,
    small_cnn,
    texts,
)


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


class _Branches(nn.Module):
    """Breaks on more than two samples, as a branch that no check took."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise IndexError("channel 5 of 4\nand more")
        return x


def test_what_a_network_raises_is_told_with_its_place() -> None:
    search = SearchSplit(samples(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(InputError) as caught:
        evaluate(_Branches(), search, batch_size=3)
    said = "on 3 samples of the search split the network raised IndexError: channel 5 of 4; it must run"
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, IndexError)
    assert evaluate(_Branches(), search, batch_size=2).samples == 3


def test_no_batch_size_below_one() -> None:
    split = TestSplit(digits(0, 10))
    with pytest.raises(InputError, match="batch_size=0"):
        evaluate(small_cnn(), split, batch_size=0)
    assert split.evaluations == 0


def test_f1_precision_and_recall_of_two_classes_by_hand() -> None:
    # Called 1: samples 0, 1, 2, of which 0 and 1 are; of class 1 are 0, 1, 3, 4.
    called = torch.tensor([1, 1, 1, 0, 0, 0])
    labels = torch.tensor([1, 1, 0, 1, 1, 0])
    found = evaluation_of(one_hot(called, 2).float(), labels)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 4)
    assert found.f1 == pytest.approx(2 * 2 / (3 + 4))
    assert found.top1 == pytest.approx(3 / 6)


def test_f1_of_more_classes_is_the_mean_over_those_that_occur() -> None:
    # Class 0: 1 of 1 called, 1 of 2 found; class 1: 1 of 2, 1 of 1; 2 and 3 do not occur.
    found = evaluation_of(one_hot(torch.tensor([0, 1, 1]), 4).float(), torch.tensor([0, 0, 1]))
    assert found.precision == pytest.approx((1 + 1 / 2) / 2)
    assert found.recall == pytest.approx((1 / 2 + 1) / 2)
    assert found.f1 == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_nothing_called_one_is_worth_nothing() -> None:
    found = evaluation_of(torch.tensor([[1.0, 0.0]] * 3), torch.tensor([0, 0, 1]))
    assert (found.precision, found.recall, found.f1) == (0, 0, 0)
    assert found.top1 == pytest.approx(2 / 3)


@given(st.integers(2, 6), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**31))
def test_metrics_are_those_of_scikit_learn(
    classes: int, count: int, occurring: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.randint(min(classes, occurring), (count,), generator=generator)
    called = logits.argmax(dim=1)
    found = evaluation_of(logits, labels)
    average = "binary" if classes == 2 else "macro"
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, called, average=average, zero_division=0.0
    )
    assert found.precision == pytest.approx(precision)
    assert found.recall == pytest.approx(recall)
    assert found.f1 == pytest.approx(f1)
    assert found.top1 == pytest.approx(accuracy_score(labels, called))
    assert found.loss == pytest.approx(
        log_loss(labels, logits.double().softmax(dim=1), labels=list(range(classes)))
    )


class Lengths(nn.Module):
    """Says how many tokens a text has, and how many its batch was padded to."""

    def __init__(self) -> None:
        super().__init__()
        self.padded: list[int] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.padded.append(input_ids.shape[1])
        return torch.stack([attention_mask.sum(1), input_ids[:, 0]], dim=1).float()


def test_predictions_come_in_the_order_of_the_split_although_batches_come_by_length() -> None:
    network, some = Lengths(), texts(50, seed=2)
    lengths = some.store.lengths
    assert lengths is not None
    assert not torch.equal(lengths, lengths.sort().values)
    found = predictions(network, SearchSplit(some), batch_size=8)
    assert isinstance(some.store, FloatStore)
    assert isinstance(some.store.inputs, dict)
    assert torch.equal(found[:, 0], lengths.float())
    assert torch.equal(found[:, 1], some.store.inputs["input_ids"][:, 0].float())
    assert network.padded == sorted(network.padded)  # little padding: one length after another
    assert not found.requires_grad


def test_metrics_pair_each_text_with_its_own_label() -> None:
    some = texts(40, seed=3)
    assert some.store.lengths is not None
    long = (some.store.lengths > 3).long()
    split = SearchSplit(texts(40, seed=3, labels=long))

    def longer_than_three(inputs: Inputs) -> Tensor:
        assert isinstance(inputs, dict)
        return one_hot((inputs["attention_mask"].sum(1) > 3).long(), 2).float()

    assert evaluate(longer_than_three, split, batch_size=8).top1 == 1
    assert evaluate(longer_than_three, split, batch_size=8).f1 == 1


def test_a_session_is_judged_as_its_network_is_and_counts_one_look() -> None:
    network, split = small_cnn().eval(), TestSplit(digits(0, 30))

    def session(inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        return network(inputs).detach()  # type: ignore[no-any-return]  # a module's call

    assert evaluate(session, split, batch_size=7) == evaluate(network, split, batch_size=7)
    assert split.evaluations == 2
    logits = predictions(session, split, batch_size=30)
    assert split.evaluations == 3
    assert evaluation_of(logits, split.labels).top1 == evaluate(session, split).top1


def test_what_a_session_returns_is_checked() -> None:
    with pytest.raises(InputError, match="must return logits"):
        evaluate(lambda _: torch.zeros(3), search_digits(0, 3))


@pytest.mark.parametrize(
    ("labels", "named"), [([0, 2], "from 0 to 2"), ([-1, -1], "from -1 to -1")]
)
def test_labels_that_are_no_class_of_the_network_are_refused(labels: list[int], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        evaluation_of(torch.zeros(2, 2), torch.tensor(labels))
    assert "\n" not in str(caught.value)


def test_samples_without_labels_cannot_be_judged_but_predicted() -> None:
    split = UnlabeledSplit(texts(5, seed=0, labels=torch.full((5,), -1)))
    assert predictions(Lengths(), split).shape == (5, 2)
    with pytest.raises(InputError, match="not known"):
        evaluate(Lengths(), split)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("row", [[NAN, 0.0], [NAN, NAN], [INF, 0.0], [0.0, INF], [-INF, -INF]])
def test_an_answer_that_is_no_number_is_wrong(row: list[float]) -> None:
    """Else all of class 0 would be right: here 9 of 10, and F1 counts a call that was none."""
    labels = torch.tensor([0] * 9 + [1])
    found = evaluation_of(torch.tensor([row] * 10), labels)
    assert (found.top1, found.f1, found.precision, found.recall) == (0, 0, 0, 0)
    assert not math.isfinite(found.loss)
    assert answers(torch.tensor([row])).tolist() == [-1]


def test_one_answer_that_is_no_number_by_hand() -> None:
    # Right: 1, 0. The third is called nothing: it is missed by class 1, called by no class.
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [NAN, 1.0]])
    found = evaluation_of(logits, torch.tensor([1, 0, 1]))
    assert found.top1 == pytest.approx(2 / 3)
    assert (found.precision, found.recall) == (1, 1 / 2)
    assert found.f1 == pytest.approx(2 * 1 / (1 + 2))


def test_a_class_ruled_out_by_minus_infinity_is_an_answer_all_the_same() -> None:
    logits = torch.tensor([[1.0, 0.0, -INF], [0.0, 1.0, -INF]])
    assert answers(logits).tolist() == [0, 1]
    assert evaluation_of(logits, torch.tensor([0, 1])).top1 == 1


def test_classes_of_the_data_decide_what_f1_is() -> None:
    # Called 1: samples 3 and 4; of class 1 are 4 and 5. Class 0: 3 of 4, called 4.
    labels, called = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 0])
    wide = one_hot(called, 3).float()
    assert evaluation_of(wide, labels, classes=2).f1 == pytest.approx(1 / 2)
    assert evaluation_of(wide, labels).f1 == pytest.approx((3 / 4 + 1 / 2) / 2)
    split = SearchSplit(samples(wide, labels, num_classes=2))
    assert evaluate(torch.nn.Identity(), split).f1 == pytest.approx(1 / 2)
