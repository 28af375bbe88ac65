"""Distillation inside a training: what the teacher says, when it is asked, and what is kept."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from prunus.data import SearchSplit, TrainSplit, UnlabeledSplit
from prunus.errors import PrunusError
from prunus.train import Execution, TrainConfig, fit
from prunus.train.checkpoint import teacher_digest
from prunus.train.teacher import Teaching
from tests.train.fakes import (
    TEXT_SAMPLE,
    FloatStore,
    StackNet,
    Steps,
    hooks_of_a_reading,
    inputs_of,
    same_state,
    samples,
    search_digits,
    settings,
    small_cnn,
    texts,
    tiny_bert,
    train_digits,
)

CPU = torch.device("cpu")
PLAIN = Execution("float32", "contiguous")
PROBED = 2
"""Samples on which student and teacher are compared before the training."""


def taught(**changes: object) -> TrainConfig:
    return settings(**{"distill_alpha": 0.5, "augment": False, "epochs": 3, **changes})


def points(count: int, seed: int, labels: Tensor | None = None, classes: int = 2) -> TrainSplit:
    """Samples of 20 features; whether the sum of the first three is positive is the class."""
    values = torch.randn(count, 20, generator=torch.Generator().manual_seed(seed))
    if labels is None:
        labels = (values[:, :3].sum(1) > 0).long()
    return TrainSplit(samples(values, labels, num_classes=classes))


def unlabeled(count: int, seed: int) -> UnlabeledSplit:
    return UnlabeledSplit(points(count, seed, torch.full((count,), -1)).samples)


def searched(count: int, seed: int) -> SearchSplit:
    return SearchSplit(points(count, seed).samples)


def mlp(seed: int, classes: int = 2) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, classes))


def sure_teacher() -> nn.Linear:
    """Knows the rule of ``points``."""
    teacher = nn.Linear(20, 2)
    with torch.no_grad():
        teacher.bias.zero_()
        teacher.weight.zero_()
        teacher.weight[1, :3] = 3
        teacher.weight[0, :3] = -3
    return teacher


class Asked(nn.Module):
    """Keeps what it is asked, in the order of the questions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.rows: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows += list(x)
        out: Tensor = self.network(x)
        return out


# -- the teacher's logits -----------------------------------------------------------------------


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


# -- logits kept in a folder --------------------------------------------------------------------


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


# -- samples without labels ---------------------------------------------------------------------


def teaching(student: nn.Module, teacher: nn.Module, config: TrainConfig) -> Teaching:
    """Ready to be asked for a loss, on texts where there are layers."""
    found = Teaching(student, teacher.eval(), config, PLAIN, CPU)
    sample = TEXT_SAMPLE if config.teaches_layers else torch.zeros(2, 20)
    found.prepare(sample, [], seed=0)
    return found


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


# -- layers -------------------------------------------------------------------------------------


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


def layered_splits() -> tuple[TrainSplit, SearchSplit, UnlabeledSplit]:
    none = torch.full((40,), -1)
    return (
        TrainSplit(texts(70, seed=0)),
        SearchSplit(texts(40, seed=1)),
        UnlabeledSplit(texts(40, seed=2, labels=none)),
    )


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


# -- resumption ---------------------------------------------------------------------------------


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


# -- refusals -----------------------------------------------------------------------------------


def no_stack() -> tuple[nn.Module, nn.Module]:
    return StackNet(4, 2, seed=0), Mean()


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


def test_teacher_of_other_classes_may_teach_its_layers() -> None:
    train, search, _ = layered_splits()
    teacher = StackNet(8, 2, seed=1)
    teacher.head = nn.Linear(8, 5)
    config = taught(distill_alpha=0, distill_hidden=1.0, epochs=1)
    assert fit(StackNet(4, 2, seed=0), train, search, config, seed=0, teacher=teacher).history


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


def test_batch_norm_of_the_student_is_not_moved_by_the_comparison() -> None:
    student, twin = small_cnn(), small_cnn()
    found = Teaching(student, small_cnn(seed=1).eval(), taught(), PLAIN, CPU)
    found.prepare(next(iter(train_digits(0, 2).batches(2)))[0], [], seed=0)
    assert same_state(student, twin)
    assert student.training


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


def test_images_are_distilled_with_what_is_known_of_them() -> None:
    student, teacher = small_cnn(), small_cnn(seed=4)
    config = taught(distill_alpha=1.0, epochs=4, lr=0.1)
    first = fit(
        student, train_digits(0, 300), search_digits(300, 400), config, seed=0, teacher=teacher
    )
    losses = [point.values["train_loss"] for point in first.history]
    assert losses[-1] < losses[0]
