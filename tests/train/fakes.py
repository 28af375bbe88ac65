"""Small splits and networks with the interface that training needs, and nothing more."""

from types import SimpleNamespace
from typing import Any, final

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from prunus.data import Inputs, Samples, SampleStore, SearchSplit, Split, TrainSplit
from prunus.progress import Silent
from prunus.train import TrainConfig
from prunus.train.taught import Reading

TEXT_SAMPLE = {
    "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
}
"""Two texts, the second one token shorter."""


@final
class FloatStore(SampleStore):
    """Inputs in memory, as they are. Augmentation adds noise; the sizes of all reads are kept.

    Texts, whose lengths are given, are cut to the longest of a batch.
    """

    def __init__(self, inputs: Inputs, labels: Tensor, lengths: Tensor | None = None) -> None:
        self.inputs = inputs
        self.sizes: list[int] = []
        self._labels = labels
        self._lengths = lengths

    @property
    def labels(self) -> Tensor:
        return self._labels

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.inputs.shape[1:]) if isinstance(self.inputs, Tensor) else ()

    @property
    def lengths(self) -> Tensor | None:
        return self._lengths

    def read(self, indices: Tensor, augment: torch.Generator | None) -> tuple[Inputs, Tensor]:
        self.sizes.append(len(indices))
        labels = self._labels[indices]
        if not isinstance(self.inputs, Tensor):
            longest = None if self._lengths is None else int(self._lengths[indices].max())
            return {name: value[indices, :longest] for name, value in self.inputs.items()}, labels
        inputs = self.inputs[indices]
        if augment is not None:
            inputs = inputs + 0.1 * torch.randn(inputs.shape, generator=augment)
        return inputs, labels


def samples(inputs: Inputs, labels: Tensor, num_classes: int = 10) -> Samples:
    """All of these inputs."""
    return Samples("fake", FloatStore(inputs, labels), torch.arange(len(labels)), num_classes)


def texts(count: int, seed: int, labels: Tensor | None = None) -> Samples:
    """Texts of 1 to 7 tokens of 20, padded with noise; of class 1 are those that hold token 3."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (count,), generator=generator)
    tokens = torch.randint(20, (count, 7), generator=generator)
    mask = (torch.arange(7) < lengths.unsqueeze(1)).long()
    if labels is None:
        labels = ((tokens == 3) & (mask == 1)).any(dim=1).long()
    store = FloatStore({"input_ids": tokens, "attention_mask": mask}, labels, lengths)
    return Samples("texts", store, torch.arange(count), 2)


class Block(nn.Module):
    """One layer, position by position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.linear(x).tanh()
        return out


class StackNet(nn.Module):
    """A stack of layers over texts, called and answering as the models of Hugging Face do."""

    def __init__(self, width: int, layers: int, seed: int, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(20, width)
            self.layers = nn.ModuleList(Block(width) for _ in range(layers))
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        state = self.dropout(self.embedding(input_ids))
        for layer in self.layers:
            state = layer(state)
        mask = attention_mask.unsqueeze(2)
        return SimpleNamespace(logits=self.head((state * mask).sum(1) / mask.sum(1)))


def tiny_bert(attention: str = "eager", heads: int = 2, layers: int = 2) -> nn.Module:
    """BERT of transformers, 8 wide; its weights are those of one seed."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=16,
        max_position_embeddings=16,
        initializer_range=0.5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=attention,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.BertForSequenceClassification(config)
    assert isinstance(network, nn.Module)
    return network.eval()


def hooks_of_a_reading(network: nn.Module) -> list[Any]:
    """Those that are left; transformers sets hooks of its own, and keeps them."""
    hooks = [hook for module in network.modules() for hook in module._forward_hooks.values()]
    return [hook for hook in hooks if isinstance(getattr(hook, "__self__", None), Reading)]


def settings(**changes: object) -> TrainConfig:
    """Four epochs in batches of 32, in a number format and a layout that are not tried out."""
    given = {"epochs": 4, "lr": 0.05, "batch_size": 32}
    return TrainConfig.model_validate(
        {**given, "precision": "float32", "layout": "contiguous", **changes}
    )


class Steps(Silent):
    """Counts steps; interrupts the training in the middle of an epoch if asked."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.total = self.done = self.finished = 0
        self.losses: list[float] = []
        self.stop_at = stop_at

    def start(self, phase: str, total: int) -> None:
        self.total = total

    def advance(self, n: int = 1, **values: float) -> None:
        self.done += n
        if "loss" in values:
            self.losses.append(values["loss"])
        if self.done == self.stop_at:
            raise KeyboardInterrupt

    def finish(self) -> None:
        self.finished += 1


def inputs_of(split: Split) -> Tensor:
    """The tensor that a split of fake samples reads from."""
    store = split.samples.store
    assert isinstance(store, FloatStore)
    assert isinstance(store.inputs, Tensor)
    return store.inputs


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
