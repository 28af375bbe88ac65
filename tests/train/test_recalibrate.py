import math

import pytest
import torch
from torch import Tensor, nn

from prunus.data import SearchSplit, TrainSplit
from prunus.errors import DataError, InputError
from prunus.train import recalibrate_batch_norm_, statistics_are_augmented
from prunus.train.recalibrate import _distance
from tests.helpers import KeptTable
from tests.train.fakes import FloatStore, digits, same_state, samples, small_cnn, train_digits


def images(count: int) -> TrainSplit:
    generator = torch.Generator().manual_seed(1)
    values = 5 + 3 * torch.randn(count, 2, 3, 3, generator=generator)
    return TrainSplit(samples(values, torch.zeros(count, dtype=torch.int64)))


def values_of(split: TrainSplit) -> Tensor:
    store = split.samples.store
    assert isinstance(store, FloatStore)
    assert isinstance(store.inputs, Tensor)
    return store.inputs


class Head(nn.Module):
    """A batch norm at the input, then logits."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2, momentum=0.3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x).mean(dim=(2, 3))
        return out


def test_one_batch_gives_the_mean_and_unbiased_variance_of_the_images() -> None:
    network, split = Head(), images(20)
    recalibrate_batch_norm_(network, split, images=20, batch_size=20)
    values = values_of(split)
    channels = values.double().transpose(0, 1).reshape(2, -1)
    assert network.norm.running_mean is not None
    assert network.norm.running_var is not None
    torch.testing.assert_close(network.norm.running_mean.double(), channels.mean(1))
    torch.testing.assert_close(network.norm.running_var.double(), channels.var(1))


def test_batches_are_averaged_evenly_and_a_smaller_last_one_is_left_out() -> None:
    network, split = Head(), images(20)
    recalibrate_batch_norm_(network, split, images=19, batch_size=8, seed=4)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4))
    values = values_of(split)
    parts = [
        values[rows].double().transpose(0, 1).reshape(2, -1) for rows in (order[:8], order[8:16])
    ]
    assert network.norm.running_mean is not None
    assert network.norm.running_var is not None
    mean = torch.stack([part.mean(1) for part in parts]).mean(0)
    variance = torch.stack([part.var(1) for part in parts]).mean(0)
    torch.testing.assert_close(network.norm.running_mean.double(), mean)
    torch.testing.assert_close(network.norm.running_var.double(), variance)


def test_only_running_statistics_change() -> None:
    network, twin = small_cnn(dropout=0.5), small_cnn(dropout=0.5)
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.momentum = 0.3
    for one in (network, twin):
        one.get_buffer("1.num_batches_tracked").fill_(3)  # of its training
    norm.eval()
    flags = [m.training for m in network.modules()]
    recalibrate_batch_norm_(network, train_digits(0, 64))
    assert norm.momentum == 0.3
    assert [m.training for m in network.modules()] == flags
    theirs = twin.state_dict()
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, theirs[k])}
    assert changed == {"1.running_mean", "1.running_var"}


def test_dropout_before_a_batch_norm_is_off() -> None:
    network = nn.Sequential(nn.Dropout(0.9), Head())
    plain = nn.Sequential(nn.Identity(), Head())
    for one in (network, plain):
        recalibrate_batch_norm_(one, images(20), batch_size=10)
    assert same_state(network, plain)


def test_seed_chooses_the_images_and_the_global_state_is_untouched() -> None:
    state = torch.get_rng_state()
    networks = [Head() for _ in range(3)]
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        recalibrate_batch_norm_(network, images(40), images=8, batch_size=8, seed=seed)
    assert same_state(networks[0], networks[1])
    assert not same_state(networks[0], networks[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_without_tracked_batch_norm_nothing_is_read() -> None:
    split = images(4)
    network = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten())
    recalibrate_batch_norm_(network, split)
    assert isinstance(split.samples.store, FloatStore)
    assert split.samples.store.sizes == []


def test_momentum_comes_back_after_a_failure() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3, momentum=0.2))
    with pytest.raises(RuntimeError):
        recalibrate_batch_norm_(network, images(4))
    assert [m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)] == [0.2]


class FailsLater(Head):
    """Fails in its second pass, after its batch norm has seen two batches."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.passes += 1
        if self.passes == 2:
            raise RuntimeError("midway")
        return out


