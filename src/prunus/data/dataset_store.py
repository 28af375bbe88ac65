"""Samples from a data set of the user's own."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from prunus.data.stores import Inputs, SampleStore
from prunus.errors import DataError, InputError, first_line, kind_and_line
from prunus.seeding import seeded


class SizedDataset(Protocol):
    """A map-style data set: ``(input, label)`` pairs, or mappings that hold a label."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int, /) -> Any:
        """One sample."""


@final
class DatasetStore(SampleStore):
    """A user's data set, whose inputs are already what the network takes.

    Random transforms inside the data set draw from a seed of ours, and the global random states of
    torch, NumPy and Python are left as they were.

    Args:
        dataset: Samples as the network takes them: the plain ones.
        augmented: The same samples in the same order with augmentation; by default the plain ones.
        labels: Class of every sample; by default every sample is read once when they are needed.
        label_key: The label's name where a sample is a mapping.
    """

    def __init__(
        self,
        dataset: SizedDataset,
        *,
        augmented: SizedDataset | None = None,
        labels: Sequence[int] | None = None,
        label_key: str = "labels",
    ) -> None:
        self._dataset = dataset
        self._augmented = dataset if augmented is None else augmented
        self._given_labels = labels
        self._label_key = label_key
        size = self.size = _size(dataset, "dataset")
        if size == 0:
            raise DataError("the data set is empty: give one with samples")
        if _size(self._augmented, "augmented") != size:
            raise InputError(
                f"augmented has {len(self._augmented)} samples, the data set {size}: "
                "give the same samples in the same order"
            )
        if labels is not None and len(labels) != size:
            raise InputError(f"{len(labels)} labels for {size} samples: give one per sample")

    @cached_property
    def labels(self) -> Tensor:
        """Class of every sample, int64 ``[samples]``."""
        if self._given_labels is not None:
            given = [
                _class(label, f"label {index}") for index, label in enumerate(self._given_labels)
            ]
            return torch.tensor(given, dtype=torch.int64)
        with seeded(0):
            found = [self._split(self._dataset, index)[1] for index in range(len(self._dataset))]
        return torch.tensor(found, dtype=torch.int64)

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first input; empty where it is a dictionary."""
        inputs, _ = self.read(torch.tensor([0]), None)
        return tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()

    def read(self, indices: Tensor, augment: torch.Generator | None) -> tuple[Inputs, Tensor]:
        """Read samples and stack them."""
        dataset = self._dataset if augment is None else self._augmented
        seed = 0
        if augment is not None:
            seed = int(torch.randint(2**32, (), generator=augment))
        with seeded(seed):
            samples = [self._split(dataset, index) for index in indices.tolist()]
        try:
            inputs = default_collate([sample for sample, _ in samples])
        except (RuntimeError, TypeError, KeyError) as error:
            reason = first_line(error)
            raise DataError(
                f"inputs of the data set cannot be stacked ({reason}): give tensors or arrays of "
                "one shape, or dictionaries of them"
            ) from error
        labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
        if self._given_labels is not None:
            self._require_same(labels, indices)
        if isinstance(inputs, Mapping):
            first = samples[0][0]
            named = {key: _floats(value, f"'{key}'", first[key]) for key, value in inputs.items()}
            return named, labels
        return _floats(inputs, "inputs", samples[0][0]), labels

    def _require_same(self, labels: Tensor, indices: Tensor) -> None:
        """Refuse labels that were given in the place of others.

        Raises:
            DataError: A sample has another.
        """
        given = self.labels[indices]
        odd = (given != labels).nonzero().flatten()
        if len(odd):
            at = int(odd[0])
            raise DataError(
                f"train_labels has {int(given[at])} for sample {int(indices[at])}, whose own label is "
                f"{int(labels[at])}: give the labels of the data set, or leave train_labels out"
            )

    def _split(self, dataset: SizedDataset, index: int) -> tuple[Any, int]:
        """One sample's input and label."""
        try:
            sample = dataset[index]
        except Exception as error:  # the user's own code may raise anything
            raise DataError(
                f"sample {index} of {len(dataset)} cannot be read, the data set raised "
                f"{kind_and_line(error)}: mend or leave out that sample"
            ) from error
        if isinstance(sample, Mapping):
            rest = dict(sample)
            if self._label_key not in rest:
                raise DataError(
                    f"sample {index} has no '{self._label_key}' among {', '.join(map(str, rest))}: "
                    "set label_key"
                )
            label = rest.pop(self._label_key)
            return rest, _class(label, f"the label of sample {index}")
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise DataError(
                f"sample {index} is a {type(sample).__name__}: give (input, label) pairs, "
                "or mappings with a label"
            )
        return sample[0], _class(sample[1], f"the label of sample {index}")


def _floats(stacked: Any, what: str, sample: Any) -> Tensor:
    """What a network takes, in float32 where it was in float64.

    Raises:
        DataError: It is no tensor.
    """
    if not isinstance(stacked, Tensor):
        raise DataError(
            f"{what} of the data set are {type(sample).__name__}: give tensors or arrays (of Hugging "
            "Face: set_format('torch')), or dictionaries of them, and nothing else"
        )
    return stacked.float() if stacked.dtype == torch.float64 else stacked


def _class(label: Any, what: str) -> int:
    """The number of a class.

    Raises:
        DataError: It is several numbers, such as a one-hot vector, or no whole one.
    """
    if isinstance(label, int):
        return label
    array = np.asarray(label.detach().cpu() if isinstance(label, Tensor) else label)
    if array.size != 1:
        raise DataError(
            f"{what} has shape {list(array.shape)}: give the number of the class, such as "
            "label.argmax() of a one-hot vector"
        )
    value = array.item()
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        number = None
    if number is None or (isinstance(value, float) and value != number):
        raise DataError(f"{what} is {value!r}: give the number of the class, 0 or more")
    return number


def _size(dataset: SizedDataset, what: str) -> int:
    try:
        return len(dataset)
    except TypeError as error:
        raise InputError(
            f"{what} ({type(dataset).__name__}) has no length: give a map-style data set"
        ) from error
