import copy
import re

import pytest
import torch
from torch import Tensor, nn

from prunus.data import Samples, SearchSplit, TestSplit, TrainSplit
from prunus.errors import InputError
from prunus.progress import Silent
from prunus.records import HistoryPoint
from prunus.train import Execution, FitResult, evaluate, fit, lr_at
from prunus.train.result import best_epoch
from tests.helpers import KeptTable
from tests.train.fakes import (
    Averaging,
    Steps,
    averaging,
    digits,
    inputs_of,
    same_state,
    samples,
    search_digits,
    settings,
    small_cnn,
    train_digits,
)


def constant_splits() -> tuple[TrainSplit, SearchSplit]:
    """Four times input 1 with label 0 of two classes."""
    one = samples(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64), num_classes=2)
    return TrainSplit(one), SearchSplit(one)


def test_learns_digits() -> None:
    network, search = small_cnn(), search_digits(1200, 1797)
    before = evaluate(network, search).top1
    result = fit(
        network, train_digits(0, 1200), search, settings(epochs=6, lr=0.1, augment=False), seed=0
    )
    assert before < 0.3
    assert result.search_top1 > 0.9
    assert evaluate(network, search).top1 == result.search_top1
    losses = [point.values["train_loss"] for point in result.history]
    assert losses[-1] < losses[0] / 2


def test_adamw_label_smoothing_and_clipping_learn_too() -> None:
    config = settings(
        optimizer="adamw", lr=0.01, label_smoothing=0.1, grad_clip=1.0, epochs=4, augment=False
    )
    result = fit(small_cnn(), train_digits(0, 1200), search_digits(1200, 1797), config, seed=0)
    assert result.search_top1 > 0.85


def test_global_random_state_flags_layout_and_gradients_are_given_back() -> None:
    network = small_cnn(dropout=0.5)
    network[1].eval()
    flags = [m.training for m in network.modules()]
    strides = [t.stride() for t in network.state_dict().values()]
    state = torch.get_rng_state()
    fit(
        network,
        train_digits(0, 64),
        search_digits(64, 96),
        settings(layout="channels_last"),
        seed=0,
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in network.modules()] == flags
    assert [t.stride() for t in network.state_dict().values()] == strides
    assert all(p.grad is None for p in network.parameters())


def test_history_progress_and_schedule() -> None:
    steps = Steps()
    config = settings(epochs=3)
    result = fit(
        small_cnn(), train_digits(0, 96), search_digits(96, 128), config, seed=0, progress=steps
    )
    assert steps.done == steps.total == len(steps.losses) == 9
    assert [p.step for p in result.history] == [1, 2, 3]
    for epoch, point in enumerate(result.history):
        mean = sum(steps.losses[3 * epoch : 3 * epoch + 3]) / 3
        assert point.values["train_loss"] == pytest.approx(mean)
        expected = lr_at(3 * epoch + 2, 9, peak=0.05, warmup_fraction=0.15, final_lr_fraction=0.01)
        assert point.values["lr"] == expected
    assert (result.precision, result.layout) == ("float32", "contiguous")
    assert result.seconds == result.history[-1].seconds > 0


def test_one_step_of_plain_sgd_by_hand() -> None:
    # Logits w x with w = 0, x = 1, label 0 of 2: softmax (1/2, 1/2), gradient (-1/2, 1/2).
    network = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(network.weight)
    train, search = constant_splits()
    config = settings(epochs=1, lr=0.2, momentum=0, weight_decay=0, warmup_fraction=0)
    fit(network, train, search, config.model_copy(update={"augment": False}), seed=0)
    torch.testing.assert_close(network.weight.detach(), torch.tensor([[0.1], [-0.1]]))


def test_clipping_bounds_a_step() -> None:
    # The gradient above has norm sqrt(1/2); clipped to 0.01 the step of lr 1 has length 0.01.
    network = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(network.weight)
    train, search = constant_splits()
    config = settings(
        epochs=1, lr=1.0, momentum=0, weight_decay=0, warmup_fraction=0, grad_clip=0.01,
        augment=False,
    )  # fmt: skip
    fit(network, train, search, config, seed=0)
    assert network.weight.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_old_gradients_of_frozen_parameters_do_not_count_in_clipping() -> None:
    train, search = train_digits(0, 64), search_digits(64, 96)
    clean, stale = small_cnn(), small_cnn()
    for network in (clean, stale):
        network[0].requires_grad_(False)
    weight = stale.get_parameter("0.weight")
    weight.grad = torch.full_like(weight, 100.0)
    for network in (clean, stale):
        fit(network, train, search, settings(epochs=1, grad_clip=0.01), seed=0)
    assert same_state(stale, clean)


