"""The three splits as three types: one trains weights, one decides, one is looked at once."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from prunus.data.stores import Inputs, SampleStore
from prunus.data.stratify import stratified_draw
from prunus.data.text.tokenizer import TextTokenizer
from prunus.errors import DataError, InputError


@dataclass(frozen=True)
class Samples:
    """Some samples of a store: what a split is made of.

    Args:
        name: Of the data set, for messages and records.
        store: Where the samples lie.
        indices: Their positions in the store, int64 ``[samples]``.
        num_classes: Labels are in ``[0, num_classes)``.
    """

    name: str
    store: SampleStore
    indices: Tensor
    num_classes: int

    def alone(self) -> "Samples":
        """The same samples in a store of their own, through which no other can be read."""
        store = self.store.take(self.indices)
        return replace(self, store=store, indices=torch.arange(len(self.indices)))

    def on(self, device: torch.device) -> "Samples":
        """The same samples in a device's memory, where they can be kept there; else as they are."""
        store = self.store.placed(self.indices, device)
        if store is None:
            return self
        return replace(self, store=store, indices=torch.arange(len(self.indices)))


class Split(ABC):
    """Samples in one role. The role is the type: who asks for a ``SearchSplit`` gets no other.

    Args:
        samples: What the split holds.
    """

    def __init__(self, samples: Samples) -> None:
        if len(samples.indices) == 0:
            raise DataError(f"{samples.name}: a split has no samples; give it at least one")
        self._samples = samples

    @property
    @abstractmethod
    def role(self) -> str:
        """``train``, ``search`` or ``test``."""

    @abstractmethod
    def _begin_pass(self) -> None:
        """Account for a pass over the samples."""

    @abstractmethod
    def _with(self, samples: Samples) -> Self:
        """The same role over other samples."""

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._samples.indices)

    @property
    def samples(self) -> Samples:
        """What the split holds."""
        return self._samples

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self._samples.name

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._samples.num_classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input without the batch; empty where inputs are dictionaries."""
        return self._samples.store.input_shape

    @property
    def labels(self) -> Tensor:
        """Class of every sample, int64 ``[samples]``."""
        return self._samples.store.labels[self._samples.indices]

    @property
    def digest(self) -> str:
        """SHA-256 that tells its samples from others, in hex; no network sees them for that."""
        return self._samples.store.digest(self._samples.indices)

    def batches(
        self, batch_size: int, *, generator: torch.Generator | None = None, augment: bool = False
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """Pass once over all samples; the last batch may be smaller.

        Args:
            batch_size: Samples per batch, >= 1.
            generator: Shuffles the samples and draws the augmentation; None keeps their order.
            augment: Augment the inputs; for the train split only.

        Returns:
            Inputs ``[batch, ...]``, float32 and normalized (or a dictionary of tensors), and labels
            int64 ``[batch]``.

        Raises:
            InputError: ``batch_size`` is below 1, or ``augment`` is set without a generator or on
                another split than train.
        """
        placed = self.placed_batches(batch_size, generator=generator, augment=augment)
        return ((inputs, labels) for _, inputs, labels in placed)

    def placed_batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: bool = False,
        by_length: bool = False,
    ) -> Iterator[tuple[Tensor, Inputs, Tensor]]:
        """As ``batches``, with where each sample stands in the split before its inputs.

        Positions are int64 ``[batch]``: what was computed for a sample once, such as a teacher's
        logits, is found again by them in every later pass. Shuffled samples whose lengths differ
        (texts) come in batches of similar length, so that little is computed on padding; those that
        are not shuffled do so where ``by_length`` is set.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: use at least 1")
        if augment and generator is None:
            raise InputError("augment is set without a generator: give a torch.Generator")
        if augment and self.role != "train":
            raise InputError(f"augment is set on the {self.role} split: only train is augmented")
        return self._pass(batch_size, generator, augment=augment, by_length=by_length)

    @property
    def augments(self) -> bool:
        """Whether samples can be augmented: texts cannot."""
        return self._samples.store.augments

    def subset(self, n: int, seed: int) -> Self:
        """Draw ``n`` samples, every class in proportion.

        Raises:
            InputError: ``n`` is below 1 or above the number of samples.
        """
        if not 1 <= n <= len(self):
            raise InputError(
                f"a subset of {n} samples of the {self.role} split: use 1 to {len(self)}"
            )
        drawn = stratified_draw(self.labels, n, seed)
        return self._with(replace(self._samples, indices=self._samples.indices[drawn]))

    def alone(self) -> Self:
        """The same samples in a store of their own; a test split goes on with its count."""
        return self._with(self._samples.alone())

    def on(self, device: torch.device) -> Self:
        """The same samples in a device's memory, where they can be kept there; else as they are.

        The host then neither augments nor copies images, which a fast device would wait for. Batches
        come in the same order, with the same augmentation; a test split goes on with its count.
        """
        return self._with(self._samples.on(device))

    def spelled(self, tokenizer: TextTokenizer) -> Self:
        """The same texts, split into other pieces; a test split goes on with its count.

        Raises:
            InputError: The samples are no texts.
        """
        store = self._samples.store.take(self._samples.indices).spelled(tokenizer)
        everything = torch.arange(len(self._samples.indices))
        return self._with(replace(self._samples, store=store, indices=everything))

    def _pass(
        self,
        batch_size: int,
        generator: torch.Generator | None,
        *,
        augment: bool,
        by_length: bool,
    ) -> Iterator[tuple[Tensor, Inputs, Tensor]]:
        self._begin_pass()
        indices = self._samples.indices
        for positions in self._order(batch_size, generator, by_length=by_length):
            batch = indices[positions]
            inputs, labels = self._samples.store.read(batch, generator if augment else None)
            self._check_labels(labels)
            yield positions, inputs, labels

    def _order(
        self, batch_size: int, generator: torch.Generator | None, *, by_length: bool
    ) -> Sequence[Tensor]:
        """Positions of every batch."""
        size = len(self)
        lengths = self._samples.store.lengths
        if generator is None:
            order = torch.arange(size)
            if by_length and lengths is not None:
                order = lengths[self._samples.indices].argsort(stable=True)
            return torch.split(order, batch_size)
        order = torch.randperm(size, generator=generator)
        if lengths is None:
            return torch.split(order, batch_size)
        return _by_length(order, lengths[self._samples.indices], batch_size, generator)

    def require_labels(self) -> None:
        """Look at all labels: not the last batch of the last pass must tell of a wrong one.

        Raises:
            DataError: One is of no class (of an unlabeled split: one is a label).
        """
        self._check_labels(self.labels)

    def _check_labels(self, labels: Tensor) -> None:
        if int(labels.min()) < 0 or int(labels.max()) >= self.num_classes:
            raise DataError(
                f"{self.name}: the {self.role} split has a label outside 0 to "
                f"{self.num_classes - 1}: set num_classes, or mend the labels"
            )


