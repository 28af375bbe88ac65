"""A data set in its three roles, and how the search split is carved out of train."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from prunus.data.splits import (
    Samples,
    SearchSplit,
    Split,
    TestSplit,
    TrainSplit,
    UnlabeledSplit,
)
from prunus.data.stratify import spare, stratified_draw
from prunus.data.text.options import TextOptions
from prunus.data.text.tokenizer import TextTokenizer
from prunus.errors import DataError, InputError

_NAMED = 3  # classes of a remark, at most


@dataclass(frozen=True)
class DataSplits:
    """A data set in its three roles.

    Splits that lie in one store are given stores of their own: who is handed one split (a method gets
    train and search) cannot reach the samples of another through it.

    Args:
        name: As given to ``load_data``.
        train: For weights.
        search: For decisions; shares no sample with train.
        test: For reported numbers; shares none with either.
        num_classes: The same in all three.
        note: What a reader of results must know, as that a part of the data is missing.
        metric: That results are told in.
        class_names: In the order of their numbers, where they have names.
        unlabeled: More samples, for a teacher.
        tokenizer: Of texts.
        text: How texts were read; None for other data.

    Raises:
        DataError: The splits differ in classes or input shape, two of them overlap, or a label is of
            no class.
    """

    name: str
    train: TrainSplit
    search: SearchSplit
    test: TestSplit
    num_classes: int
    note: str = ""
    metric: Literal["top1", "f1"] = "top1"
    class_names: tuple[str, ...] = ()
    unlabeled: UnlabeledSplit | None = None
    tokenizer: TextTokenizer | None = None
    text: TextOptions | None = None

    def __post_init__(self) -> None:
        splits: tuple[Split, ...] = (self.train, self.search, self.test)
        for split in splits:
            if split.num_classes != self.num_classes:
                raise DataError(
                    f"{self.name}: the {split.role} split has {split.num_classes} classes, the "
                    f"data set {self.num_classes}; give all splits the same"
                )
            if split.input_shape != self.input_shape:
                raise DataError(
                    f"{self.name}: inputs of the {split.role} split are {list(split.input_shape)}, "
                    f"of train {list(self.input_shape)}; give all splits the same"
                )
        for one, other in itertools.combinations(splits, 2):
            mine, theirs = one.samples, other.samples
            shared = mine.store is theirs.store and torch.isin(mine.indices, theirs.indices)
            if isinstance(shared, Tensor) and bool(shared.any()):
                raise DataError(
                    f"{self.name}: {int(shared.sum())} samples are in {one.role} and in "
                    f"{other.role}; make the two disjoint"
                )
        for labeled in splits if self.unlabeled is None else (*splits, self.unlabeled):
            labeled.require_labels()
        stores = [split.samples.store for split in splits]
        for split in splits:
            if sum(split.samples.store is store for store in stores) > 1:
                object.__setattr__(self, split.role, split.alone())  # the class is frozen

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input without the batch; empty where inputs are dictionaries."""
        return self.train.input_shape

    @property
    def max_length(self) -> int | None:
        """The greatest length of a sample, where samples differ in it (texts)."""
        return self.train.samples.store.max_length

    def noted(self, remarks: Sequence[str]) -> "DataSplits":
        """The same, with more remarks in its note."""
        return replace(self, note="; ".join([*([self.note] if self.note else []), *remarks]))

    def with_tokenizer(self, tokenizer: TextTokenizer) -> "DataSplits":
        """The same texts, split into other pieces. The test split goes on with its count.

        Raises:
            InputError: The samples are no texts.
        """
        changed = {
            split.role: split.spelled(tokenizer)
            for split in (self.train, self.search, self.test, self.unlabeled)
            if split is not None
        }
        return replace(self, **changed, tokenizer=tokenizer)  # type: ignore[arg-type]  # by role


def require_draw(seed: object, search_size: object) -> None:
    """Refuse what no search split can be drawn by.

    Raises:
        InputError: The seed or the size is no whole number, or the seed is negative.
    """
    if not isinstance(seed, Integral) or int(seed) < 0:
        raise InputError(f"seed is {seed!r}: give a whole number, 0 or more")
    if search_size is not None and not isinstance(search_size, Integral):
        raise InputError(f"search_size is {search_size!r}: give a whole number of samples")


def carve_search(train: TrainSplit, n: int, seed: int) -> tuple[TrainSplit, SearchSplit]:
    """Take ``n`` samples out of train for search, every class in proportion, its last sample never.

    Args:
        train: Left as it is.
        n: Samples of the search split.
        seed: Decides which samples are taken.

    Returns:
        The rest of train, and the search split: disjoint, together the samples of ``train``.

    Raises:
        InputError: One of the two would be empty, or train without a sample of a class.
        DataError: There are too few samples for two.
    """
    if len(train) < 2:
        raise DataError(
            f"train of '{train.samples.name}' has {len(train)} sample: give at least 2, one for train "
            "and one for search"
        )
    most = spare(train.labels)
    if most < 1:
        raise DataError(
            f"train of '{train.samples.name}' has one sample of each class: give at least one more, "
            "for search"
        )
    if not 1 <= n <= most:
        raise InputError(
            f"search_size is {n}: use 1 to {most}, out of train's {len(train)}, each of whose classes "
            "keeps a sample"
        )
    taken = stratified_draw(train.labels, n, seed, leave=1)
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[taken] = False
    samples = train.samples
    return (
        TrainSplit(replace(samples, indices=samples.indices[rest])),
        SearchSplit(replace(samples, indices=samples.indices[taken])),
    )


def three_splits(
    train: Samples, test: Samples, *, search_size: int | None, seed: int, note: str = ""
) -> DataSplits:
    """Make the three splits of train and test samples, search carved out of train.

    Args:
        train: For weights and decisions.
        test: For reported numbers.
        search_size: Samples of search; by default a fifth, or as many as leave every class one.
        seed: Decides which samples become search.
        note: On the data.

    Raises:
        InputError: ``search_size`` leaves a class nothing to train, or is below 1.
        DataError: There are too few samples for two splits.
    """
    whole = TrainSplit(train)
    if search_size is None:
        search_size = max(1, min(round(len(whole) / 5), spare(whole.labels)))
    rest, search = carve_search(whole, search_size, seed)
    data = DataSplits(train.name, rest, search, TestSplit(test), train.num_classes, note)
    return with_absent_noted(data)


def with_absent_noted(data: DataSplits) -> DataSplits:
    """The same, its note telling of splits that lack a class."""
    labels = {split.role: split.labels for split in (data.train, data.search, data.test)}
    return data.noted(absent(labels, [str(k) for k in range(data.num_classes)], "sample"))


def absent(labels: Mapping[str, Tensor], classes: Sequence[str], what: str) -> list[str]:
    """Remarks on splits that lack a class, of which their scores then say nothing.

    Args:
        labels: Of the samples, by the role of their split.
        classes: What each is called.
        what: What a sample is called.
    """
    remarks = []
    for role, given in labels.items():
        counts = given.bincount(minlength=len(classes))
        missed = [classes[k] for k in (counts == 0).nonzero().flatten().tolist()]
        if len(missed) > _NAMED:
            missed = [*missed[:_NAMED], f"… ({len(missed)} of {len(classes)})"]
        if missed:
            which = f"class {missed[0]}" if len(missed) == 1 else f"the classes {', '.join(missed)}"
            remarks.append(f"the {role} split has no {what} of {which}")
    return remarks
