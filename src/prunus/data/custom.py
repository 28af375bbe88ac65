"""The user's own torch data sets, in three roles."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prunus.data.dataset_store import DatasetStore, SizedDataset
from prunus.data.roles import DataSplits, three_splits
from prunus.data.splits import Samples, SearchSplit, TestSplit, TrainSplit
from prunus.errors import DataError, InputError


@dataclass(frozen=True)
class CustomOptions:
    """How to read the user's data sets.

    Args:
        name: For messages and records.
        num_classes: By default one more than the largest label of train.
        augmented_train: The samples of train in the same order, augmented; by default train itself.
        train_labels: Class of every sample of train; by default, all samples are read once.
        label_key: The label's name where samples are mappings.
    """

    name: str = "custom"
    num_classes: int | None = None
    augmented_train: SizedDataset | None = None
    train_labels: Sequence[int] | None = None
    label_key: str = "labels"


def from_datasets(
    train: SizedDataset,
    test: SizedDataset,
    *,
    search: SizedDataset | None = None,
    search_size: int | None = None,
    seed: int = 0,
    options: CustomOptions | None = None,
) -> DataSplits:
    """Wrap map-style data sets whose inputs are already what the network takes.

    Samples are ``(input, label)`` pairs, or mappings of tensors with a label among them (as of
    tokenized texts): then batches hold a dictionary of inputs.

    Args:
        train: For weights; its transforms should be those of evaluation, see ``CustomOptions``.
        test: For reported numbers.
        search: For decisions; by default carved out of train, every class in proportion.
        search_size: Samples of search; by default a fifth of train, or the whole of ``search``.
        seed: Decides which samples become search.
        options: Names and labels.

    Raises:
        InputError: A data set has no length, a size does not fit, or labels are missing.
        DataError: A data set is empty, or its samples cannot be used.
    """
    if train is test or (search is not None and (search is train or search is test)):
        raise InputError("train, search and test share a data set: give disjoint ones")
    chosen = CustomOptions() if options is None else options
    store = DatasetStore(
        train,
        augmented=chosen.augmented_train,
        labels=chosen.train_labels,
        label_key=chosen.label_key,
    )
    num_classes = chosen.num_classes
    if num_classes is None:
        num_classes = int(store.labels.max()) + 1
    if num_classes < 1 or int(store.labels.min()) < 0:
        raise DataError(
            f"{chosen.name}: num_classes is {num_classes} and the smallest label "
            f"{int(store.labels.min())}: use labels from 0 and at least one class"
        )

    def samples(part: DatasetStore) -> Samples:
        return Samples(chosen.name, part, torch.arange(part.size), num_classes)

    test_samples = samples(DatasetStore(test, label_key=chosen.label_key))
    if search is None:
        size = max(1, round(store.size / 5)) if search_size is None else search_size
        return three_splits(samples(store), test_samples, search_size=size, seed=seed)
    search_split = SearchSplit(samples(DatasetStore(search, label_key=chosen.label_key)))
    if search_size is not None:
        search_split = search_split.subset(search_size, seed)
    return DataSplits(
        chosen.name, TrainSplit(samples(store)), search_split, TestSplit(test_samples), num_classes
    )
