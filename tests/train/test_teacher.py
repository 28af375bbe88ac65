"""The teacher's logits in a training: what they are, when it is asked, and what is kept."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from prunus.data import SearchSplit, TrainSplit
from prunus.errors import PrunusError
from prunus.train import Execution, fit
from prunus.train.checkpoint import teacher_digest
from prunus.train.teacher import Teaching
from tests.train.fakes import (
    TEXT_SAMPLE,
    FloatStore,
    StackNet,
    Steps,
    inputs_of,
    same_state,
    search_digits,
    small_cnn,
    texts,
    train_digits,
)
from tests.train.teaching import (
    CPU,
    PLAIN,
    PROBED,
    Asked,
    layered_splits,
    mlp,
    points,
    searched,
    sure_teacher,
    taught,
    teaching,
    unlabeled,
)


def test_cached_teacher_sees_every_sample_once() -> None:
    train, more = points(70, 0), unlabeled(50, 1)
    teacher = Asked(sure_teacher())
    fit(mlp(0), train, searched(20, 2), taught(), seed=0, teacher=teacher, unlabeled=more)
    seen = torch.stack(teacher.rows[PROBED:])
    assert torch.equal(seen, torch.cat([inputs_of(train), inputs_of(more)]))


def test_without_a_cache_it_is_asked_in_every_epoch() -> None:
    teacher = Asked(sure_teacher())
    config = taught(cache_teacher=False)
    fit(mlp(0), points(70, 0), searched(20, 2), config, seed=0, teacher=teacher)
    assert len(teacher.rows) == PROBED + 3 * 70


def test_augmented_samples_are_shown_to_the_teacher_as_the_student_sees_them() -> None:
    student, teacher = Asked(mlp(0)), Asked(sure_teacher())
    search = searched(20, 2)
    config = taught(augment=True, epochs=1)
    fit(student, points(64, 0), search, config, seed=0, teacher=teacher)
    assert len(teacher.rows) == PROBED + 64
    assert torch.equal(
        torch.stack(teacher.rows[PROBED:]), torch.stack(student.rows[PROBED : PROBED + 64])
    )


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_cached_and_uncached_teachers_teach_the_same(loss: str) -> None:
    trained = []
    for cache in (True, False):
        student = mlp(0)
        config = taught(cache_teacher=cache, distill_loss=loss, lr=0.01, distill_temperature=2.0)
        fit(
            student, points(70, 0), searched(20, 2), config, seed=0,
            teacher=sure_teacher(), unlabeled=unlabeled(50, 1),
        )  # fmt: skip
        trained.append(nn.utils.parameters_to_vector(student.parameters()))
    assert (trained[0] - trained[1]).abs().max() < 1e-6
    assert (trained[0] - nn.utils.parameters_to_vector(mlp(0).parameters())).abs().max() > 1e-3


def test_cached_logits_are_those_of_the_right_texts() -> None:
    # Texts come by length, in another order when cached than when trained on.
    trained = []
    for cache in (True, False):
        student = StackNet(4, 2, seed=0)
        config = taught(cache_teacher=cache, distill_alpha=1.0, batch_size=8)
        fit(
            student, TrainSplit(texts(60, seed=0)), SearchSplit(texts(10, seed=1)), config, seed=0,
            teacher=StackNet(8, 3, seed=1),
        )  # fmt: skip
        trained.append(nn.utils.parameters_to_vector(student.parameters()))
    assert (trained[0] - trained[1]).abs().max() < 1e-6


def distil(store: Path, teacher: nn.Module, **changes: object) -> nn.Module:
    student = mlp(0)
    fit(
        student, points(40, 0), searched(20, 2), taught(**changes), seed=0,
        teacher=teacher, teacher_store=store,
    )  # fmt: skip
    return student


def test_another_training_finds_the_logits_of_the_first(tmp_path: Path) -> None:
    first = distil(tmp_path / "teacher", Asked(sure_teacher()))
    (file,) = (tmp_path / "teacher").iterdir()
    teacher = Asked(sure_teacher())
    second = distil(tmp_path / "teacher", teacher)
    assert len(teacher.rows) == PROBED
    assert same_state(first, second)
    assert [found.name for found in (tmp_path / "teacher").iterdir()] == [file.name]


def test_other_weights_samples_and_precisions_have_logits_of_their_own() -> None:
    teacher, other = sure_teacher(), sure_teacher()
    with torch.no_grad():
        other.bias[0] = 1e-6
    coarse = Execution("bfloat16", "contiguous")
    found = [
        teacher_digest(teacher, points(40, 0), PLAIN),
        teacher_digest(other, points(40, 0), PLAIN),
        teacher_digest(teacher, points(40, 1), PLAIN),
        teacher_digest(teacher, points(39, 0), PLAIN),
        teacher_digest(teacher, points(40, 0), coarse),
        teacher_digest(nn.Sequential(teacher), points(40, 0), PLAIN),
    ]
    assert len(set(found)) == len(found)
    assert found[0] == teacher_digest(sure_teacher(), points(40, 0), PLAIN)


def test_networks_that_differ_in_no_weight_have_logits_of_their_own() -> None:
    one, other = (nn.Sequential(sure_teacher(), nn.LeakyReLU(slope)) for slope in (0.1, 0.2))
    split = points(4, 0)
    assert teacher_digest(one, split, PLAIN) != teacher_digest(other, split, PLAIN)


def test_a_damaged_file_of_logits_is_named(tmp_path: Path) -> None:
    distil(tmp_path, sure_teacher())
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(PrunusError, match="delete the file") as caught:
        distil(tmp_path, sure_teacher())
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Hinton et al., written out."""
    theirs = (teacher / temperature).softmax(1)
    mine = (student / temperature).log_softmax(1)
    return temperature**2 * kl_div(mine, theirs, reduction="batchmean")