_POOL_BATCHES = 50
"""Batches whose samples are sorted by length together: enough for little padding, and for chance."""


def _by_length(
    order: Tensor, lengths: Tensor, batch_size: int, generator: torch.Generator
) -> list[Tensor]:
    """Shuffled positions in batches of similar length, the batches shuffled again.

    A last batch that is not full stays the last, as in a pass without lengths.
    """
    full = len(order) // batch_size * batch_size
    batches: list[Tensor] = []
    for pool in torch.split(order[:full], _POOL_BATCHES * batch_size) if full else ():
        batches += torch.split(pool[lengths[pool].argsort(stable=True)], batch_size)
    mixed = [batches[k] for k in torch.randperm(len(batches), generator=generator).tolist()]
    return mixed if full == len(order) else [*mixed, order[full:]]


@final
class TrainSplit(Split):
    """Samples that weights are trained on."""

    @property
    def role(self) -> str:
        """``train``."""
        return "train"

    def _begin_pass(self) -> None:
        return

    def _with(self, samples: Samples) -> "TrainSplit":
        return TrainSplit(samples)


@final
class SearchSplit(Split):
    """Samples that decisions are made on: fitness, thresholds, early stopping, the best epoch."""

    @property
    def role(self) -> str:
        """``search``."""
        return "search"

    def _begin_pass(self) -> None:
        return

    def _with(self, samples: Samples) -> "SearchSplit":
        return SearchSplit(samples)


@final
class UnlabeledSplit(Split):
    """Samples without labels (``-1``): a teacher's outputs are learned on them, nothing else."""

    @property
    def role(self) -> str:
        """``unlabeled``."""
        return "unlabeled"

    def _begin_pass(self) -> None:
        return

    def _with(self, samples: Samples) -> "UnlabeledSplit":
        return UnlabeledSplit(samples)

    def _check_labels(self, labels: Tensor) -> None:
        if bool((labels != -1).any()):
            raise DataError(f"{self.name}: the unlabeled split has a label; mark all with -1")


@dataclass
class _Looks:
    """A count shared by a test split and all its subsets."""

    n: int = 0


@final
class TestSplit(Split):
    """Samples that numbers are reported on. It counts every pass, begun ones too.

    A look at a subset is a look: subsets share the count of the split they are drawn from.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(self, samples: Samples, _looks: _Looks | None = None) -> None:
        super().__init__(samples)
        self._looks = _Looks() if _looks is None else _looks

    @property
    def role(self) -> str:
        """``test``."""
        return "test"

    @property
    def evaluations(self) -> int:
        """How many passes over this split, or a subset of it, were begun."""
        return self._looks.n

    def _begin_pass(self) -> None:
        self._looks.n += 1

    def _with(self, samples: Samples) -> "TestSplit":
        return TestSplit(samples, self._looks)
