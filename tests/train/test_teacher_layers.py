"""Layers of a student that learn from those of its teacher, through a projection or not."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunus.train import fit
from prunus.train.teacher import Teaching
from tests.train.fakes import (
    TEXT_SAMPLE,
    StackNet,
    same_state,
    settings,
    tiny_bert,
)
from tests.train.teaching import CPU, PLAIN, layered_splits, taught, teaching


@pytest.mark.parametrize("how", ["uniform", "last"])
def test_loss_between_layers_is_that_of_the_states_that_transformers_reports(how: str) -> None:
    student, teacher = tiny_bert(layers=2), tiny_bert(layers=4)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.1)
    config = taught(distill_alpha=0, distill_hidden=0.5, distill_attention=2.0, distill_layers=how)
    labels = torch.tensor([0, 1])
    found = teaching(student, teacher, config).loss(TEXT_SAMPLE, labels, torch.arange(2), "train")
    with torch.no_grad():
        mine, theirs = (
            net(**TEXT_SAMPLE, output_hidden_states=True, output_attentions=True)
            for net in (student, teacher)
        )
    at = [1, 3] if how == "uniform" else [2, 3]
    hidden, attention = [], []
    for own, other in enumerate(at):
        # Text 0 has 3 tokens, text 1 has 2: their states and pairs, cut out by hand.
        states = mine.hidden_states[own + 1] - theirs.hidden_states[other + 1]
        hidden.append(torch.cat([states[0], states[1, :2]]).square().mean())
        pairs = mine.attentions[own] - theirs.attentions[other]
        cut = torch.cat([pairs[0].flatten(), pairs[1, :, :2, :2].flatten()])
        attention.append(cut.square().mean())
    expected = cross_entropy(mine.logits, labels)
    expected = expected + 0.5 * torch.stack(hidden).mean() + 2 * torch.stack(attention).mean()
    torch.testing.assert_close(found, expected)
    assert torch.stack(attention).mean() > 1e-4


def test_hidden_states_of_the_teacher_are_learned_through_a_projection() -> None:
    train, search, _ = layered_splits()
    teacher, twin = StackNet(8, 4, seed=1), StackNet(8, 4, seed=1)
    student = StackNet(4, 2, seed=0)
    config = taught(distill_alpha=0, distill_hidden=10.0, epochs=30, optimizer="adamw", lr=0.02)
    result = fit(student, train, search, config, seed=0, teacher=teacher)
    losses = [point.values["train_loss"] for point in result.history]
    assert losses[-1] < losses[0] / 2
    assert student.state_dict().keys() == StackNet(4, 2, seed=0).state_dict().keys()
    assert same_state(teacher, twin)
    assert teacher.training


def test_attention_of_the_teacher_is_learned() -> None:
    train, search, _ = layered_splits()
    teacher, student = tiny_bert(), tiny_bert()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.5)
    config = taught(distill_alpha=0, distill_attention=100.0, epochs=10, optimizer="adamw", lr=0.02)
    result = fit(student, train, search, config, seed=0, teacher=teacher)
    losses = [point.values["train_loss"] for point in result.history]
    assert losses[-1] < 0.8 * losses[0]


def test_the_projection_is_of_the_seed_alone() -> None:
    drawn = []
    for seed, before in ((0, 1), (0, 2), (1, 1)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(before)
            found = Teaching(
                StackNet(4, 2, seed=0),
                StackNet(8, 2, seed=1),
                taught(distill_hidden=1.0),
                PLAIN,
                CPU,
            )
            state = torch.get_rng_state()
            found.prepare(TEXT_SAMPLE, [], seed)
            assert torch.equal(torch.get_rng_state(), state)
        drawn.append(found.projection.state_dict()["weight"])
    assert drawn[0].shape == (8, 4)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_no_projection_where_widths_agree() -> None:
    found = teaching(StackNet(8, 2, seed=0), StackNet(8, 4, seed=1), taught(distill_hidden=1.0))
    assert isinstance(found.projection, nn.Identity)


def test_clipping_bounds_the_projections_step_too() -> None:
    # Plain SGD at lr 1 moves all that is trained, together, by no more than the clipped norm.
    train, search, _ = layered_splits()
    student = StackNet(4, 2, seed=0)
    config = taught(
        distill_hidden=1e4, grad_clip=0.01, lr=1.0, epochs=1, batch_size=70, momentum=0,
        weight_decay=0, warmup_fraction=0,
    )  # fmt: skip
    moved: list[float] = []
    before = nn.utils.parameters_to_vector(StackNet(4, 2, seed=0).parameters())

    def measure(module: nn.Module) -> None:
        moved.append((nn.utils.parameters_to_vector(module.parameters()) - before).norm().item())

    fit(student, train, search, config, seed=0, teacher=StackNet(8, 2, seed=1), after_step=measure)
    # The student's share of the gradient is less than the whole.
    assert 0 < moved[0] < 0.01 * (1 - 1e-3)


def test_teacher_of_other_classes_may_teach_its_layers() -> None:
    train, search, _ = layered_splits()
    teacher = StackNet(8, 2, seed=1)
    teacher.head = nn.Linear(8, 5)
    config = taught(distill_alpha=0, distill_hidden=1.0, epochs=1)
    assert fit(StackNet(4, 2, seed=0), train, search, config, seed=0, teacher=teacher).history


@pytest.mark.parametrize("how", ["uniform", "last"])
def test_the_only_layer_of_a_student_learns_from_the_teachers_last(how: str) -> None:
    student, teacher = StackNet(4, 1, seed=0), StackNet(4, 3, seed=1)
    config = settings(distill_hidden=1.0, distill_layers=how)
    teaching = Teaching(student, teacher.eval(), config, PLAIN, CPU)
    teaching.prepare(TEXT_SAMPLE, [], seed=0)
    labels = torch.tensor([0, 1])
    found = teaching.loss(TEXT_SAMPLE, labels, torch.arange(2), "train")
    mine = student.layers[0](student.embedding(TEXT_SAMPLE["input_ids"]))
    theirs = teacher.embedding(TEXT_SAMPLE["input_ids"])
    for layer in teacher.layers:
        theirs = layer(theirs)
    known = TEXT_SAMPLE["attention_mask"] == 1
    distance = (mine - theirs)[known].square().mean()
    expected = cross_entropy(student(**TEXT_SAMPLE).logits, labels) + distance
    torch.testing.assert_close(found, expected)
