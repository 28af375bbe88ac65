"""Distillations that cannot be are refused before anything is trained."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from prunus.data import UnlabeledSplit
from prunus.errors import PrunusError
from prunus.train import TrainConfig, fit
from tests.train.fakes import (
    FloatStore,
    StackNet,
    Steps,
    hooks_of_a_reading,
    same_state,
    tiny_bert,
)
from tests.train.teaching import (
    PROBED,
    Asked,
    layered_splits,
    mlp,
    points,
    searched,
    sure_teacher,
    taught,
    unlabeled,
)


def test_checkpoint_with_other_unlabeled_samples_or_teacher_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"

    def run(teacher: nn.Module, more: UnlabeledSplit | None) -> None:
        fit(
            mlp(0), points(40, 0), searched(20, 2), taught(epochs=1), seed=0,
            teacher=teacher, unlabeled=more, checkpoint=path,
        )  # fmt: skip

    run(sure_teacher(), unlabeled(20, 1))
    for more, named in (
        (unlabeled(20, 2), "data"),
        (unlabeled(21, 1), "samples"),
        (None, "samples"),
    ):
        with pytest.raises(PrunusError, match=f"unlabeled {named}"):
            run(sure_teacher(), more)
    with pytest.raises(PrunusError, match="teacher weights"):
        run(mlp(5), unlabeled(20, 1))


class Mean(nn.Module):
    """Answers texts without any stack of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        del attention_mask
        return SimpleNamespace(logits=self.embedding(input_ids).mean(dim=1))


@pytest.mark.parametrize(
    ("student", "teacher", "changes", "named"),
    [
        (StackNet(4, 2, seed=0), Mean(), {"distill_hidden": 1.0}, "Mean has none"),
        (Mean(), StackNet(4, 2, seed=0), {"distill_hidden": 1.0}, "Mean has none"),
        (StackNet(4, 2, seed=0), StackNet(4, 2, seed=1), {"distill_attention": 1.0}, "takes no"),
    ],
    ids=["teacher without stack", "student without stack", "no attention"],
)
def test_layers_that_cannot_be_compared_are_refused_before_training(
    student: nn.Module, teacher: nn.Module, changes: dict[str, object], named: str
) -> None:
    refused(student, teacher, taught(**changes), named)


@pytest.mark.parametrize(
    ("attention", "heads", "named"),
    [("eager", 4, "4 heads, the teacher 2"), ("sdpa", 2, "attn_implementation='eager'")],
)
def test_attention_that_cannot_be_compared_is_refused_before_training(
    attention: str, heads: int, named: str
) -> None:
    config = taught(distill_attention=1.0)
    refused(tiny_bert(attention, heads=heads), tiny_bert(), config, named)


def refused(student: nn.Module, teacher: nn.Module, config: TrainConfig, named: str) -> None:
    """In one line, with nothing trained and nothing left behind."""
    train, search, _ = layered_splits()
    before, steps = copy.deepcopy(student), Steps()
    flags = [module.training for module in student.modules()]
    with pytest.raises(PrunusError, match=named) as caught:
        fit(student, train, search, config, seed=0, teacher=teacher, progress=steps)
    assert "\n" not in str(caught.value)
    assert steps.total == 0
    assert same_state(student, before)
    assert [module.training for module in student.modules()] == flags
    assert not hooks_of_a_reading(student)
    assert not hooks_of_a_reading(teacher)


def test_teacher_of_other_classes_is_refused_before_it_sees_all_samples() -> None:
    teacher = Asked(mlp(1, classes=3))
    with pytest.raises(PrunusError, match="same classes"):
        fit(mlp(0), points(70, 0), searched(20, 2), taught(), seed=0, teacher=teacher)
    assert len(teacher.rows) == PROBED


def test_samples_without_labels_need_the_teachers_logits() -> None:
    train, search, more = layered_splits()
    config = taught(distill_alpha=0, distill_hidden=1.0)
    with pytest.raises(PrunusError, match="set distill_alpha"):
        fit(
            StackNet(4, 2, seed=0), train, search, config, seed=0,
            teacher=StackNet(4, 2, seed=1), unlabeled=more,
        )  # fmt: skip


def test_only_a_split_without_labels_is_taken_for_one() -> None:
    search = searched(20, 2)
    with pytest.raises(PrunusError, match="unlabeled is a search split"):
        fit(
            mlp(0), points(40, 0), search, taught(), seed=0, teacher=sure_teacher(),
            unlabeled=search,  # type: ignore[arg-type]  # so
        )  # fmt: skip
    assert isinstance(search.samples.store, FloatStore)
    assert search.samples.store.sizes == []


@pytest.mark.parametrize(
    "made",
    [
        lambda student: nn.Sequential(*student),
        copy.copy,
        lambda student: nn.Sequential(nn.Linear(20, 32), nn.ReLU(), student[2]),
        lambda student: nn.Sequential(nn.Linear(20, 32), nn.ReLU(), viewed(student[2:])),
    ],
    ids=["rebuilt of its layers", "shallow copy", "one layer", "view"],
)
def test_a_teacher_that_the_training_would_change_is_refused(
    made: Callable[[nn.Sequential], nn.Module],
) -> None:
    student = mlp(0)
    teacher, before, steps = made(student), copy.deepcopy(student), Steps()
    with pytest.raises(PrunusError, match=r"teacher shares '\d(\.weight)?' .*deepcopy") as caught:
        fit(
            student, points(40, 0), searched(20, 2), taught(), seed=0, teacher=teacher,
            progress=steps,
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert steps.total == 0
    assert same_state(student, before)


def viewed(layers: nn.Module) -> nn.Module:
    """Copies whose parameters are others, in the same memory."""
    found = copy.deepcopy(layers)
    for name, parameter in layers.named_parameters():
        found.get_parameter(name).data = parameter.data.view(parameter.shape)
    return found


def test_a_teacher_with_a_frozen_batch_norm_of_the_student_is_refused() -> None:
    """Its statistics would move: it is in train mode with the student."""
    first = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32)).requires_grad_(False)
    student, teacher = (nn.Sequential(first, nn.Linear(32, 2)) for _ in range(2))
    with pytest.raises(PrunusError, match="teacher shares '0' with the network"):
        fit(student, points(40, 0), searched(20, 2), taught(), seed=0, teacher=teacher)


def test_a_teacher_may_share_frozen_parameters_and_what_has_no_state() -> None:
    student = mlp(0)
    student[0].requires_grad_(False)
    first = nn.Linear(20, 32)
    first.weight, first.bias = student[0].weight, student[0].bias  # type: ignore[assignment]  # are
    teacher = nn.Sequential(first, student[1], nn.Linear(32, 2))
    before = copy.deepcopy(teacher)
    fit(student, points(40, 0), searched(20, 2), taught(epochs=1), seed=0, teacher=teacher)
    assert same_state(teacher, before)
    assert not torch.equal(student.get_parameter("2.weight"), mlp(0).get_parameter("2.weight"))
