"""Small splits and networks with the interface that training needs, and nothing more."""

from typing import final

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from prunus.data import Inputs, Samples, SampleStore, SearchSplit, TrainSplit


@final
class FloatStore(SampleStore):
    """Inputs in memory, as they are. Augmentation adds noise; the sizes of all reads are kept."""

    def __init__(self, inputs: Inputs, labels: Tensor) -> None:
        self.inputs = inputs
        self.sizes: list[int] = []
        self._labels = labels

    @property
    def labels(self) -> Tensor:
        return self._labels

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.inputs.shape[1:]) if isinstance(self.inputs, Tensor) else ()

    def read(self, indices: Tensor, augment: torch.Generator | None) -> tuple[Inputs, Tensor]:
        self.sizes.append(len(indices))
        labels = self._labels[indices]
        if not isinstance(self.inputs, Tensor):
            return {name: tensor[indices] for name, tensor in self.inputs.items()}, labels
        inputs = self.inputs[indices]
        if augment is not None:
            inputs = inputs + 0.1 * torch.randn(inputs.shape, generator=augment)
        return inputs, labels


def samples(inputs: Inputs, labels: Tensor, num_classes: int = 10) -> Samples:
    """All of these inputs."""
    return Samples("fake", FloatStore(inputs, labels), torch.arange(len(labels)), num_classes)


def digits(start: int, stop: int) -> Samples:
    """Rows of scikit-learn's digits, 8 x 8, scaled to about [-1, 1]."""
    data = load_digits()
    images = torch.tensor(data.images[start:stop], dtype=torch.float32).unsqueeze(1)
    return samples(images / 8 - 1, torch.tensor(data.target[start:stop], dtype=torch.int64))


def train_digits(start: int, stop: int) -> TrainSplit:
    """Some digits to train on."""
    return TrainSplit(digits(start, stop))


def search_digits(start: int, stop: int) -> SearchSplit:
    """Some digits to decide on."""
    return SearchSplit(digits(start, stop))


def small_cnn(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """One convolution with batch norm, for digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(128, 10),
        )


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters and buffers agree bit for bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())
