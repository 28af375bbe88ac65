import copy
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from prunus.data import Samples, SearchSplit, TestSplit, TrainSplit
from prunus.errors import InputError
from prunus.graph import hold_connections_
from prunus.graph.connections import register_held
from prunus.progress import Silent
from prunus.records import HistoryPoint
from prunus.train import Execution, FitResult, evaluate, fit, lr_at
from prunus.train.result import best_epoch
from tests.helpers import KeptTable
from tests.train.fakes import (
    Steps,
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


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("select", ["last", "best"])
def test_resumed_training_ends_with_the_same_weights(
    tmp_path: Path, optimizer: str, layout: str, select: str
) -> None:
    config = settings(optimizer=optimizer, layout=layout, select=select, lr=0.02)
    train, search = train_digits(0, 200), search_digits(200, 300)

    straight = small_cnn(dropout=0.3)
    whole = fit(straight, train, search, config, seed=3)

    steps = Steps(stop_at=2 * 7 + 3)  # 7 steps an epoch: in the middle of the third
    path = tmp_path / "training.pt"
    killed = small_cnn(dropout=0.3)
    with pytest.raises(KeyboardInterrupt):
        fit(killed, train, search, config, seed=3, checkpoint=path, progress=steps)
    assert steps.finished == 1
    assert len(torch.load(path, weights_only=True)["history"]) == 2
    assert not same_state(killed, straight)

    resumed, rest = small_cnn(dropout=0.3), Steps()
    torch.rand(5)  # the global random state does not matter
    result = fit(resumed, train, search, config, seed=3, checkpoint=path, progress=rest)
    assert len(rest.losses) == 2 * 7
    assert rest.done == rest.total == 4 * 7
    assert same_state(resumed, straight)
    assert [p.values for p in result.history] == [p.values for p in whole.history]

    again = small_cnn(dropout=0.3)
    done = Steps()
    assert fit(again, train, search, config, seed=3, checkpoint=path, progress=done) == result
    assert done.losses == []
    assert same_state(again, straight)


class Averaging(nn.Module):
    """Subtracts a running mean of its inputs, which its state dict leaves out; ``table`` is expanded."""

    mean: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.register_buffer("mean", torch.zeros(64), persistent=False)
        self.register_buffer("table", torch.ones(1).expand(64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if self.training:
            self.mean.lerp_(flat.mean(0), 0.1)
        out: Tensor = self.head((flat - self.mean) * self.table)
        return out


def averaging() -> Averaging:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Averaging()


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_resumed_training_goes_on_with_buffers_that_a_state_dict_leaves_out(
    tmp_path: Path, select: str
) -> None:
    config, path = settings(select=select), tmp_path / "training.pt"
    train, search = train_digits(0, 64), search_digits(64, 96)
    straight, killed, resumed = averaging(), averaging(), averaging()
    fit(straight, train, search, config, seed=0)
    with pytest.raises(KeyboardInterrupt):  # in the third of four epochs of two steps
        fit(killed, train, search, config, seed=0, checkpoint=path, progress=Steps(stop_at=5))
    fit(resumed, train, search, config, seed=0, checkpoint=path)
    assert straight.mean.any()
    assert torch.equal(resumed.mean, straight.mean)
    assert same_state(resumed, straight)


class Growing(nn.Module):
    """Makes a buffer in its first pass: ones for its largest batch so far."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        ones = getattr(self, "ones", torch.empty(0, 1))
        if len(ones) < len(x):
            self.register_buffer("ones", torch.ones(len(x), 1), persistent=False)
        out: Tensor = self.head(x.flatten(1)) * self.get_buffer("ones")[: len(x)]
        return out


@pytest.mark.parametrize("met", [0, 1, 100], ids=["new", "small", "large"])
def test_buffers_that_a_forward_pass_makes_do_not_hinder_a_resumed_training(
    tmp_path: Path, met: int
) -> None:
    config, path = settings(select="best"), tmp_path / "training.pt"
    train, search = train_digits(0, 64), search_digits(64, 96)
    straight, resumed = Growing(), Growing()
    fit(straight, train, search, config, seed=0)
    with pytest.raises(KeyboardInterrupt):
        fit(Growing(), train, search, config, seed=0, checkpoint=path, progress=Steps(stop_at=5))
    if met:
        resumed(torch.zeros(met, 64))
    fit(resumed, train, search, config, seed=0, checkpoint=path)
    assert same_state(resumed, straight)


def test_seconds_of_a_resumed_training_are_those_of_all_its_lives(tmp_path: Path) -> None:
    path, config = tmp_path / "training.pt", settings()
    train, search = train_digits(0, 64), search_digits(64, 96)
    with pytest.raises(KeyboardInterrupt):  # in the third of four epochs of two steps
        fit(small_cnn(), train, search, config, seed=0, checkpoint=path, progress=Steps(stop_at=5))
    content = torch.load(path, weights_only=True)
    content["history"][-1]["seconds"] = 1000.0
    torch.save(content, path)
    result = fit(small_cnn(), train, search, config, seed=0, checkpoint=path)
    assert 1000 < result.history[2].seconds < result.seconds < 1100


def digest_of_a_training(seed: int) -> str:
    network = small_cnn(dropout=0.3)
    fit(network, train_digits(0, 100), search_digits(100, 150), settings(epochs=2), seed=seed)
    raw = b"".join(t.numpy().tobytes() for t in network.state_dict().values())
    return hashlib.sha256(raw).hexdigest()


@pytest.mark.slow  # starts a process that imports torch
def test_same_seed_same_weights_in_another_process() -> None:
    torch.rand(3)
    here = digest_of_a_training(5)
    code = "from tests.train.test_fit import digest_of_a_training as d; print(d(5))"
    root = Path(__file__).parents[2]
    prelude = (
        f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'src')!r}]; "
        f"import torch; torch.set_num_threads({torch.get_num_threads()}); "
    )
    done = subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == here
    assert digest_of_a_training(6) != here


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


def held_cnn() -> nn.Module:
    """With every second kernel of its first convolution held at zero."""
    network = small_cnn()
    kept = torch.ones(network.get_parameter("0.weight").shape, dtype=torch.bool)
    kept[1::2] = False
    register_held(network.get_submodule("0"), "weight", kept)
    return network


@pytest.mark.parametrize("before", [0, 1, 2], ids=["never", "once", "twice"])
def test_held_connections_of_a_copy_stay_zero(before: int) -> None:
    """Hooks do not survive a copy; where they are there, they are not set again."""
    network = copy.deepcopy(held_cnn())
    for _ in range(before):
        hold_connections_(network)
    fit(network, train_digits(0, 96), search_digits(96, 128), settings(epochs=2), seed=0)
    weight = network.get_parameter("0.weight")
    assert not weight[1::2].any()
    assert weight[::2].all()
    assert weight._backward_hooks is not None
    assert len(weight._backward_hooks) == 1


def test_held_connections_stay_zero_in_a_resumed_training(tmp_path: Path) -> None:
    path, config = tmp_path / "training.pt", settings()
    train, search = train_digits(0, 64), search_digits(64, 96)
    straight, resumed = held_cnn(), held_cnn()
    fit(straight, train, search, config, seed=0)
    with pytest.raises(KeyboardInterrupt):
        fit(held_cnn(), train, search, config, seed=0, checkpoint=path, progress=Steps(stop_at=5))
    fit(resumed, train, search, config, seed=0, checkpoint=path)
    assert same_state(resumed, straight)
    assert not resumed.get_parameter("0.weight")[1::2].any()


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


class TextNet(nn.Module):
    """Called by keyword, answers with an object, as the models of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.classifier = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        mask = attention_mask.unsqueeze(-1)
        mean = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1)
        return SimpleNamespace(logits=self.classifier(mean))


def test_texts_are_trained_on_with_a_checkpoint(tmp_path: Path) -> None:
    # Class 1: token 7 stands first; masked positions hold noise.
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(8, 20, (300, 6), generator=generator)
    labels = torch.randint(2, (300,), generator=generator)
    tokens[labels == 1, 0] = 7
    mask = torch.ones(300, 6)
    mask[:, 4:] = 0
    part = [
        samples({"input_ids": tokens[rows], "attention_mask": mask[rows]}, labels[rows], 2)
        for rows in (slice(0, 200), slice(200, 300))
    ]
    config = settings(epochs=5, optimizer="adamw", lr=0.05, augment=False, precision="auto")
    torch.manual_seed(0)
    network, path = TextNet(), tmp_path / "text.pt"
    result = fit(
        network, TrainSplit(part[0]), SearchSplit(part[1]), config, seed=0, checkpoint=path
    )
    assert result.search_top1 == 1.0
    assert path.exists()


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