def test_without_labels_the_teacher_alone_counts() -> None:
    student, teacher = mlp(0), sure_teacher()
    inputs = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    config = taught(distill_alpha=0.7, distill_temperature=3.0, label_smoothing=0.3)
    found = teaching(student, teacher, config).loss(inputs, None, torch.arange(6), "unlabeled")
    expected = 0.7 * soft_loss(student(inputs), teacher(inputs), 3.0)
    torch.testing.assert_close(found, expected)


def smoothed_loss(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """Szegedy et al., written out."""
    logs = logits.log_softmax(1)
    right = logs.gather(1, labels.unsqueeze(1)).squeeze(1)
    return -((1 - share) * right + share * logs.mean(1)).mean()


def test_labels_are_smoothed_beside_a_teacher() -> None:
    student, teacher = mlp(0), sure_teacher()
    (inputs, labels) = next(iter(points(6, 0).batches(6)))
    config = taught(distill_alpha=0.7, distill_temperature=3.0, label_smoothing=0.3)
    found = teaching(student, teacher, config).loss(inputs, labels, torch.arange(6), "train")
    soft = soft_loss(student(inputs), teacher(inputs), 3.0)
    expected = 0.7 * soft + 0.3 * smoothed_loss(student(inputs), labels, 0.3)
    torch.testing.assert_close(found, expected)


def test_labels_are_smoothed_where_layers_alone_are_taught() -> None:
    student, labels = StackNet(4, 2, seed=0), torch.tensor([0, 1])
    config = taught(distill_alpha=0, distill_hidden=1.0, label_smoothing=0.3)
    twin = StackNet(4, 2, seed=0)  # whose hidden states are the same
    found = teaching(student, twin, config).loss(TEXT_SAMPLE, labels, torch.arange(2), "train")
    torch.testing.assert_close(found, smoothed_loss(student(**TEXT_SAMPLE).logits, labels, 0.3))


def test_labels_are_smoothed_without_a_teacher() -> None:
    # One batch; the learning rate is too small to move anything.
    train, student, steps = points(30, 0), mlp(0), Steps()
    config = taught(distill_alpha=0, label_smoothing=0.3, lr=1e-30, epochs=1)
    fit(student, train, searched(20, 2), config, seed=0, progress=steps)
    inputs, labels = next(iter(train.batches(30)))
    expected = smoothed_loss(student(inputs), labels, 0.3).item()
    assert steps.losses == pytest.approx([expected], rel=1e-5)


def test_an_epoch_passes_over_both_kinds_of_samples() -> None:
    # One batch of each; the learning rate is too small to move anything.
    train, more, student, teacher = points(30, 0), unlabeled(20, 1), mlp(0), sure_teacher()
    steps = Steps()
    config = taught(distill_alpha=0.8, distill_temperature=2.0, lr=1e-30, epochs=1)
    fit(
        student, train, searched(20, 2), config, seed=0,
        teacher=teacher, unlabeled=more, progress=steps,
    )  # fmt: skip
    (inputs, labels), (others, _) = (next(iter(s.batches(99))) for s in (train, more))
    hard = cross_entropy(student(inputs), labels)
    expected = [
        (0.8 * soft_loss(student(inputs), teacher(inputs), 2.0) + 0.2 * hard).item(),
        (0.8 * soft_loss(student(others), teacher(others), 2.0)).item(),
    ]
    assert sorted(steps.losses) == pytest.approx(sorted(expected), rel=1e-5)


def test_steps_of_both_splits_are_counted_and_read_alike() -> None:
    # 33 samples in batches of 16: 2 steps, the last sample is left out; 40 others: 3 steps.
    train, more, steps = points(33, 0), unlabeled(40, 1), Steps()
    config = taught(batch_size=16, cache_teacher=False)
    fit(
        mlp(0), train, searched(20, 2), config, seed=0,
        teacher=sure_teacher(), unlabeled=more, progress=steps,
    )  # fmt: skip
    assert steps.done == steps.total == len(steps.losses) == 3 * (2 + 3)
    assert isinstance(more.samples.store, FloatStore)
    assert more.samples.store.sizes == [16, 16, 8] * 3


def test_both_kinds_of_batches_are_mixed_and_every_epoch_anew() -> None:
    train, more = points(40, 0), unlabeled(40, 1)
    config = taught(batch_size=4, epochs=2, cache_teacher=False)
    # Without a cache the teacher is asked once a step, in the order of training.
    teacher = Asked(sure_teacher())
    fit(mlp(0), train, searched(4, 2), config, seed=0, teacher=teacher, unlabeled=more)
    labeled = {tuple(row.tolist()) for row in inputs_of(train)}
    turns = [tuple(row.tolist()) in labeled for row in teacher.rows[PROBED::4]]
    first, second = turns[:20], turns[20:]
    assert sum(first) == sum(second) == 10
    assert first != second
    assert first not in ([True] * 10 + [False] * 10, [False] * 10 + [True] * 10)


def test_a_student_learns_more_from_a_teacher_on_samples_without_labels_than_alone() -> None:
    # 40 labels do not tell which 3 of 20 features count; a teacher on 600 samples does. The student
    # alone gets as many steps: 5 epochs of 1 + 10 batches.
    gains = []
    for seed in range(3):
        train, search = points(40, 10 + seed), searched(500, 20 + seed)
        alone, student = mlp(seed), mlp(seed)
        common = {"batch_size": 60, "lr": 0.1}
        own = fit(alone, train, search, taught(distill_alpha=0, epochs=55, **common), seed=seed)
        with_teacher = fit(
            student, train, search, taught(distill_alpha=0.9, epochs=5, **common), seed=seed,
            teacher=sure_teacher(), unlabeled=unlabeled(600, 30 + seed),
        )  # fmt: skip
        gains.append(with_teacher.search_top1 - own.search_top1)
    assert min(gains) > 0.05


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"distill_hidden": 1.0}, True),
        ({"distill_hidden": 1.0, "select": "best", "metric": "f1"}, False),
        ({}, True),
        ({"cache_teacher": False}, True),
    ],
    ids=["hidden and unlabeled", "hidden, best by f1", "unlabeled", "unlabeled, not cached"],
)
def test_resumed_distillation_ends_with_the_same_weights(
    tmp_path: Path, changes: dict[str, object], more: bool
) -> None:
    train, search, others = layered_splits()
    steps_per_epoch = 3 + (2 if more else 0)  # 70 and 40 texts in batches of 32
    config = taught(epochs=4, optimizer="adamw", lr=0.01, **changes)
    path = tmp_path / "training.pt"

    def run(checkpoint: Path | None, steps: Steps) -> tuple[nn.Module, list[dict[str, float]]]:
        student = StackNet(4, 2, seed=0, dropout=0.3)
        result = fit(
            student, train, search, config, seed=3, teacher=StackNet(8, 4, seed=1),
            unlabeled=others if more else None, checkpoint=checkpoint, progress=steps,
        )  # fmt: skip
        return student, [dict(point.values) for point in result.history]

    straight, whole = run(None, Steps())
    with pytest.raises(KeyboardInterrupt):
        run(path, Steps(stop_at=2 * steps_per_epoch + 1))
    kept = torch.load(path, weights_only=True)
    assert len(kept["history"]) == 2
    assert sorted(kept["projection"]) == (["weight"] if "distill_hidden" in changes else [])
    torch.rand(5)  # the global random state does not matter
    rest = Steps()
    resumed, history = run(path, rest)
    assert len(rest.losses) == 2 * steps_per_epoch
    assert same_state(resumed, straight)
    assert history == whole
    again, _ = run(None, Steps())
    assert same_state(again, straight)


def test_batch_norm_of_the_student_is_not_moved_by_the_comparison() -> None:
    student, twin = small_cnn(), small_cnn()
    found = Teaching(student, small_cnn(seed=1).eval(), taught(), PLAIN, CPU)
    found.prepare(next(iter(train_digits(0, 2).batches(2)))[0], [], seed=0)
    assert same_state(student, twin)
    assert student.training


def test_images_are_distilled_with_what_is_known_of_them() -> None:
    student, teacher = small_cnn(), small_cnn(seed=4)
    config = taught(distill_alpha=1.0, epochs=4, lr=0.1)
    first = fit(
        student, train_digits(0, 300), search_digits(300, 400), config, seed=0, teacher=teacher
    )
    losses = [point.values["train_loss"] for point in first.history]
    assert losses[-1] < losses[0]
