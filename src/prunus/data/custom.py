"""The user's own torch data sets, in three roles."""

import itertools
import operator
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from prunus.data.dataset_store import DatasetStore, SizedDataset
from prunus.data.roles import DataSplits, require_draw, three_splits, with_absent_noted
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
        InputError: A data set has no length or no positions, as a ``DataLoader``, a size does not
            fit, or labels are missing.
        DataError: A data set is empty, two share samples (told of ``torch.utils.data.Subset``
            and ``ConcatDataset``), or samples cannot be used.
    """
    if train is test or (search is not None and (search is train or search is test)):
        raise InputError("train, search and test share a data set: give disjoint ones")
    require_draw(seed, search_size)
    chosen = CustomOptions() if options is None else options
    roles = {
        "train": train,
        "augmented_train": chosen.augmented_train,
        "search": search,
        "test": test,
    }
    given = {role: each for role, each in roles.items() if each is not None}
    for role, each in given.items():
        _require_positions(role, each)
    store = DatasetStore(
        train,
        augmented=chosen.augmented_train,
        labels=chosen.train_labels,
        label_key=chosen.label_key,
    )
    test_store = DatasetStore(test, label_key=chosen.label_key)
    search_store = None if search is None else DatasetStore(search, label_key=chosen.label_key)
    _require_disjoint(chosen.name, given)
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

    test_samples = samples(test_store)
    if search_store is None:
        _require_single(chosen.name, train)
        return three_splits(samples(store), test_samples, search_size=search_size, seed=seed)
    search_split = SearchSplit(samples(search_store))
    if search_size is not None:
        search_split = search_split.subset(search_size, seed)
    return with_absent_noted(
        DataSplits(
            chosen.name,
            TrainSplit(samples(store)),
            search_split,
            TestSplit(test_samples),
            num_classes,
        )
    )


def _require_positions(role: str, dataset: object) -> None:
    """Refuse what samples cannot be taken from by position.

    Raises:
        InputError: It is none such.
    """
    if isinstance(dataset, DataLoader):
        raise InputError(
            f"{role} is a DataLoader, which makes batches of its own: give the DataLoader's .dataset"
        )
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise InputError(
            f"{role} ({type(dataset).__name__}) has no samples by position (__getitem__): give a "
            "map-style data set"
        )


def _require_disjoint(name: str, given: Mapping[str, SizedDataset]) -> None:
    """Refuse parts of one data set that overlap: what decides or is reported would be trained on.

    Raises:
        DataError: Two share samples.
    """
    held = {role: _taken(dataset) for role, dataset in given.items()}
    for one, other in itertools.combinations(held, 2):
        if other == "augmented_train":  # train again, by its meaning
            continue
        mine, theirs = held[one], held[other]
        shared = sum(
            len({*mine[whole]} & {*theirs[whole]}) for whole in mine.keys() & theirs.keys()
        )
        if shared:
            raise DataError(
                f"{name}: {shared} samples are in {one} and in {other}; make the two disjoint, as "
                "torch.utils.data.random_split does"
            )


def _require_single(name: str, train: SizedDataset) -> None:
    """Refuse to draw a search split from samples that are there several times: both would have them.

    Raises:
        DataError: A ``Subset`` repeats positions, as one that oversamples does, or a data set is
            there twice.
    """
    repeated = sum(
        len(places) - len({*places})
        for places in _taken(train).values()
        if not isinstance(places, range)
    )
    if repeated:
        raise DataError(
            f"{name}: {repeated} of train's positions are there already, so that a search split drawn "
            "from it would share samples with it; give search=, or every sample once"
        )


_Places = Sequence[int | str]


def _taken(dataset: SizedDataset, places: Sequence[Any] | None = None) -> dict[int, _Places]:
    """Which samples are taken of the data sets below all subsets and concatenations.

    Args:
        dataset: Held by the caller, as all below it are by it: that keeps their ids.
        places: Of its samples; by default all.

    Returns:
        By ``id`` of a data set: positions from 0, or the texts of keys of another kind.
    """
    whole: Any = dataset
    size = len(whole) if hasattr(whole, "__len__") else 0
    taken: _Places = range(size) if places is None else [_place(place, size) for place in places]
    if isinstance(whole, Subset):
        kept: Any = whole.indices
        if isinstance(kept, Tensor | np.ndarray):
            kept = kept.flatten().tolist()
        return _taken(whole.dataset, [kept[place] for place in taken])  # type: ignore[arg-type]
    if not isinstance(whole, ConcatDataset):
        return {id(whole): taken}
    ends = whole.cumulative_sizes
    inside: list[list[int]] = [[] for _ in ends]
    for place in taken:
        if isinstance(place, int) and 0 <= place < size:
            part = bisect_right(ends, place)
            inside[part].append(place - (ends[part - 1] if part else 0))
    found: dict[int, list[int | str]] = {}
    for dataset_of_part, some in zip(whole.datasets, inside, strict=True):
        for leaf, more in _taken(dataset_of_part, some).items():  # type: ignore[arg-type]
            found.setdefault(leaf, []).extend(more)
    return {**found}


def _place(index: object, size: int) -> int | str:
    """A position from 0, or the text of another kind of key."""
    try:
        number = operator.index(index)  # type: ignore[arg-type]  # whatever a user's list holds
    except (TypeError, ValueError, RuntimeError):
        return repr(index)
    return number + size if number < 0 else number
