"""Batch-norm statistics measured anew after a cut, without any training."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunus.data import TrainSplit
from prunus.device import resolve_device
from prunus.errors import DataError, InputError
from prunus.train.forward import forward_logits, modes_restored, placed, to_place

_COUNT = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var", _COUNT)


def recalibrate_batch_norm_(
    network: nn.Module,
    split: TrainSplit,
    *,
    images: int = 256,
    batch_size: int = 64,
    augment: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> None:
    """Replace the running statistics of every batch norm by those of the network as it is now.

    A cut changes the distribution of every later activation, while the running statistics still
    describe the dense network. Measuring them anew on a few training images ("adaptive batch
    normalization") makes the scores of untrained candidates agree far better with their scores
    after fine-tuning (Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network
    Pruning", ECCV 2020, section 3.3).

    The statistics are plain averages over batches of equal size, ``mean = (1/B) sum_b mean_b`` and
    ``var = (1/B) sum_b var_b`` with the unbiased variance of each batch: no image weighs more than
    another, so a last smaller batch is left out. Only batch norms are in training mode; dropout and
    all else behave as in evaluation. Momenta, counts of batches, training flags, device and weights
    are given back unchanged; after an error the statistics, too. A network without batch norm that
    tracks statistics is left alone.

    Args:
        network: Changed in place, in its running means and variances alone.
        split: Training images.
        images: How many to use, rounded down to whole batches; all there are, if fewer.
        batch_size: Images per batch, at least 2.
        augment: Augment them, as a training would: statistics of images without the crops and
            borders that a network was trained on are others than those that its training left.
        seed: Chooses the images: the same ones for the same seed and split.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        InputError: ``images``, ``batch_size`` or ``device`` cannot be used, or the split is not a
            training split.
        DataError: The split has fewer than 2 samples.
    """
    for name, value in (("images", images), ("batch_size", batch_size)):
        if value < 2:
            raise InputError(f"{name}={value} must be at least 2: batch norm needs a variance")
    if split.role != "train":
        raise InputError(f"split is a {split.role} split; statistics are taken from train alone")
    where = resolve_device(device)
    norms = _tracking(network)
    if not norms:
        return
    available = min(images, len(split))
    if available < 2:
        raise DataError(f"recalibration needs at least 2 images; the split has {len(split)}")
    size = min(batch_size, available)
    generator = torch.Generator().manual_seed(seed)
    with (
        _averaging(norms),
        modes_restored(network),
        placed(network, where, channels_last=False),
        torch.no_grad(),  # not inference mode: what the network keeps is trained on
    ):
        network.eval()
        for norm in norms:
            norm.training = True
        drawn = split.batches(size, generator=generator, augment=augment and split.augments)
        for batch, _ in islice(drawn, available // size):
            forward_logits(network, to_place(batch, where, channels_last=False))


@contextmanager
def _averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Statistics begin anew inside, as plain averages; an error gives the old ones back.

    The count of batches, by which a norm averages, is that of its training again afterwards.
    """
    momenta = [norm.momentum for norm in norms]
    before = [{name: held.clone() for name, held in norm.named_buffers()} for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average (torch.nn.BatchNorm2d)
    given_back: Sequence[str] = _STATISTICS
    try:
        yield
        given_back = (_COUNT,)
    finally:
        for norm, momentum, old in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            for name in given_back:
                if name in old:
                    norm.get_buffer(name).copy_(old[name])


def statistics_are_augmented(
    network: nn.Module,
    split: TrainSplit,
    *,
    images: int = 256,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> bool:
    """Whether a trained network's batch-norm statistics are nearer to those of augmented images.

    Crops with borders shift them, and nothing but the statistics tells what a network was trained on.
    The distance of two Gaussians is that of their means in standard deviations, squared, and of the
    logarithms of their variances; averaged over channels, then over layers.

    Args:
        network: As it was trained; not touched.
        split: Its training images.
        images: How many of either kind are looked at.
        seed: Chooses them.
        device: ``"cpu"`` or ``"cuda"``.
    """
    if not split.augments:
        return False
    found = []
    for augment in (False, True):
        other = copy.deepcopy(network)
        recalibrate_batch_norm_(
            other, split, images=images, augment=augment, seed=seed, device=device
        )
        found.append(_distance(network, other))
    return found[1] < found[0]


def _distance(trained: nn.Module, measured: nn.Module) -> float:
    """Mean over layers; 0 where there is none."""
    layers = []
    for one, other in zip(_tracking(trained), _tracking(measured), strict=True):
        (mean, var), (mean2, var2) = _moments(one), _moments(other)
        layers.append(float(((mean2 - mean).square() / var + (var2 / var).log().square()).mean()))
    return sum(layers) / len(layers) if layers else 0.0


def _moments(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean, and running variance as the layer divides by it."""
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    return mean.double().cpu(), var.double().cpu() + norm.eps


def _tracking(network: nn.Module) -> list[_BatchNorm]:
    """Batch norms that keep statistics."""
    modules = network.modules()
    return [m for m in modules if isinstance(m, _BatchNorm) and m.running_mean is not None]
