from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.errors import GraphError, InputError
from prunus.train.taught import (
    Reading,
    attention_loss,
    hidden_loss,
    hidden_width,
    matched_layers,
    text_weights,
)
from tests.train.fakes import (
    TEXT_SAMPLE,
    StackNet,
    hooks_of_a_reading,
    settings,
    small_cnn,
    tiny_bert,
)

HIDDEN = settings(distill_hidden=1.0)
BOTH = settings(distill_hidden=1.0, distill_attention=1.0)


@pytest.mark.parametrize(
    ("student", "teacher", "how", "expected"),
    [
        (4, 12, "uniform", [2, 5, 8, 11]),  # TinyBERT-4: every third of BERT-base
        (6, 12, "uniform", [1, 3, 5, 7, 9, 11]),
        (3, 4, "uniform", [1, 2, 3]),  # 4/3 and 8/3, rounded up, counted from 0
        (4, 2, "uniform", [0, 0, 1, 1]),
        (2, 2, "uniform", [0, 1]),
        (3, 12, "last", [9, 10, 11]),
        (4, 2, "last", [0, 0, 0, 1]),
        (2, 2, "last", [0, 1]),
    ],
)
def test_matched_layers_by_hand(student: int, teacher: int, how: str, expected: list[int]) -> None:
    assert matched_layers(student, teacher, how) == expected


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from(["uniform", "last"]))
def test_layers_are_matched_in_order_and_the_last_with_the_last(
    student: int, teacher: int, how: str
) -> None:
    found = matched_layers(student, teacher, how)
    assert len(found) == student
    assert found == sorted(found)
    assert found[0] >= 0
    assert found[-1] == teacher - 1


def test_an_unknown_way_to_match_layers_is_refused() -> None:
    with pytest.raises(InputError, match=r"how='first' must be 'uniform' or 'last'"):
        matched_layers(2, 6, "first")


def test_hidden_loss_by_hand() -> None:
    # One text of two tokens, width 2, two layers compared with layers 0 and 2 of the teacher.
    mine = [torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])]
    theirs = [torch.zeros(1, 2, 2), torch.full((1, 2, 2), 99.0), torch.ones(1, 2, 2)]
    first = (1 + 4 + 0 + 0) / 4
    second = (4 + 1 + 1 + 0) / 4
    found = hidden_loss(mine, theirs, [0, 2], nn.Identity(), torch.ones(1, 2))
    assert found.item() == pytest.approx((first + second) / 2)


def test_hidden_loss_through_a_projection_by_hand() -> None:
    # State 2 of width 1, projected by (1, -1) to (2, -2); the teacher says (1, 1).
    project = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        project.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    found = hidden_loss(
        [torch.full((1, 1, 1), 2.0)], [torch.ones(1, 1, 2)], [0], project, torch.ones(1, 1)
    )
    assert found.item() == pytest.approx((1 + 9) / 2)
    torch.autograd.backward(found)
    assert project.weight.grad is not None
    # d/dw of ((2 w - 1)^2) / 2 = 2 (2 w - 1)
    torch.testing.assert_close(project.weight.grad, torch.tensor([[2.0], [-6.0]]))


def test_every_token_of_the_texts_counts_the_same() -> None:
    # Three tokens of one text and one of the other, squared distances 1, 1, 1 and 9.
    mine = torch.ones(2, 3, 1)
    mine[1, 0] = 3
    mine[1, 1:] = 77
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    found = hidden_loss([mine], [torch.zeros(2, 3, 1)], [0], nn.Identity(), mask)
    assert found.item() == pytest.approx((1 + 1 + 1 + 9) / 4)


@given(st.integers(0, 2**31), st.floats(-1e3, 1e3))
def test_padding_does_not_count(seed: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 5, (3,), generator=generator)
    mask = (torch.arange(5) < lengths.unsqueeze(1)).float()
    states = [torch.randn(3, 5, 2, generator=generator) for _ in range(2)]
    attention = [torch.rand(3, 2, 5, 5, generator=generator) for _ in range(2)]
    off = mask == 0
    noisy, pairs = states[0].clone(), attention[0].clone()
    noisy[off] += noise
    pairs.transpose(1, 2)[off] += noise  # rows, then columns
    pairs.permute(0, 3, 1, 2)[off] += noise
    plain = hidden_loss(states[:1], states[1:], [0], nn.Identity(), mask)
    assert torch.equal(hidden_loss([noisy], states[1:], [0], nn.Identity(), mask), plain)
    plain = attention_loss(attention[:1], attention[1:], [0], mask)
    assert torch.equal(attention_loss([pairs], attention[1:], [0], mask), plain)


def test_attention_loss_by_hand() -> None:
    # Two heads over two tokens: the first differs by 1/2 in one row, the second not at all.
    mine = torch.tensor([[[[0.5, 0.5], [0.9, 0.1]], [[0.3, 0.7], [0.2, 0.8]]]])
    theirs = torch.tensor([[[[1.0, 0.0], [0.9, 0.1]], [[0.3, 0.7], [0.2, 0.8]]]])
    found = attention_loss([mine], [theirs], [0], torch.ones(1, 2))
    assert found.item() == pytest.approx((0.25 + 0.25) / (4 * 2))
    # The second token is padding: one pair is left in each head.
    found = attention_loss([mine], [theirs], [0], torch.tensor([[1.0, 0.0]]))
    assert found.item() == pytest.approx(0.25 / 2)