def test_after_step_holds_connections_at_zero() -> None:
    network = small_cnn()
    kept = torch.zeros(8, 1, 1, 1)
    kept[::2] = 1
    calls = []

    def hold(module: nn.Module) -> None:
        calls.append(module is network)
        with torch.no_grad():
            weight = module.get_parameter("0.weight")
            weight.mul_(kept)

    fit(
        network,
        train_digits(0, 96),
        search_digits(96, 128),
        settings(epochs=2),
        seed=0,
        after_step=hold,
    )
    assert calls == [True] * 6
    weight = network.get_parameter("0.weight")
    assert not weight[1::2].any()
    assert weight[::2].all()


class Masks(nn.Module):
    """Keeps what dropout leaves of 64 ones in every training step."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.seen: list[list[float]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(nn.functional.dropout(torch.ones(64), 0.5).tolist())
        out: Tensor = self.head(x.flatten(1))
        return out


def test_dropout_is_drawn_anew_in_every_step_of_every_epoch_by_the_seed() -> None:
    def masks(seed: int) -> list[list[float]]:
        network, config = Masks(), settings(epochs=3)
        fit(network, train_digits(0, 64), search_digits(64, 96), config, seed=seed)
        return network.seen

    first, again, other = masks(0), masks(0), masks(1)
    assert first == again
    assert len({tuple(mask) for mask in (*first, *other)}) == 2 * 3 * 2


class Noisy(nn.Module):
    """A teacher that draws its logits, also where they are computed once for all epochs."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn(len(x), 10)


