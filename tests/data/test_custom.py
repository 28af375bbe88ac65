"""The user's own data sets become three splits."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prunus.data import CustomOptions, from_datasets
from prunus.errors import DataError, InputError

Rows = list[tuple[torch.Tensor, int]]


def rows(n: int, start: int = 0) -> Rows:
    return [(torch.tensor([float(start + i)]), i % 2) for i in range(n)]


def values(split: Any) -> list[float]:
    return [x for inputs, _ in split.batches(3) for x in inputs.flatten().tolist()]


def test_search_is_a_fifth_carved_out_of_train() -> None:
    data = from_datasets(rows(20), rows(6, start=100))
    assert (len(data.train), len(data.search), len(data.test)) == (16, 4, 6)
    assert sorted(values(data.train) + values(data.search)) == [float(i) for i in range(20)]
    assert torch.bincount(data.search.labels).tolist() == [2, 2]
    assert data.num_classes == 2
    assert data.input_shape == (1,)
    assert data.test.evaluations == 0


def test_a_search_set_of_its_own_leaves_train_whole() -> None:
    train, test, search = rows(10), rows(4, 100), rows(8, 200)
    data = from_datasets(train, test, search=search)
    assert (len(data.train), len(data.search)) == (10, 8)
    assert min(values(data.search)) == 200
    assert len(from_datasets(train, test, search=search, search_size=4).search) == 4


def test_the_seed_draws_from_a_search_set_of_its_own() -> None:
    train, test, search = rows(10), rows(4, 100), rows(8, 200)

    def drawn(seed: int) -> list[float]:
        data = from_datasets(train, test, search=search, search_size=4, seed=seed)
        return values(data.search)

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(6)}) > 1


def test_options_are_used() -> None:
    options = CustomOptions(name="mine", num_classes=5, augmented_train=rows(10, start=50))
    data = from_datasets(rows(10), rows(4, 100), search_size=2, options=options)
    assert (data.name, data.num_classes) == ("mine", 5)
    generator = torch.Generator().manual_seed(0)
    augmented: list[float] = []
    for inputs, _ in data.train.batches(3, generator=generator, augment=True):
        assert isinstance(inputs, torch.Tensor)
        augmented += (inputs - 50).flatten().tolist()
    assert sorted(augmented) == values(data.train)


def test_mistakes_are_named() -> None:
    train = rows(10)
    with pytest.raises(InputError, match=r"train, search and test share a data set"):
        from_datasets(train, train)
    with pytest.raises(InputError, match=r"share a data set: give disjoint ones"):
        from_datasets(train, rows(3), search=train)
    with pytest.raises(DataError, match=r"train of 'custom' has 1 sample: give at least 2"):
        from_datasets(rows(1), rows(3))
    with pytest.raises(InputError, match=r"search_size is 10: use 1 to 8"):
        from_datasets(train, rows(3), search_size=10)
    with pytest.raises(DataError, match=r"custom: num_classes is 2 and the smallest label -1"):
        from_datasets([(torch.zeros(1), -1), (torch.zeros(1), 1)], rows(3))
    with pytest.raises(DataError, match=r"the test split has a label outside 0 to 1: set num"):
        from_datasets(train, [(torch.zeros(1), 7)])


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (torch.eye(3)[1], r"the label of sample 0 has shape \[3\]: give the number of the class"),
        ([0, 1], r"the label of sample 0 has shape \[2\]: give the number of the class"),
        (0.5, r"the label of sample 0 is 0\.5: give the number of the class, 0 or more"),
        (float("nan"), r"the label of sample 0 is nan: give the number"),
        ("cat", r"the label of sample 0 is 'cat': give the number"),
        (None, r"the label of sample 0 is None: give the number"),
    ],
)
def test_labels_that_are_no_class_are_named(label: Any, said: str) -> None:
    pairs = [(torch.zeros(1), label) for _ in range(4)]
    with pytest.raises(DataError, match=said):
        from_datasets(pairs, rows(3))
    with pytest.raises(DataError, match=said):
        from_datasets([{"x": x, "labels": y} for x, y in pairs], rows(3))
    with pytest.raises(DataError, match="^label 0 "):
        from_datasets(rows(4), rows(3), options=CustomOptions(train_labels=[label] * 4))
    with pytest.raises(DataError, match=said):
        from_datasets(rows(4), pairs)


class _Torn:
    """Its third sample cannot be read, or is not there at all."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 2:
            raise self.error
        return torch.full((1, 4, 4), float(index)), index % 2


@pytest.mark.parametrize("error", [OSError("truncated\nfile"), IndexError()], ids=repr)
def test_a_sample_that_raises_is_named(error: Exception) -> None:
    told = "truncated" if str(error) else "IndexError"
    said = (
        f"sample 2 of 40 cannot be read, the data set raised {type(error).__name__}: {told}: mend"
    )
    with pytest.raises(DataError, match=said) as caught:
        from_datasets(_Torn(error), _Torn(error))
    assert "\n" not in str(caught.value)


def test_labels_may_be_whole_numbers_of_any_kind() -> None:
    kinds = [1, True, 1.0, torch.tensor(1), torch.tensor([1.0]), np.int64(1), np.array([1])]
    data = from_datasets([(torch.zeros(1), kind) for kind in kinds], rows(3), search_size=1)
    assert data.num_classes == 2
    assert data.train.labels.tolist() == [1] * 6