def test_no_gradient_reaches_the_teacher() -> None:
    theirs = torch.ones(1, 1, 1, 1, requires_grad=True)
    mine = torch.zeros(1, 1, 1, 1, requires_grad=True)
    loss = attention_loss([mine], [theirs], [0], torch.ones(1, 1))
    loss = loss + hidden_loss([mine[0]], [theirs[0]], [0], nn.Identity(), torch.ones(1, 1))
    torch.autograd.backward(loss)
    assert theirs.grad is None
    assert mine.grad is not None


def test_weights_are_the_mask_or_ones() -> None:
    states = torch.zeros(2, 3, 4, dtype=torch.float64)
    found = text_weights(TEXT_SAMPLE, states)
    assert found.dtype == torch.float64
    assert found.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert torch.equal(text_weights(torch.zeros(2, 9), states), torch.ones(2, 3).double())


def test_hidden_states_and_attention_are_those_that_transformers_reports() -> None:
    network = tiny_bert(layers=3)
    reading = Reading(network, BOTH)
    with reading.open(), torch.no_grad():
        logits, states, attention = reading.call(TEXT_SAMPLE)
    with torch.no_grad():
        told = network(**TEXT_SAMPLE, output_hidden_states=True, output_attentions=True)
    assert torch.equal(logits, told.logits)
    assert len(states) == len(attention) == 3
    # The first that transformers reports are the embeddings.
    assert all(torch.equal(a, b) for a, b in zip(states, told.hidden_states[1:], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(attention, told.attentions, strict=True))


def test_hooks_are_gone_after_reading_and_after_a_failure() -> None:
    network = StackNet(4, 2, seed=0)
    reading = Reading(network, HIDDEN)
    assert hidden_width(reading, TEXT_SAMPLE) == 4
    with pytest.raises(KeyError), reading.open():
        raise KeyError
    assert not hooks_of_a_reading(network)


def test_a_second_call_starts_anew() -> None:
    reading = Reading(StackNet(4, 3, seed=0), HIDDEN)
    with reading.open():
        reading.call(TEXT_SAMPLE)
        assert len(reading.call(TEXT_SAMPLE)[1]) == 3


def test_network_without_a_stack_is_named() -> None:
    with pytest.raises(GraphError, match="Sequential has none"):
        Reading(small_cnn(), HIDDEN)


def test_attention_that_is_not_computed_is_refused_with_the_remedy() -> None:
    reading = Reading(tiny_bert("sdpa"), BOTH)
    with pytest.raises(InputError, match="attn_implementation='eager'"), reading.open():
        reading.call(TEXT_SAMPLE)


def test_network_that_cannot_return_attention_is_named() -> None:
    reading = Reading(StackNet(4, 2, seed=0), BOTH)
    with pytest.raises(InputError, match="StackNet takes no 'output_attentions'"), reading.open():
        reading.call(TEXT_SAMPLE)


def test_a_type_error_of_the_networks_own_is_not_hidden() -> None:
    class Broken(StackNet):
        """Fails for a reason of its own."""

        def forward(self, *_: Any, **__: Any) -> Any:
            raise TypeError("a mistake inside")

    reading = Reading(Broken(4, 2, seed=0), BOTH)
    with pytest.raises(TypeError, match="a mistake inside"), reading.open():
        reading.call(TEXT_SAMPLE)


def test_other_numbers_of_heads_are_refused() -> None:
    with pytest.raises(InputError, match="student has 2 heads, the teacher 4"):
        attention_loss([torch.zeros(1, 2, 3, 3)], [torch.zeros(1, 4, 3, 3)], [0], torch.ones(1, 3))


@pytest.mark.parametrize("turn", [(1, 0, 2), None], ids=["length first", "no length"])
def test_states_of_another_form_are_refused(turn: tuple[int, ...] | None) -> None:
    class Turned(nn.Module):
        """A layer that returns something else than [batch, length, width]."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return x.permute(*turn) if turn else x.mean(dim=1)

    network = StackNet(4, 2, seed=0)
    network.layers = nn.ModuleList([Turned(), Turned()] if turn else [Turned()] * 2)
    reading = Reading(_Quiet(network), HIDDEN)
    with pytest.raises(InputError, match=r"not \[batch, length, width\]"):
        hidden_width(reading, TEXT_SAMPLE)


class _Quiet(nn.Module):
    """Runs the first layer of a stack alone, and answers zeros."""

    def __init__(self, network: StackNet) -> None:
        super().__init__()
        self.embedding, self.layers = network.embedding, network.layers

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.layers[0](self.embedding(input_ids))
        return attention_mask.new_zeros(len(input_ids), 2).float()
