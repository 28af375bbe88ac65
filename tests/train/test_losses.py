import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.errors import InputError
from prunus.train import classification_loss, distillation_loss, teacher_loss

LN3 = math.log(3)


def test_label_smoothing_by_hand() -> None:
    # softmax(ln 3, 0) = (3/4, 1/4); label 0, e = 0.2, K = 2:
    # 0.8 * ln(4/3) + 0.1 * (ln(4/3) + ln 4)
    logits, labels = torch.tensor([[LN3, 0.0]]), torch.tensor([0])
    expected = 0.8 * math.log(4 / 3) + 0.1 * (math.log(4 / 3) + math.log(4))
    assert classification_loss(logits, labels, label_smoothing=0.2).item() == pytest.approx(
        expected
    )
    assert classification_loss(logits, labels).item() == pytest.approx(math.log(4 / 3))


def test_distillation_by_hand() -> None:
    # T = 2, logits 2 * (ln 3, 0) of the teacher: (3/4, 1/4) after softening; the student's
    # (0, 0): (1/2, 1/2). KL(teacher || student) = 3/4 ln(3/2) + 1/4 ln(1/2).
    teacher = torch.tensor([[2 * LN3, 0.0]] * 3)
    student, labels = torch.zeros(3, 2), torch.tensor([0, 1, 1])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    expected = 0.9 * 4 * divergence + 0.1 * math.log(2)
    loss = distillation_loss(student, teacher, labels, alpha=0.9, temperature=2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_labels_are_smoothed_beside_a_teacher_too() -> None:
    # Student and teacher agree on (3/4, 1/4), so that the labels alone cost; e = 0.2 as above.
    logits = torch.tensor([[LN3, 0.0]])
    hard = 0.8 * math.log(4 / 3) + 0.1 * (math.log(4 / 3) + math.log(4))
    loss = distillation_loss(
        logits, logits, torch.tensor([0]), alpha=0.9, temperature=2.0, label_smoothing=0.2
    )
    assert loss.item() == pytest.approx(0.1 * hard, rel=1e-5)


def test_squared_differences_of_logits_by_hand() -> None:
    # (1 + 4) and (9 + 0), mean over two samples: 7; temperature and labels play no part.
    student = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    teacher = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    for temperature in (1.0, 4.0):
        found = teacher_loss(student, teacher, temperature=temperature, kind="mse")
        assert found.item() == 7.0
    # Mixed with the cross-entropy of labels 1 and 0: ln(1 + e^-1) and ln(1 + e^-2).
    hard = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2
    found = distillation_loss(
        student, teacher, torch.tensor([1, 0]), alpha=0.25, temperature=9.0, kind="mse"
    )
    assert found.item() == pytest.approx(0.25 * 7 + 0.75 * hard, rel=1e-6)


@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_a_student_as_good_as_its_teacher_has_nothing_to_learn(kind: Literal["kl", "mse"]) -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = teacher_loss(logits, logits.detach(), temperature=2.0, kind=kind)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_divergence_is_from_teacher_to_student() -> None:
    # KL(uniform || (3/4, 1/4)) = 1/2 ln(2/3) + 1/2 ln 2 differs from the reverse above.
    student, teacher = torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2)
    expected = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    loss = distillation_loss(student, teacher, torch.tensor([0]), alpha=1.0, temperature=1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 1000), st.floats(0.5, 8))
def test_a_perfect_student_pays_for_labels_alone(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(5, 4, generator=generator)
    labels = torch.randint(4, (5,), generator=generator)
    loss = distillation_loss(logits, logits, labels, alpha=0.7, temperature=temperature)
    assert loss.item() == pytest.approx(0.3 * classification_loss(logits, labels).item(), abs=1e-4)


def test_gradient_of_the_soft_part_keeps_its_size_at_high_temperature() -> None:
    # Hinton et al., eq. 4: for T much larger than the (zero-mean) logits, dC/dz = (z - v) / (N T^2),
    # so with the factor T^2 the gradient is (z - v) / N whatever T.
    student = torch.tensor([[0.3, -0.1, -0.2]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[-0.4, 0.1, 0.3]], dtype=torch.float64)
    for temperature in (100.0, 1000.0):
        loss = distillation_loss(
            student, teacher, torch.tensor([0]), alpha=1.0, temperature=temperature
        )
        (gradient,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(gradient, (student - teacher) / 3, rtol=1e-2, atol=1e-3)


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([0, 1, 2, 3])
    found = classification_loss(logits, labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, classification_loss(logits.float(), labels))


def test_other_classes_are_refused() -> None:
    with pytest.raises(InputError, match="same classes"):
        distillation_loss(
            torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2).long(), alpha=0.5, temperature=1
        )