def test_statistics_come_back_after_a_failure_midway() -> None:
    network = FailsLater()
    assert network.norm.running_mean is not None
    assert network.norm.running_var is not None
    assert network.norm.num_batches_tracked is not None
    network.norm.running_mean.fill_(5.0)
    network.norm.running_var.fill_(2.0)
    network.norm.num_batches_tracked.fill_(3)
    with pytest.raises(RuntimeError, match="midway"):
        recalibrate_batch_norm_(network, images(20), batch_size=5)
    assert network.norm.running_mean.tolist() == [5.0, 5.0]
    assert network.norm.running_var.tolist() == [2.0, 2.0]
    assert int(network.norm.num_batches_tracked) == 3


def test_a_table_that_is_kept_can_be_trained_on() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), KeptTable(18, 1))
    recalibrate_batch_norm_(network, images(4))
    torch.autograd.backward(network(values_of(images(4))).sum())
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_too_little_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size=1"):
        recalibrate_batch_norm_(Head(), images(4), batch_size=1)
    with pytest.raises(InputError, match="images=0"):
        recalibrate_batch_norm_(Head(), images(4), images=0)
    with pytest.raises(InputError, match="search split"):
        recalibrate_batch_norm_(Head(), SearchSplit(digits(0, 4)))  # type: ignore[arg-type]  # so
    with pytest.raises(DataError, match="the split has 1"):
        recalibrate_batch_norm_(Head(), images(1))


def test_augmented_images_are_those_that_a_training_would_see() -> None:
    network, split = Head(), images(20)
    recalibrate_batch_norm_(network, split, images=20, batch_size=20, seed=3, augment=True)
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(20, generator=generator)
    noise = 0.1 * torch.randn(20, 2, 3, 3, generator=generator)  # of the store's augmentation
    channels = (values_of(split)[order] + noise).double().transpose(0, 1).reshape(2, -1)
    assert network.norm.running_mean is not None
    assert network.norm.running_var is not None
    torch.testing.assert_close(network.norm.running_mean.double(), channels.mean(1))
    torch.testing.assert_close(network.norm.running_var.double(), channels.var(1))


def test_samples_that_cannot_be_augmented_are_taken_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, asked = Head(), Head()
    recalibrate_batch_norm_(plain, images(20), images=20, batch_size=20)
    monkeypatch.setattr(FloatStore, "augments", property(lambda _: False))
    recalibrate_batch_norm_(asked, images(20), images=20, batch_size=20, augment=True)
    assert same_state(plain, asked)


@pytest.mark.parametrize("augment", [True, False])
def test_statistics_tell_which_images_a_network_was_trained_on(augment: bool) -> None:
    network, split = small_cnn(), train_digits(0, 512)
    recalibrate_batch_norm_(network, split, images=512, augment=augment, seed=9)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert statistics_are_augmented(network, split) == augment
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_distance_is_that_of_means_in_deviations_and_of_log_variances() -> None:
    trained, measured = Head(), Head()
    trained.norm.running_mean = torch.tensor([1.0, 2.0])
    trained.norm.running_var = torch.tensor([4.0, 1.0])
    measured.norm.running_mean = torch.tensor([2.0, 2.0])
    measured.norm.running_var = torch.tensor([4.0, math.e])
    # Half a deviation, squared, on one channel; a variance of e instead of 1 on the other.
    assert _distance(trained, measured) == pytest.approx((0.25 + 1) / 2, rel=1e-4)
    assert _distance(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())) == 0


def test_samples_without_augmentation_leave_nothing_to_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FloatStore, "augments", property(lambda _: False))
    assert not statistics_are_augmented(Head(), images(20))