def test_what_a_teacher_draws_before_the_first_epoch_is_of_the_seed() -> None:
    def trained(state: int, seed: int) -> nn.Module:
        network = small_cnn()
        config = settings(epochs=1, augment=False, distill_alpha=1.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            fit(
                network,
                train_digits(0, 64),
                search_digits(64, 96),
                config,
                seed=seed,
                teacher=Noisy(),
            )
        return network

    assert same_state(trained(1, seed=0), trained(2, seed=0))
    assert not same_state(trained(1, seed=0), trained(1, seed=3))


def test_a_table_that_an_evaluation_made_is_trained_on() -> None:
    train, search = train_digits(0, 64), search_digits(64, 164)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = KeptTable(64, 10)
    twin = copy.deepcopy(network)
    twin(torch.zeros(100, 64))  # has the whole table from the start
    for one in (network, twin):
        fit(one, train, search, settings(epochs=2), seed=0)
    assert len(network.table) == 100  # of the evaluation, whose batches are larger
    assert same_state(network, twin)


def test_last_batch_of_one_sample_is_skipped() -> None:
    class Norm(nn.Sequential):
        """Batch norm after pooling: refuses a batch of one."""

    network = Norm(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(1), nn.Linear(1, 10))
    steps = Steps()
    fit(
        network,
        train_digits(0, 33),
        search_digits(33, 40),
        settings(epochs=2),
        seed=0,
        progress=steps,
    )
    assert steps.done == steps.total == 2


class Snapshot(Silent):
    """Keeps a copy of the network as it is after one epoch."""

    def __init__(self, network: nn.Module, epoch: int) -> None:
        self.network, self.epoch, self.epochs = network, epoch, 0
        self.copy = network

    def advance(self, n: int = 1, **values: float) -> None:
        self.epochs += "search_top1" in values
        if self.epochs == self.epoch and "search_top1" in values:
            self.copy = copy.deepcopy(self.network)


def test_buffers_that_a_state_dict_leaves_out_are_those_of_the_best_epoch() -> None:
    train, search = train_digits(0, 64), search_digits(64, 96)
    network, best = averaging(), averaging()
    snapshot = Snapshot(network, epoch=1)
    fit(network, train, search, settings(lr=0.5), seed=0, progress=snapshot)
    kept = snapshot.copy
    assert isinstance(kept, Averaging)
    assert not torch.equal(kept.mean, network.mean)
    # The answers after the first epoch are taken for the labels of the search split.
    inputs = inputs_of(search)
    search = SearchSplit(samples(inputs, kept.eval()(inputs).argmax(dim=1)))
    result = fit(best, train, search, settings(lr=0.5, select="best"), seed=0)
    assert result.best_epoch == 1
    assert torch.equal(best.mean, kept.mean)
    assert same_state(best, kept)


def test_best_epoch_is_restored() -> None:
    # The answers after the second of four epochs are taken for the labels of the search split.
    train, search = train_digits(0, 300), search_digits(600, 900)
    network = small_cnn()
    snapshot = Snapshot(network, epoch=2)
    config = settings(batch_size=100)
    fit(network, train, search, config, seed=1, progress=snapshot)
    inputs = inputs_of(search)
    labels = snapshot.copy.eval()(inputs).argmax(dim=1)
    search = SearchSplit(samples(inputs, labels))

    last, best = small_cnn(), small_cnn()
    result = fit(last, train, search, config, seed=1)
    assert result.best_epoch == 2
    assert result.search_top1 == evaluate(last, search).top1 < 1
    result = fit(best, train, search, config.model_copy(update={"select": "best"}), seed=1)
    assert result.best_epoch == 2
    assert result.search_top1 == evaluate(best, search).top1 == 1
    assert same_state(best, snapshot.copy)
    assert same_state(last, network)


def test_student_follows_its_teacher_and_not_the_labels() -> None:
    train, search = train_digits(0, 600), search_digits(600, 900)
    teacher = small_cnn(seed=4)
    fit(teacher, train, search, settings(epochs=4, lr=0.1, augment=False), seed=0)
    twin = copy.deepcopy(teacher)
    # Labels shifted by one: only a student that hears the teacher alone is right.
    wrong = TrainSplit(samples(inputs_of(train), (train.labels + 1) % 10))
    student = small_cnn(seed=5)
    config = settings(epochs=4, lr=0.1, distill_alpha=1.0, distill_temperature=2.0, augment=False)
    result = fit(student, wrong, search, config, seed=0, teacher=teacher)
    assert result.search_top1 > 0.8
    assert same_state(teacher, twin)
    assert teacher.training


@pytest.mark.parametrize(
    ("optimizer", "lr", "better"),
    [
        ("sgd", 1e20, "0.1"),  # what a fresh network is trained with where none is asked for
        ("sgd", 0.5, "0.05"),  # a tenth
        ("adamw", 1e20, "0.0005"),
        ("adamw", 1e-3, "0.0001"),
    ],
)
def test_divergence_names_the_learning_rate_and_a_better_one(
    optimizer: str, lr: float, better: str
) -> None:
    class Diverges(nn.Module):
        """Its answer is no number after the first step."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)
            self.steps = 0

        def forward(self, x: Tensor) -> Tensor:
            self.steps += self.training
            found: Tensor = self.linear(x.flatten(1))
            return found * (1 if self.steps < 2 else torch.nan)

    said = (
        rf"after 1 steps with lr={re.escape(f'{lr:g}')}; use a smaller lr \(such as {better}\) or"
    )
    with pytest.raises(InputError, match=rf"{said} set grad_clip"):
        fit(
            Diverges(), train_digits(0, 96), search_digits(96, 128),
            settings(lr=lr, optimizer=optimizer, precision="float32", layout="contiguous"), seed=0,
        )  # fmt: skip


def test_inputs_that_are_not_finite_are_not_blamed_on_the_learning_rate() -> None:
    train = train_digits(0, 64)
    inputs_of(train)[:] = float("nan")
    with pytest.raises(InputError, match="before the first step"):
        fit(small_cnn(), train, search_digits(64, 96), settings(), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill_alpha": 0.5}, "needs a teacher"),
        ({"teacher": "other"}, "would ignore it"),
        ({"teacher": "same", "distill_alpha": 0.5}, "the network itself"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    network = small_cnn()
    teacher = {"other": small_cnn(), "same": network}.get(str(changes.pop("teacher", "")))
    seed = int(str(changes.pop("seed", 0)))
    with pytest.raises(InputError, match=message):
        fit(
            network,
            train_digits(0, 8),
            search_digits(8, 16),
            settings(**changes),
            seed=seed,
            teacher=teacher,
        )


def test_splits_in_the_wrong_place_are_refused_unread() -> None:
    test = TestSplit(digits(8, 16))
    with pytest.raises(InputError, match="search is a test split"):
        fit(small_cnn(), train_digits(0, 8), test, settings(), seed=0)  # type: ignore[arg-type]  # so
    with pytest.raises(InputError, match="train is a test split"):
        fit(small_cnn(), test, search_digits(0, 8), settings(), seed=0)  # type: ignore[arg-type]  # so
    assert test.evaluations == 0


def test_automatic_choice_is_told_and_can_be_pinned() -> None:
    train, search = train_digits(0, 64), search_digits(64, 96)
    first, second = small_cnn(), small_cnn()
    result = fit(first, train, search, settings(precision="auto", layout="auto"), seed=0)
    pinned = settings(precision=result.precision, layout=result.layout)
    fit(second, train, search, pinned, seed=0)
    assert same_state(first, second)


def test_bfloat16_computes_coarsely_and_keeps_float32_weights() -> None:
    trained = []
    for precision in ("float32", "bfloat16"):
        network = small_cnn()
        config = settings(epochs=1, precision=precision, augment=False)
        result = fit(network, train_digits(0, 96), search_digits(96, 128), config, seed=0)
        assert result.precision == precision
        assert all(p.dtype == torch.float32 for p in network.parameters())
        trained.append(network.get_parameter("6.weight").detach())
    assert not torch.equal(*trained)
    torch.testing.assert_close(*trained, rtol=0, atol=2e-2)  # 8 bits of mantissa, three steps


def imbalanced(count: int, seed: int) -> Samples:
    """Two noisy clouds, one sample in ten of class 1: to call all 0 is 90 % right."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) < 0.1).long()
    points = torch.randn(count, 2, generator=generator) + 1.5 * labels.unsqueeze(1)
    return samples(points, labels, num_classes=2)


def test_best_epoch_by_f1_is_restored_and_told_in_the_history() -> None:
    train, search = TrainSplit(imbalanced(300, 0)), SearchSplit(imbalanced(300, 1))
    config = settings(epochs=6, lr=0.5, select="best", metric="f1", batch_size=16, augment=False)
    network = nn.Linear(2, 2)
    nn.init.zeros_(network.weight)
    result = fit(network, train, search, config, seed=0)
    scores = [point.values["search_f1"] for point in result.history]
    assert len(set(scores)) > 1
    assert scores[result.best_epoch - 1] == max(scores)
    assert evaluate(network, search).f1 == max(scores)

    by_top1 = config.model_copy(update={"metric": "top1"})
    result = fit(network, train, search, by_top1, seed=0)
    assert all("search_f1" not in point.values for point in result.history)


def test_f1_and_top1_choose_different_epochs_by_hand() -> None:
    def point(step: int, top1: float, f1: float, loss: float) -> HistoryPoint:
        values = {"search_top1": top1, "search_f1": f1, "search_loss": loss}
        return HistoryPoint(phase="train", step=step, seconds=float(step), values=values)

    history = [point(1, 0.9, 0.0, 0.3), point(2, 0.8, 0.5, 0.4), point(3, 0.7, 0.5, 0.35)]
    assert best_epoch(history) == 1
    assert best_epoch(history, "f1") == 3  # as good as the second, with a lower loss
    chosen = FitResult.of(
        history, settings(metric="f1", select="best"), Execution("float32", "contiguous")
    )
    assert (chosen.best_epoch, chosen.search_top1) == (3, 0.7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_learns_and_gives_the_network_back_on_the_cpu() -> None:
    network = small_cnn()
    config = settings(precision="auto", layout="auto", epochs=6, lr=0.1, augment=False)
    result = fit(
        network, train_digits(0, 1200), search_digits(1200, 1797), config, seed=0, device="cuda"
    )
    assert (result.precision, result.layout) == ("bfloat16", "channels_last")
    assert result.search_top1 > 0.9
    assert all(p.device.type == "cpu" for p in network.parameters())
